"""The end of a study: choose a winner on the selection split, then make the claim on the test split, once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from heterosis.errors import CandidateError
from heterosis.evaluation.panel import Items
from heterosis.ledger.record import Candidate, Proposal, Record
from heterosis.recipe import Recipe
from heterosis.scoring import Scorer
from heterosis.search import Found
from heterosis.statistics import Interval, Objective, resample
from heterosis.statistics.bootstrap import Array, TaskTable, cluster_sums
from heterosis.statistics.comparison import Comparison, Scale
from heterosis.statistics.influence import tables_of
from heterosis.statistics.multiple import holm

# How often a claim may be made that is not true.
ERROR = 0.05
# Stands between a finalist's label and the number of a variant with other masks.
VARIANT = "~"


class Choice(NamedTuple):
    """What the selection split decided, by label."""

    winner: str
    best_baseline: str


def finalists(searched: Record, found: Found, best: Sequence[Candidate]) -> list[Proposal]:
    """All baselines that could be scored, the search's best, and the optimizer's own estimate of the best point."""
    baselines = [candidate for candidate in searched.baselines if candidate.value is not None]
    proposals = [candidate.proposal for candidate in (*baselines, *best)]
    space, mean = found
    if mean is not None:
        generation = max((candidate.generation for candidate in searched.proposed), default=0) + 1
        recipe = space.recipe(mean)
        # A longer search has another mean, and the selection split may already know this one: name it by content.
        proposals.append(Proposal(f"mean-{recipe.digest[:6]}", generation, recipe, mean, space.values(mean)))
    return proposals


def score_all(
    proposals: Sequence[Proposal], scorer: Scorer, objective: Objective, record: Record, required: Collection[str]
) -> None:
    """Score what the record does not have yet. A `required` one that fails is not recorded, so a rerun tries again.

    The parents come first: bounds against them are their scores on this split.
    """
    known = {candidate.label for candidate in record.candidates}
    for proposal in proposals:
        if proposal.label not in known:
            measured = scorer.measure(proposal.recipe)
            if measured.error is not None and proposal.label in required:
                raise CandidateError(
                    f"{record.name}: {proposal.label} could not be scored ({measured.error}). Run again."
                )
            there = {c.label: c.scores for c in record.baselines} | {proposal.label: measured.scores}
            parents = {name: there[name] for name in objective.parents if name in there}
            complete = len(parents) == len(objective.parents)
            judged = objective.judge(measured.scores, parents if complete else None) if not measured.error else None
            record.add(proposal, measured, judged)


def choose(selected: Record, among: Collection[str]) -> Choice:
    """The best on the selection split, of all and of the baselines: what keeps the constraints before what does not.

    A tie goes to the one recorded first, a baseline.

    `among`: labels of this search's finalists. A shorter search of the same study may have left others in the record.
    """
    scored = [c for c in selected.candidates if c.value is not None and c.label in among]
    baselines = [candidate for candidate in scored if candidate.is_baseline]
    return Choice(*(max(group, key=lambda candidate: candidate.rank).label for group in (scored, baselines)))


class Evidence:
    """What the outcomes of candidates on one split say of them and of their differences."""

    def __init__(self, candidates: Sequence[Candidate], split: Items, objective: Objective, seed: int) -> None:
        self._candidates = {candidate.label: candidate for candidate in candidates if candidate.value is not None}
        self._rows = {label: row for row, label in enumerate(self._candidates)}
        tables = tables_of([candidate.outcomes for candidate in self._candidates.values()], split)
        draws = _centred(resample(tables, seed), tables, list(self._candidates.values()))
        values = np.array([_value(candidate) for candidate in self._candidates.values()])
        scale = Scale(objective.value, objective.gradient)
        self._objective = Comparison(tables, scale, values, np.asarray(objective.value(draws)), seed)
        self._tasks = {}
        self._signs = {task: 1.0 if share.higher_is_better else -1.0 for task, share in objective.shares.items()}
        for task, sign in self._signs.items():
            scores = np.array([candidate.scores[task] for candidate in self._candidates.values()])
            own = {task: tables[task]}
            self._tasks[task] = Comparison(own, _gain(task, sign), sign * scores, sign * draws[task], seed)

    @property
    def labels(self) -> list[str]:
        """All that were scored."""
        return list(self._candidates)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self._tasks)

    @property
    def proposed(self) -> list[str]:
        """Those that are no baselines."""
        return [label for label, candidate in self._candidates.items() if not candidate.is_baseline]

    def row(self, label: str) -> dict[str, Any]:
        """Objective and task scores of one candidate, each with its interval, and how many items it answered."""
        at = self._rows[label]
        tasks = {task: _turned(self._tasks[task].interval(at), sign) for task, sign in self._signs.items()}
        return {
            "objective": self._objective.interval(at)._asdict(),
            "tasks": {task: found._asdict() for task, found in tasks.items()},
            "items": self._candidates[label].known,
        }

    def value(self, label: str, task: str | None = None) -> float:
        """Objective of one candidate, or its score on a task where higher is better (else the negative score)."""
        return float(self._scale(task).estimates[self._rows[label]])

    def difference(
        self, label: str, others: Sequence[str], task: str | None = None, family: Collection[str] = ()
    ) -> Interval:
        """One candidate minus the mean of others, by the objective or on a task; positive is better.

        `family`: all that might have been claimed in its place; the interval then holds whichever was.
        """
        rows = [self._rows[other] for other in others]
        return self._scale(task).difference(self._rows[label], rows, [self._rows[each] for each in family])

    def least_difference(
        self, label: str, others: Sequence[str], task: str | None = None, family: Collection[str] = ()
    ) -> Interval:
        """One candidate minus the best of others; `task` and `family` as in `difference`."""
        rows = [self._rows[other] for other in others]
        return self._scale(task).least_difference(self._rows[label], rows, [self._rows[each] for each in family])

    def p_values(
        self, label: str, other: str, task: str | None = None, family: Collection[str] = ()
    ) -> tuple[float, float]:
        """One-sided p-values of a paired sign-flip test: that it is better than the other, and that it is worse."""
        rows = [self._rows[each] for each in family]
        return self._scale(task).p_values(self._rows[label], self._rows[other], rows)

    def smallest_difference(self, label: str, other: str, task: str | None = None) -> float | None:
        """The true difference between the two that these items would have shown.

        For a candidate and itself: the largest such difference between it and the others; None without others.
        """
        others = [label] if label != other else [each for each in self._candidates if each != other]
        scale, there = self._scale(task), self._rows[other]
        return max((scale.smallest_difference(self._rows[each], there) for each in others), default=None)

    def _scale(self, task: str | None) -> Comparison:
        return self._objective if task is None else self._tasks[task]


def _centred(
    draws: dict[str, Array], tables: Mapping[str, TaskTable], candidates: Sequence[Candidate]
) -> dict[str, Array]:
    """Draws around the recorded scores: where items are unknown, these are estimates and not means of the known."""
    for row in (row for row, candidate in enumerate(candidates) if candidate.is_partial):
        for task, table in tables.items():
            plain = table.score(cluster_sums(table._replace(values=table.values[row : row + 1])).means)
            draws[task][row] += candidates[row].scores[task] - float(plain[0])
    return draws


def _gain(task: str, sign: float) -> Scale:
    return Scale(lambda scores: sign * scores[task], lambda _: {task: sign})


def _turned(found: Interval, sign: float) -> Interval:
    """The same interval on the task's own scale."""
    return found if sign > 0.0 else Interval(-found.estimate, -found.high, -found.low)


