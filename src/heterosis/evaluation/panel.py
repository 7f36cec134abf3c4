"""The panel: the items of a study, fixed once, in three splits that share no item."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from heterosis.errors import CandidateError, TaskError
from heterosis.evaluation.canary import pick_probes
from heterosis.evaluation.engine import Continuation, Engine, Generation, Likelihood, Probe
from heterosis.evaluation.samples import Sample
from heterosis.evaluation.tasks import Answer, Item, PanelTask
from heterosis.evaluation.tokens import Request, RollingWindows

SplitName = Literal["search", "selection", "test"]
SPLITS: tuple[SplitName, ...] = ("search", "selection", "test")


class TaskOutcomes(NamedTuple):
    """Outcomes of one candidate on one task's items: values [n], NaN where an item is not scored, and weights [n]."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    def mean(self) -> float:
        """Weighted mean of the known values; NaN when nothing is known that has a weight."""
        known = ~np.isnan(self.values)
        weights = self.weights[known]
        total = weights.sum()
        return float((self.values[known] * weights).sum() / total) if total else math.nan

    def to_json(self) -> dict[str, list[float | None]]:
        """Plain lists, unknown values as None; weights only when they say something."""
        plain: dict[str, list[float | None]] = {"values": [_short(value) for value in self.values.tolist()]}
        return plain if (self.weights == 1.0).all() else plain | {"weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[float | None]]) -> TaskOutcomes:
        """Inverse of `to_json`, bit for bit."""
        values = np.asarray(content["values"], dtype=np.float64)
        weights = content.get("weights")
        return cls(values, np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64))


Outcomes = dict[str, TaskOutcomes]


class Score(NamedTuple):
    """One candidate on one split: outcomes by task, and the seconds it took."""

    outcomes: Outcomes
    seconds: float
    samples: Mapping[str, list[Sample]] = {}
    """By task: what was asked and answered, where that was wanted."""


class Scale(Protocol):
    """How a task's score follows from the weighted mean of its outcomes."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a merge should raise it."""

    def score(self, mean: float | npt.NDArray[np.float64]) -> Any:
        """The number that lm-eval reports."""


