"""Anchor items: few items that stand for a task, and estimates of the score on all of its items from them.

tinyBenchmarks (Polo et al. 2024, arXiv 2402.14992): items with alike parameters in an item response model are grouped,
and the item nearest to each group's centre stands for it. MERGE³ (Mencattini et al. 2025, arXiv 2502.10436) brings the
parents' abilities into the estimate of a merge's. How far estimates were from the truth is measured on candidates that
answered everything, and kept with the anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from heterosis.statistics import irt
from heterosis.statistics.bootstrap import Array
from heterosis.statistics.irt import ItemModel, Items

Estimator = Literal["gp-irt", "p-irt", "mp-irt", "gmp-irt", "weighted"]

REACH = 2.0
"""A candidate's ability has a normal prior this many times as wide as the warm-up's: searches leave their warm-up."""
NARROWEST = 0.2
"""Spread of that prior where the warm-up's candidates, or the parents, are all alike."""
ROUNDS = 100
SUBSETS = 200
FEWEST = 4
"""Candidates that it takes to measure an error."""


class MeasuredError(NamedTuple):
    """How far estimates were from the scores on all items, for anchors and for as many items drawn at random."""

    candidates: int
    rms: float
    """Root mean square of (estimate − score) over candidates that neither items nor anchors were fitted to."""
    largest: float
    difference: float
    """Root mean square error of the difference between two candidates on the same anchors: what a search ranks by."""
    random_rms: float
    random_largest: float
    random_difference: float

    @property
    def pays(self) -> bool:
        """Whether anchors beat plain means over as many random items, for scores and for differences."""
        return self.rms < self.random_rms and self.difference < self.random_difference

    def describe(self) -> str:
        """One line in points (hundredths)."""
        ours = (self.rms, self.largest, self.difference)
        random = (self.random_rms, self.random_largest, self.random_difference)
        return " against ".join(
            f"{who} ±{100 * rms:.1f} points (at most {100 * largest:.1f}; differences ±{100 * difference:.1f})"
            for who, (rms, largest, difference) in (("anchors", ours), ("random items", random))
        )