def claims(evidence: Evidence, choice: Choice, parents: Sequence[str], openings: int = 1) -> dict[str, Any]:
    """Best-parent and mid-parent heterosis and the gain over the best baseline, by task too, and the verdict in words.

    Where the split has scored other proposals before, any of which might have been claimed, intervals and p-values
    hold for all of them at once.
    """
    winner = choice.winner
    family = [winner, *(label for label in evidence.proposed if label != winner)]
    best = best_parent_claim(evidence, winner, parents, family)
    baseline = evidence.difference(winner, [choice.best_baseline], family=family)
    found = {
        "best_parent": best,
        "mid_parent": {
            "against": list(parents),
            **evidence.difference(winner, parents, family=family)._asdict(),
        },
        "best_baseline": {
            "against": choice.best_baseline,
            **baseline._asdict(),
            "p": evidence.p_values(winner, choice.best_baseline, family=family)[0],
        },
    }
    each = {parent: evidence.difference(winner, [parent], family=family)._asdict() for parent in parents}
    smallest = evidence.smallest_difference(winner, best["against"])
    by_task = task_claims(evidence, winner, parents, family)
    return {
        "heterosis": {name: _without(claim, "p_each", "p_worse") for name, claim in found.items()},
        "against_each_parent": {parent: {**each[parent], "p": best["p_each"][parent]} for parent in parents},
        "task_claims": by_task,
        "p_values": {
            "best_parent": best["p"],
            "best_baseline": found["best_baseline"]["p"],
            "tasks": {task: claim["p_better"] for task, claim in by_task.items()},
        },
        "smallest_difference": {
            "objective": smallest,
            "tasks": {task: claim["smallest_difference"] for task, claim in by_task.items()},
        },
        "simultaneous_over": len(family),
        "verdict": verdict(choice, found, openings, smallest),
    }