class Items(Protocol):
    """What can be known of a split's items without their texts: enough for every statistic."""

    @property
    def tasks(self) -> Mapping[str, Scale]:
        """The tasks by name."""

    @property
    def clusters(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Task -> [n]: items with equal numbers share a document."""


class Rung(NamedTuple):
    """What one rung of a race adds to those below it."""

    split: Split
    """The items that it adds, to be scored by themselves."""
    at: dict[str, npt.NDArray[np.int64]]
    """Task -> where its items lie among the whole split's, ascending."""


class Split:
    """Items of all tasks that are scored together."""

    def __init__(
        self,
        name: SplitName,
        tasks: Mapping[str, PanelTask],
        items: Mapping[str, Sequence[Item]],
        clusters: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        """`clusters`: key of an item -> name of its cluster; None finds them among the items. `seed` orders rungs."""
        self.name = name
        self.tasks = tasks
        self.items = items
        self._names = find_clusters(item for own in items.values() for item in own) if clusters is None else clusters
        self._seed = seed
        self.clusters = {task: _numbered([self._names[item.key] for item in own]) for task, own in items.items()}
        """Task -> [n]: items with equal numbers share a document. Numbers run from 0, by first item."""
        self._requests = list(dict.fromkeys(_asked(r for own in items.values() for i in own for r in i.requests)))

    @property
    def size(self) -> int:
        """Number of items."""
        return sum(len(items) for items in self.items.values())

    def score(self, engine: Engine, samples: bool = False) -> Score:
        """Ask the engine everything, once per distinct request, and let the tasks judge the answers.

        `samples`: whether the answers are wanted too.
        """
        started = time.perf_counter()
        likelihoods = [request for request in self._requests if isinstance(request, Continuation)]
        generations = [request for request in self._requests if isinstance(request, Generation)]
        answers: dict[Continuation | Generation, Likelihood | str] = {}
        answers.update(zip(likelihoods, _finite(engine.likelihoods(likelihoods)), strict=True))
        answers.update(zip(generations, engine.generate(generations), strict=True))
        verdicts = {
            name: self.tasks[name].judge(items, [[_answer(r, answers) for r in i.requests] for i in items])
            for name, items in self.items.items()
        }
        outcomes = {name: _stack(self.tasks[name].outcomes(verdicts[name])) for name in self.items}
        seconds = time.perf_counter() - started
        told = {name: self.tasks[name].samples(items, verdicts[name]) for name, items in self.items.items() if samples}
        return Score(outcomes, seconds, told)

    def scores(self, outcomes: Outcomes) -> dict[str, float]:
        """Task scores as lm-eval reports them."""
        return {name: float(self.tasks[name].score(outcomes[name].mean())) for name in self.items}

    def known(self, outcomes: Outcomes) -> int:
        """Number of items that have outcomes."""
        return known_items(outcomes)

    def rungs(self, fractions: Sequence[float], minimum: int) -> list[Rung]:
        """Part the split into rungs that together hold every item once; up to the k-th, `fractions[k]` of each task.

        Clusters stay whole and come in the order of a hash, so each rung is a random sample, stratified by task. Every
        rung adds a cluster of every task, the first one two (one cluster says nothing of its task's spread), and
        `minimum` items in all; one that would not is joined with the next, the last with the one before.
        `fractions` grow and end in 1.
        """
        assert list(fractions) == sorted({*fractions, 1.0})
        order = {task: self._shuffled(task) for task in self.items}
        cuts = _cuts({task: [len(members) for members in own] for task, own in order.items()}, fractions, minimum)
        found = []
        for below, above in itertools.pairwise(cuts):
            taken = {task: own[below[task] : above[task]] for task, own in order.items()}
            found.append(self.part({task: np.sort(np.concatenate(members)) for task, members in taken.items()}))
        return found

    def part(self, at: dict[str, npt.NDArray[np.int64]]) -> Rung:
        """Some of the items: `at` says which, ascending, by task."""
        items = {task: [self.items[task][row] for row in rows] for task, rows in at.items()}
        return Rung(Split(self.name, self.tasks, items, self._names, self._seed), at)

    def _shuffled(self, task: str) -> list[npt.NDArray[np.int64]]:
        """Rows of each cluster of a task, clusters in the order of their hash."""
        members: dict[str, list[int]] = {}
        for row, item in enumerate(self.items[task]):
            members.setdefault(self._names[item.key], []).append(row)
        # Not the hash that dealt them: rungs must not depend on where in the deal a split lies.
        ordered = sorted(members, key=lambda name: hashlib.sha256(f"{self._seed}\0rung\0{name}".encode()).digest())
        return [np.array(members[name], dtype=np.int64) for name in ordered]


def known_items(outcomes: Outcomes) -> int:
    """Number of items that have outcomes."""
    return sum(int((~np.isnan(table.values)).sum()) for table in outcomes.values())


def fill(whole: Outcomes | None, rung: Rung, found: Outcomes, split: Split) -> Outcomes:
    """Outcomes of the split with those that a rung found put in their places; what neither knows is NaN.

    `whole` (None: nothing known yet) is left as it is. Bit-exact: in whatever order rungs are filled in, the outcomes
    are those of scoring the split at once.
    """
    filled = {}
    for task, items in split.items.items():
        if whole is None:
            values, weights = np.full(len(items), np.nan), np.array([item.weight for item in items], dtype=np.float64)
        else:
            values, weights = whole[task].values.copy(), whole[task].weights.copy()
        values[rung.at[task]], weights[rung.at[task]] = found[task].values, found[task].weights
        filled[task] = TaskOutcomes(values, weights)
    return filled


class Panel:
    """All tasks of a study with their items dealt into splits."""

    def __init__(self, tasks: Sequence[PanelTask], sizes: Mapping[SplitName, float], seed: int = 0) -> None:
        self.tasks = {task.name: task for task in tasks}
        clusters = find_clusters(item for task in tasks for item in task.items)
        dealt = deal(tasks, sizes, seed, clusters)
        self.splits: dict[SplitName, Split] = {
            split: Split(split, self.tasks, {name: hands[split] for name, hands in dealt.items()}, clusters, seed)
            for split in SPLITS
        }

    def manifest(self) -> dict[str, Any]:
        """Every item by split, pinned by the hash of its prompts, and which of them share a document."""
        return {
            "tasks": {
                name: {
                    "metric": task.metric,
                    "filter": task.filter,
                    "kind": task.kind,
                    "higher_is_better": task.higher_is_better,
                }
                for name, task in self.tasks.items()
            },
            "splits": {
                split: {
                    name: [[item.doc_id, item.key[:16], item.prompt_hash[:16]] for item in items]
                    for name, items in self.splits[split].items.items()
                }
                for split in SPLITS
            },
            "clusters": {
                split: {name: numbers.tolist() for name, numbers in self.splits[split].clusters.items()}
                for split in SPLITS
            },
        }

    @property
    def digest(self) -> str:
        """Identity of the panel: tasks, metrics, items, prompts, splits, clusters."""
        return hashlib.sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def probes(self) -> list[Probe]:
        """Questions for the canary, from the search split."""
        asked = _asked(r for items in self.splits["search"].items.values() for i in items for r in i.requests)
        found = [
            request if isinstance(request, Continuation) else Continuation(request.prompt, request.prompt[-1:])
            for request in asked
        ]
        return pick_probes(found)


def deal(
    tasks: Sequence[PanelTask],
    sizes: Mapping[SplitName, float],
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> dict[str, dict[SplitName, list[Item]]]:
    """Deal every task's items into the splits, by hash. Task -> split -> items.

    A cluster lies in one split only, also across tasks. A size below 1 is a fraction of a task's clusters, any other a
    number of them; a task's limit counts clusters too. So with several questions to a passage a split of 100 holds all
    questions on 100 passages: what a split can resolve goes with its clusters. `clusters` as in `Split`.
    """
    cluster = find_clusters(item for task in tasks for item in task.items) if clusters is None else clusters
    home: dict[str, SplitName] = {}
    dealt = {}
    for task in tasks:
        members: dict[str, list[Item]] = {}
        for item in task.items:
            members.setdefault(cluster[item.key], []).append(item)
        order = sorted(members, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())[: task.limit]
        counts = {split: _count(sizes[split], len(order)) for split in SPLITS}
        hands: dict[SplitName, list[str]] = {
            split: [key for key in order if home.get(key) == split] for split in SPLITS
        }
        free = iter([key for key in order if key not in home])
        for split in SPLITS:
            hands[split] = hands[split][: counts[split]]
            hands[split] += itertools.islice(free, counts[split] - len(hands[split]))
            _check_enough(task, sizes, len(order), len(hands[split]), counts[split])
            home.update(dict.fromkeys(hands[split], split))
        dealt[task.name] = {
            split: sorted((item for key in keys for item in members[key]), key=lambda item: item.doc_id)
            for split, keys in hands.items()
        }
    return dealt


def find_clusters(items: Iterable[Item]) -> dict[str, str]:
    """Item key -> name of its cluster, of a study's items or a split's.

    Items that are the same document, ask the same prompt, or share what their task says belongs together
    (`Item.shared`), within a task or across tasks, form a cluster. Its name is the smallest of all these, so that the
    order of the items has no say.
    """
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    keys = set()
    for item in items:
        keys.add(item.key)
        for link in (item.prompt_hash, *item.shared):
            one, other = sorted((root(item.key), root(link)))
            above[other] = one
    return {key: root(key) for key in keys}


def _numbered(names: Sequence[str]) -> npt.NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _cuts(sizes: Mapping[str, Sequence[int]], fractions: Sequence[float], minimum: int) -> list[dict[str, int]]:
    """Where rungs end: for each end, task -> number of clusters up to there. The first is 0, the last is all.

    `sizes`: task -> items in each of its clusters, in the order in which they are taken.
    """
    ends = {task: np.cumsum(own) for task, own in sizes.items()}
    whole = {task: len(own) for task, own in sizes.items()}

    def items(cut: Mapping[str, int]) -> int:
        return sum(int(ends[task][count - 1]) if count else 0 for task, count in cut.items())

    cuts = [dict.fromkeys(sizes, 0)]
    for fraction in fractions[:-1]:
        cut = {
            task: max(int(np.searchsorted(own, fraction * own[-1] - 1e-9)) + 1, min(2, whole[task]))
            for task, own in ends.items()
        }
        advances = all(cuts[-1][task] < count < whole[task] for task, count in cut.items())
        if advances and min(items(cut) - items(cuts[-1]), items(whole) - items(cut)) >= minimum:
            cuts.append(cut)
    return [*cuts, whole]


def _count(size: float, available: int) -> int:
    return round(size * available) if 0 < size < 1 else int(size)


def _check_enough(task: PanelTask, sizes: Mapping[SplitName, float], available: int, got: int, wanted: int) -> None:
    if got < wanted - 1 or not got:
        asked = ", ".join(f"{name} {sizes[name]:g}" for name in SPLITS)
        raise TaskError(
            f"{task.name}: {available} distinct items are too few for splits {asked}. "
            "Set smaller splits, or fractions that sum to at most 1; items that share a text count as one, "
            "unless cluster: names a field."
        )


def _asked(requests: Iterable[Request]) -> Iterable[Continuation | Generation]:
    for request in requests:
        if isinstance(request, RollingWindows):
            yield from request.windows
        else:
            yield request


def _answer(request: Request, answers: Mapping[Continuation | Generation, Likelihood | str]) -> Answer:
    if not isinstance(request, RollingWindows):
        return answers[request]
    total = 0.0
    for window in request.windows:
        part = answers[window]
        assert isinstance(part, Likelihood)
        total += part.logprob
    return total


def _finite(likelihoods: list[Likelihood]) -> list[Likelihood]:
    if any(math.isnan(likelihood.logprob) for likelihood in likelihoods):
        raise CandidateError("the model's logits are not finite: log-probabilities are NaN.")
    return likelihoods


def _stack(outcomes: Sequence[Any]) -> TaskOutcomes:
    table = np.asarray(outcomes, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(table).all():
        raise CandidateError("the engine's answers scored NaN or Inf; the model's logits are not finite.")
    return TaskOutcomes(table[:, 0], table[:, 1])


def _short(value: float) -> float | None:
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
