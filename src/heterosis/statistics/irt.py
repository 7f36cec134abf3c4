"""Item response theory: how hard each item is and how well it tells candidates apart, from 0/1 outcomes.

The two-parameter logistic model (Birnbaum 1968): P(candidate c solves item i) = sigmoid(a_i · (θ_c − b_i)), with
discrimination a_i, difficulty b_i and ability θ_c. A study has tens of candidates and hundreds of items, so an item
says little about itself and priors carry much of the fit (Bayes modal estimation: Mislevy 1986; Swaminathan & Gifford
1985). Abilities rest on hundreds of items each, so the joint mode is used and nothing is integrated out.

Discriminations may be negative, as in tinyBenchmarks (Polo et al. 2024). What sets merges of one family apart is often
a leaning to one answer, which solves some items and misses others; positive slopes alone predict such merges badly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from heterosis.statistics.bootstrap import Array

Items = npt.NDArray[np.int64]

SPREAD_WEIGHT = 10.0
"""Items that the typical spread of a prior counts for when it is estimated."""
ITERATIONS = 100
LARGEST_STEP = 1.0
TOLERANCE = 1e-3
SAME = 1e-6
"""Abilities within this of each other are equal."""


class ItemModel(NamedTuple):
    """A fitted two-parameter logistic model."""

    discrimination: Array
    """a [items]"""
    intercept: Array
    """−a·b [items]: the logit at ability 0"""
    ability: Array
    """θ [candidates], of those that the model was fitted to; mean 0 and variance 1 unless they are all alike"""

    @property
    def difficulty(self) -> Array:
        """b [items], on the scale of ability; infinite where an item does not tell candidates apart."""
        with np.errstate(divide="ignore", invalid="ignore"):
            hardness: Array = -self.intercept / self.discrimination
        return hardness

    def probability(self, ability: float) -> Array:
        """Chance that a candidate of this ability solves each item. [items]"""
        chance: Array = expit(self.discrimination * ability + self.intercept)
        return chance

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ItemModel:
        """Inverse of `to_json`, bit for bit."""
        return cls(*(np.asarray(content[name], dtype=np.float64) for name in cls._fields))


class Prior(NamedTuple):
    """A normal prior of one parameter of all items, itself estimated from them."""

    centre: float
    spread: float

    def updated(self, values: Array, variance: Array, typical: Prior) -> Prior:
        """One EM step. `values`, `variance` [items]: posterior modes and variances; `typical`: what is likely a priori.

        Without the variances the spread of what the outcomes say little about would shrink to nothing.
        """
        held = (self.spread / typical.spread) ** 2  # the centre ~ N(typical.centre, typical.spread²)
        centre = float(values.sum() + held * typical.centre) / (values.size + held)
        total = float(np.square(values - centre).sum() + variance.sum()) + SPREAD_WEIGHT * typical.spread**2
        return Prior(centre, float(np.sqrt(total / (values.size + SPREAD_WEIGHT))))

    def scaled(self, factor: float) -> Prior:
        """The prior of parameters that were all multiplied."""
        return Prior(self.centre * factor, self.spread * factor)


TYPICAL_SLOPE = Prior(1.0, 0.5)
TYPICAL_INTERCEPT = Prior(0.0, 2.0)


class _State(NamedTuple):
    """Parameters during the fit."""

    slope: Array
    intercept: Array
    ability: Array
    slopes: Prior
    intercepts: Prior


def is_binary(values: npt.ArrayLike) -> bool:
    """Whether all known values are 0 or 1; NaN is unknown."""
    array = np.asarray(values, dtype=np.float64)
    return bool(np.isin(array[~np.isnan(array)], (0.0, 1.0)).all())


def fit(responses: Array, start: ItemModel | None = None) -> ItemModel:
    """Joint posterior mode of abilities and items. `responses` [candidates, items] of 0, 1 and NaN for unknown.

    θ ~ N(0, 1), a ~ N(m, s²) and −a·b ~ N(m', s'²), the priors of items estimated with them (Laplace approximation of
    their EM step): merges of one family agree on most items, and a fixed s' would draw what all of them solve towards
    an even chance. An estimated m' also makes the predicted and the observed mean over all items equal. Abilities are
    centred and scaled, for the likelihood does not know their origin and unit. `start`, a model of the same items and
    candidates, only saves iterations.
    """
    known = ~np.isnan(responses)
    outcomes = np.where(known, responses, 0.0)
    state = _cold(outcomes, known) if start is None else _warm(start)
    for _ in range(ITERATIONS):
        before = state
        state = _improve_items(_improve_abilities(state, outcomes, known), outcomes, known)
        if _moved(before, state) < TOLERANCE:
            break
    return ItemModel(state.slope, state.intercept, state.ability)


def ability(model: ItemModel, responses: Array, prior: tuple[float, float] = (0.0, 1.0)) -> float:
    """Posterior mode of one candidate's ability. `responses` [items], NaN where unknown; `prior`: mean and spread.

    The log posterior is concave, so Newton's steps, bounded, end at its one mode.
    """
    known = ~np.isnan(responses)
    slopes, intercepts, outcomes = model.discrimination[known], model.intercept[known], responses[known]
    centre, spread = prior
    at = centre
    for _ in range(ITERATIONS):
        chance = expit(slopes * at + intercepts)
        gradient = float((slopes * (outcomes - chance)).sum()) - (at - centre) / spread**2
        curvature = float((np.square(slopes) * chance * (1.0 - chance)).sum()) + 1.0 / spread**2
        step = min(max(gradient / curvature, -LARGEST_STEP), LARGEST_STEP)
        at += step
        if abs(step) < 1e-9:
            break
    return at


def ability_error(model: ItemModel, known: npt.NDArray[np.bool_], at: float, spread: float = 1.0) -> float:
    """Standard error of an ability from the posterior's curvature (Fisher information of the known items and prior)."""
    chance = model.probability(at)[known]
    information = float((np.square(model.discrimination[known]) * chance * (1.0 - chance)).sum())
    return 1.0 / float(np.sqrt(information + 1.0 / spread**2))