def best_parent_claim(
    evidence: Evidence, winner: str, parents: Sequence[str], family: Collection[str], task: str | None = None
) -> dict[str, Any]:
    """The winner minus the best of the parents, with the p-values that it is above zero and below.

    It is above zero only if the winner is better than every parent, so each is tested at the full level and the largest
    p-value is the claim's (intersection-union test, Berger 1982); for being worse than the best of them the smallest is
    multiplied by their number (Bonferroni). `against` is the parent that is best on this very split.
    """
    p_values = {parent: evidence.p_values(winner, parent, task, family) for parent in parents}
    return {
        "against": max(parents, key=lambda parent: evidence.value(parent, task)),
        **evidence.least_difference(winner, parents, task, family)._asdict(),
        "p": max(better for better, _ in p_values.values()),
        "p_worse": min(1.0, len(parents) * min(worse for _, worse in p_values.values())),
        "p_each": {parent: better for parent, (better, _) in p_values.items()},
    }


def task_claims(
    evidence: Evidence, winner: str, parents: Sequence[str], family: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """The winner against the best parent of each task, in a word: better, worse, or not shown.

    A word needs the interval and a p-value that Holm's method has adjusted for the number of tasks. Differences are
    gains: positive is better, also where a lower score is.
    """
    found = {task: best_parent_claim(evidence, winner, parents, family, task) for task in evidence.tasks}
    better = holm([claim["p"] for claim in found.values()])
    worse = holm([claim["p_worse"] for claim in found.values()])
    told = {}
    for (task, claim), p_better, p_worse in zip(found.items(), better, worse, strict=True):
        word = "not shown"
        if claim["low"] > 0.0 and p_better <= ERROR:
            word = "better"
        elif claim["high"] < 0.0 and p_worse <= ERROR:
            word = "worse"
        told[task] = {
            **{key: claim[key] for key in ("against", "estimate", "low", "high", "p")},
            "p_better": p_better,
            "p_worse": p_worse,
            "word": word,
            "smallest_difference": evidence.smallest_difference(winner, claim["against"], task),
        }
    return told


def verdict(
    choice: Choice, heterosis: Mapping[str, Mapping[str, Any]], openings: int = 1, smallest: float | None = None
) -> str:
    """The result in one sentence. An improvement is claimed where the interval and the test both show it.

    `smallest`: the difference that the test split would have shown.
    """
    parent, baseline = heterosis["best_parent"], heterosis["best_baseline"]
    over = f"best-parent heterosis {_signed(parent)} against {parent['against']}"
    again = f", which was opened {openings} times" if openings > 1 else ""
    if not _shown(parent):
        could = f"; differences from {smallest:.4f} would mostly have been seen" if smallest else ""
        return f"no improvement shown: {choice.winner} has {over} on the test split{again}{could}"
    if choice.winner == choice.best_baseline:
        return f"{choice.winner}, a baseline, is the best found and beats every parent: {over} on the test split{again}"
    gain = f"{_signed(baseline)} against {choice.best_baseline}, the best baseline"
    if not _shown(baseline):
        return (
            f"{choice.winner} beats every parent ({over}); no improvement shown over baselines ({gain}), "
            f"on the test split{again}"
        )
    return f"{choice.winner} beats every parent and the best baseline: {over}, {gain}, on the test split{again}"


def _shown(claim: Mapping[str, Any]) -> bool:
    return bool(claim["low"] > 0.0 and claim["p"] <= ERROR)


def _without(claim: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in claim.items() if key not in keys}


def seed_variants(proposal: Proposal, count: int) -> list[Proposal]:
    """The same merge with other random masks: `count` seeds in all, its own among them, so `count` − 1 variants.

    Their seeds follow from the recipe's own by a hash. None for a recipe that drops nothing: it has no masks.
    """
    if not _has_masks(proposal.recipe):
        return []
    found = []
    for number in range(1, count):
        text = f"{proposal.recipe.seed}\0mask\0{number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        recipe = proposal.recipe.model_copy(update={"seed": seed})
        found.append(replace(proposal, label=f"{proposal.label}{VARIANT}{number}", recipe=recipe))
    return found


def _has_masks(recipe: Recipe) -> bool:
    """Whether any entry of a parent that takes part is dropped at random."""
    for by_group in recipe.parameters.values():
        for numbers in by_group.values():
            weight, drop = np.broadcast_arrays(numbers.weight, numbers.drop)
            if ((weight != 0.0) & (drop > 0.0)).any():
                return True
    return False


def seed_spread(selected: Record, finalists: Collection[str], count: int) -> dict[str, dict[str, Any]]:
    """How lucky the masks of finalists are: the objective over their mask seeds, the first being their own.

    `sd` is over seeds (one degree of freedom less than seeds), `low` and `high` are the least and the greatest. The
    variants take no part in the choice.
    """
    known = {candidate.label: _value(candidate) for candidate in selected.candidates if candidate.value is not None}
    found = {}
    for label in finalists:
        labels = [label, *(f"{label}{VARIANT}{number}" for number in range(1, count))]
        values = [known[each] for each in labels if each in known]
        if label in known and len(values) > 1:
            found[label] = {
                "values": values,
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)),
                "low": min(values),
                "high": max(values),
            }
    return found


def _signed(found: Mapping[str, Any]) -> str:
    return f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _value(candidate: Candidate) -> float:
    assert candidate.value is not None
    return candidate.value