class Anchors(NamedTuple):
    """A task's anchors, and all that it takes to estimate a candidate's score from its outcomes on them."""

    items: Items
    """[anchors] positions among the task's items, ascending"""
    weights: Array
    """[anchors] share of the task that each stands for; they add up to 1"""
    model: ItemModel
    item_weights: Array
    """[items] weight of each item in the score; they add up to 1"""
    parents: Array
    """[parents] abilities"""
    estimator: Estimator
    mixing: float
    """λ of gp-IRT and gmp-IRT: the part of the anchors' weighted mean."""
    error: MeasuredError | None
    """None where too few candidates were there to measure it."""

    def estimate(self, outcomes: Array) -> float:
        """Score on all items from `outcomes` [anchors] of 0 and 1, in the order of `items`; NaN where unknown."""
        weighted = _weighted(self.weights, outcomes)
        if self.estimator == "weighted":
            return weighted
        everything = np.full(self.item_weights.size, np.nan)
        everything[self.items] = outcomes
        parents = self.parents if self.estimator in ("mp-irt", "gmp-irt") else None
        modelled = _modelled(self.model, everything, self.item_weights, parents)
        if self.estimator in ("p-irt", "mp-irt") or math.isnan(weighted):
            return modelled
        return self.mixing * weighted + (1.0 - self.mixing) * modelled

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        arrays = {name: getattr(self, name).tolist() for name in ("items", "weights", "item_weights", "parents")}
        error = None if self.error is None else self.error._asdict()
        plain = {"estimator": self.estimator, "mixing": self.mixing, "error": error}
        return arrays | plain | {"model": self.model.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Anchors:
        """Inverse of `to_json`, bit for bit."""
        return cls(
            items=np.asarray(content["items"], dtype=np.int64),
            weights=np.asarray(content["weights"], dtype=np.float64),
            model=ItemModel.from_json(content["model"]),
            item_weights=np.asarray(content["item_weights"], dtype=np.float64),
            parents=np.asarray(content["parents"], dtype=np.float64),
            estimator=content["estimator"],
            mixing=content["mixing"],
            error=None if content["error"] is None else MeasuredError(**content["error"]),
        )


def choose(
    responses: Array,
    count: int,
    estimator: Estimator = "gp-irt",
    *,
    parents: Sequence[int] = (),
    weights: Array | None = None,
    seed: int = 0,
) -> Anchors:
    """Fit the item model to the warm-up, choose `count` anchors and measure the estimator's error.

    `responses` [candidates, items] of 0 and 1, NaN where unknown; `parents`: rows of the parents, wanted by mp-irt and
    gmp-irt; `weights` [items]: of the items in the score, equal by default. All randomness is that of `seed`.
    """
    assert responses.shape[1]
    assert count > 0
    assert irt.is_binary(responses)
    assert len(parents) or estimator not in ("mp-irt", "gmp-irt")
    shares = np.full(responses.shape[1], 1.0 / responses.shape[1]) if weights is None else weights / weights.sum()
    model = irt.fit(responses)
    items, standing = pick(model, count, shares, seed)
    draft = Anchors(items, standing, model, shares, model.ability[list(parents)], estimator, 0.0, None)
    folds = _leave_pairs_out(draft, responses, parents, seed)
    draft = draft._replace(mixing=_mixing(draft, folds, responses))
    return draft._replace(error=_measure(draft, folds, responses, seed))


def pick(model: ItemModel, count: int, shares: Array, seed: int) -> tuple[Items, Array]:
    """Anchors and what part of the task each stands for: (positions [anchors], shares [anchors]).

    tinyBenchmarks, section 3: k-means on the items' (a, a·b), their α and β; the item nearest to each centre is the
    anchor, the share of its cluster its weight. Items that all candidates answer alike coincide, and there may be fewer
    distinct items than anchors: what is left goes to the heaviest clusters, whose weight their anchors divide.
    """
    places = np.stack([model.discrimination, -model.intercept], axis=1)
    centres = _centres(places, shares, count, np.random.default_rng([seed, 0xA2C4]))
    distances = _distances(places, centres)
    label = distances.argmin(axis=1)
    members = [np.flatnonzero(label == at) for at in range(len(centres))]
    nearest = [each[np.argsort(distances[each, at], kind="stable")] for at, each in enumerate(members) if each.size]
    heavy = [float(shares[each].sum()) for each in nearest]
    taken = [1] * len(nearest)
    for _ in range(min(count, shares.size) - len(nearest)):
        open_ones = [at for at, each in enumerate(nearest) if taken[at] < each.size]
        taken[max(open_ones, key=lambda at: heavy[at] / taken[at])] += 1
    chosen = [each[:many] for each, many in zip(nearest, taken, strict=True)]
    parts = [total * _normalised(shares[each]) for each, total in zip(chosen, heavy, strict=True)]
    items, standing = np.concatenate(chosen), np.concatenate(parts)
    order = np.argsort(items)
    return items[order], standing[order]


def _centres(places: Array, shares: Array, count: int, rng: np.random.Generator) -> Array:
    """Weighted k-means (Lloyd 1982) from k-means++ starts (Arthur & Vassilvitskii 2007). [at most count, dimensions]"""
    centres = places[[rng.choice(len(places), p=_normalised(shares))]]
    nearest = _distances(places, centres)[:, 0]
    while len(centres) < count and (shares * nearest).sum() > 0.0:
        new = places[[rng.choice(len(places), p=_normalised(shares * nearest))]]
        centres = np.vstack([centres, new])
        nearest = np.minimum(nearest, _distances(places, new)[:, 0])
    for _ in range(ROUNDS):
        label = _distances(places, centres).argmin(axis=1)
        belongs = np.equal.outer(np.arange(len(centres)), label) * shares
        mass = belongs.sum(axis=1, keepdims=True)
        moved = np.where(mass > 0.0, belongs @ places / np.where(mass > 0.0, mass, 1.0), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _distances(places: Array, centres: Array) -> Array:
    """Squared distances [places, centres], exactly 0 where they coincide."""
    along = [np.square(np.subtract.outer(places[:, axis], centres[:, axis])) for axis in range(places.shape[1])]
    apart: Array = np.sum(along, axis=0)
    return apart


def _normalised(values: Array) -> Array:
    """Parts of their sum; equal parts of a sum of zero."""
    total = values.sum()
    return values / total if total > 0.0 else np.full(values.size, 1.0 / max(values.size, 1))


def _weighted(weights: Array, outcomes: Array) -> float:
    """Weighted mean of the known outcomes; NaN where none is known."""
    known = ~np.isnan(outcomes)
    total = float(weights[known].sum())
    return float((weights * outcomes)[known].sum()) / total if total > 0.0 else math.nan


def _modelled(model: ItemModel, outcomes: Array, shares: Array, parents: Array | None) -> float:
    """Known outcomes where there are any, the model's chance elsewhere. `outcomes` [items], NaN where unknown.

    p-IRT (tinyBenchmarks, section 4), or with the parents' abilities mp-IRT (MERGE³).
    """
    chance = model.probability(irt.ability(model, outcomes, _prior(model, parents)))
    return float((shares * np.where(np.isnan(outcomes), chance, outcomes)).sum())


def _prior(model: ItemModel, parents: Array | None) -> tuple[float, float]:
    """Mean and spread of a candidate's ability before it has answered.

    Without parents, the warm-up's, REACH times as wide. MERGE³ assumes θ = Σ λ_j θ_j over the parents and fits λ by
    maximum likelihood. With one dimension of ability that reaches any θ and leaves λ undetermined, so λ_j ~ N(1/K, 1)
    stands in front of it: the parents' mean unless the outcomes say otherwise, and as uncertain as the parents'
    abilities are far from the warm-up's mean, which is 0. The mode of λ then gives the mode of θ under
    N(mean θ_j, Σ θ_j²), which is what is solved for.
    """
    if parents is None:
        spread = REACH * float(model.ability.std()) if model.ability.size else 1.0
        return 0.0, max(spread, NARROWEST)
    return float(parents.mean()), max(float(np.sqrt(np.square(parents).sum())), NARROWEST)


class _Fold(NamedTuple):
    """What anchors chosen without two candidates say about each of them. All [2], one for each candidate."""

    rows: tuple[int, int]
    truth: Array
    weighted: Array
    modelled: Array
    """p-IRT or mp-IRT"""
    bias: Array
    """|the model's mean − the true mean| over every second item, when the others are known"""


def _leave_pairs_out(draft: Anchors, responses: Array, parents: Sequence[int], seed: int) -> list[_Fold]:
    """Each candidate with its successor: fit without both, choose anchors anew, estimate both.

    Two at a time, so that one set of anchors meets two candidates that it does not know, and the error of their
    difference can be seen too. Parents stay in: a merge's parents are always known. Fits start from the full one.
    """
    complete = np.flatnonzero(~np.isnan(responses).any(axis=1))
    rows = [int(row) for row in complete if row not in set(parents)]
    if len(rows) < FEWEST or responses.shape[0] - 2 < 1:
        return []
    return [_fold(draft, responses, (row, rows[at - 1]), parents, seed) for at, row in enumerate(rows)]


def _fold(draft: Anchors, responses: Array, rows: tuple[int, int], parents: Sequence[int], seed: int) -> _Fold:
    kept = [row for row in range(responses.shape[0]) if row not in rows]
    model = irt.fit(responses[kept], draft.model._replace(ability=draft.model.ability[kept]))
    items, standing = pick(model, draft.items.size, draft.item_weights, seed)
    known = model.ability[[kept.index(row) for row in parents]]
    given = known if draft.estimator in ("mp-irt", "gmp-irt") else None
    unseen = np.ones(responses.shape[1], dtype=np.bool_)
    unseen[items] = False
    second = np.arange(responses.shape[1]) % 2 == 1
    share = float(draft.item_weights[second].sum())
    values = []
    for row in rows:
        outcomes = responses[row]
        truth = float((draft.item_weights * outcomes).sum())
        modelled = _modelled(model, np.where(unseen, np.nan, outcomes), draft.item_weights, given)
        # known items count as they are, so all of the difference lies in the others
        apart = abs(_modelled(model, np.where(second, np.nan, outcomes), draft.item_weights, given) - truth)
        values.append((truth, _weighted(standing, outcomes[items]), modelled, apart / share if share > 0.0 else 0.0))
    return _Fold(rows, *np.asarray(values).T)


def _mixing(draft: Anchors, folds: Sequence[_Fold], responses: Array) -> float:
    """λ of gp-IRT: b² / (b² + v / 4n), the squared bias of the model against the variance of the anchors' mean.

    tinyBenchmarks, section 4, and its authors' code: b is the mean absolute error of the model's mean over every second
    item, the others known, for candidates that it was not fitted to; v the mean variance of a candidate's outcomes; n
    the number of anchors; the 4 is their guess at what choosing anchors saves. MERGE³ leaves its constant to the user
    (1/2 in its code); the same rule is used here. 1/2 where nothing could be measured.
    """
    if not folds:
        return 0.5
    bias = float(np.mean([fold.bias for fold in folds]))
    variance = float(np.mean([np.nanvar(row) for row in responses if not np.isnan(row).all()]))
    noise = variance / (4.0 * draft.items.size)
    return bias**2 / (bias**2 + noise) if bias > 0.0 else 0.0


def _measure(draft: Anchors, folds: Sequence[_Fold], responses: Array, seed: int) -> MeasuredError | None:
    """Errors of the anchors' estimates, and of plain means over random subsets of the same size."""
    if not folds:
        return None
    part = {"weighted": 1.0, "p-irt": 0.0, "mp-irt": 0.0}.get(draft.estimator, draft.mixing)
    errors = np.stack([part * each.weighted + (1.0 - part) * each.modelled - each.truth for each in folds])
    rows = [each.rows[0] for each in folds]
    rng = np.random.default_rng([seed, 0x5B5E])
    subsets = rng.permuted(np.tile(np.arange(responses.shape[1]), (SUBSETS, 1)), axis=1)[:, : draft.items.size]
    drawn = draft.item_weights[subsets]  # [subsets, anchors]
    means = (responses[rows][:, subsets] * drawn).sum(axis=2) / drawn.sum(axis=1)
    random = means - np.stack([each.truth[:1] for each in folds])  # [candidates, subsets]
    return MeasuredError(
        candidates=len(rows),
        rms=_root_mean_square(errors),
        largest=float(np.abs(errors).max()),
        difference=_root_mean_square(errors[:, 0] - errors[:, 1]),
        random_rms=_root_mean_square(random),
        random_largest=float(np.abs(random).max(axis=0).mean()),
        random_difference=_root_mean_square(random - np.roll(random, 1, axis=0)),
    )


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))