def _cold(outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """Start from the smoothed logits of items' means, and from what candidates differ most by.

    The first principal component and not candidates' scores: merges that lean to different answers may score alike.
    """
    mean = (outcomes.sum(axis=0) + 0.5) / (known.sum(axis=0) + 1.0)
    intercepts = logit(mean)
    apart = np.where(known, outcomes - mean, 0.0)
    apart = apart - apart.mean(axis=0) if outcomes.shape[0] else apart
    left, lengths, right = np.linalg.svd(apart, full_matrices=False)
    abilities = np.zeros(outcomes.shape[0])
    if lengths.size and lengths[0] > SAME:
        # a component has no sign of its own: more ability is more right answers
        abilities = left[:, 0] * np.sqrt(abilities.size) * (1.0 if right[0].sum() >= 0.0 else -1.0)
    slopes = np.full_like(mean, TYPICAL_SLOPE.centre)
    return _State(slopes, intercepts, abilities, TYPICAL_SLOPE, _around(intercepts, TYPICAL_INTERCEPT))


def _warm(model: ItemModel) -> _State:
    """Start from a fitted model."""
    slopes, intercepts = model.discrimination, model.intercept
    return _State(
        slopes, intercepts, model.ability, _around(slopes, TYPICAL_SLOPE), _around(intercepts, TYPICAL_INTERCEPT)
    )


def _around(values: Array, typical: Prior) -> Prior:
    """A prior to start from."""
    return typical.updated(values, np.zeros_like(values), typical)


def _improve_abilities(state: _State, outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """One bounded Newton step of every ability, then their origin and unit; neither of these moves a logit."""
    if not state.ability.size or not state.slope.size:
        return state
    chance = expit(np.multiply.outer(state.ability, state.slope) + state.intercept)
    gradient = np.where(known, outcomes - chance, 0.0) @ state.slope - state.ability
    curvature = np.where(known, chance * (1.0 - chance), 0.0) @ np.square(state.slope) + 1.0
    moved = state.ability + np.clip(gradient / curvature, -LARGEST_STEP, LARGEST_STEP)
    intercept = state.intercept + state.slope * moved.mean()
    moved = moved - moved.mean()
    unit = float(moved.std())
    if unit < SAME:
        return state._replace(ability=moved, intercept=intercept)
    return state._replace(
        ability=moved / unit, slope=state.slope * unit, intercept=intercept, slopes=state.slopes.scaled(unit)
    )


def _improve_items(state: _State, outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """One bounded Newton step of every item's slope and intercept, then the priors of both."""
    chance = expit(np.multiply.outer(state.ability, state.slope) + state.intercept)
    left = np.where(known, outcomes - chance, 0.0)
    weight = np.where(known, chance * (1.0 - chance), 0.0)
    slopes, intercepts = state.slopes, state.intercepts
    by_slope = state.ability @ left - (state.slope - slopes.centre) / slopes.spread**2
    by_intercept = left.sum(axis=0) - (state.intercept - intercepts.centre) / intercepts.spread**2
    slope_slope = np.square(state.ability) @ weight + 1.0 / slopes.spread**2
    slope_intercept = state.ability @ weight
    intercept_intercept = weight.sum(axis=0) + 1.0 / intercepts.spread**2
    determinant = slope_slope * intercept_intercept - np.square(slope_intercept)
    step_slope = (intercept_intercept * by_slope - slope_intercept * by_intercept) / determinant
    step_intercept = (slope_slope * by_intercept - slope_intercept * by_slope) / determinant
    slope = state.slope + np.clip(step_slope, -LARGEST_STEP, LARGEST_STEP)
    intercept = state.intercept + np.clip(step_intercept, -LARGEST_STEP, LARGEST_STEP)
    return _State(
        slope,
        intercept,
        state.ability,
        slopes.updated(slope, intercept_intercept / determinant, TYPICAL_SLOPE),
        intercepts.updated(intercept, slope_slope / determinant, TYPICAL_INTERCEPT),
    )


def _moved(before: _State, after: _State) -> float:
    """The largest change of a parameter."""
    pairs = ((before.slope, after.slope), (before.intercept, after.intercept), (before.ability, after.ability))
    return max((float(np.abs(new - old).max()) for old, new in pairs if old.size), default=0.0)
