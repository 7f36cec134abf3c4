"""The panel: the items of a study, fixed once, in three splits that share no item."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.errors import CandidateError, TaskError
from heterosis.evaluation.canary import pick_probes
from heterosis.evaluation.engine import Continuation, Engine, Generation, Likelihood, Probe
from heterosis.evaluation.tasks import Answer, Item, PanelTask
from heterosis.evaluation.tokens import Request, RollingWindows

SplitName = Literal["search", "selection", "test"]
SPLITS: tuple[SplitName, ...] = ("search", "selection", "test")


class TaskOutcomes(NamedTuple):
    """Outcomes of one candidate on one task's items: values [n] and weights [n]."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    def mean(self) -> float:
        """Weighted mean of the values."""
        return float((self.values * self.weights).sum() / self.weights.sum())

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists; weights only when they say something."""
        plain = {"values": [_short(value) for value in self.values.tolist()]}
        return plain if (self.weights == 1.0).all() else plain | {"weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[float]]) -> TaskOutcomes:
        """Inverse of `to_json`, bit for bit."""
        values = np.asarray(content["values"], dtype=np.float64)
        weights = content.get("weights")
        return cls(values, np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64))


Outcomes = dict[str, TaskOutcomes]


class Score(NamedTuple):
    """One candidate on one split: outcomes by task, and the seconds it took."""

    outcomes: Outcomes
    seconds: float


class Split:
    """Items of all tasks that are scored together."""

    def __init__(self, name: SplitName, tasks: Mapping[str, PanelTask], items: Mapping[str, Sequence[Item]]) -> None:
        self.name = name
        self.tasks = tasks
        self.items = items
        self._requests = list(dict.fromkeys(_asked(r for own in items.values() for i in own for r in i.requests)))

    @property
    def size(self) -> int:
        """Number of items."""
        return sum(len(items) for items in self.items.values())

    def score(self, engine: Engine) -> Score:
        """Ask the engine everything, once per distinct request, and let the tasks judge the answers."""
        started = time.perf_counter()
        likelihoods = [request for request in self._requests if isinstance(request, Continuation)]
        generations = [request for request in self._requests if isinstance(request, Generation)]
        answers: dict[Continuation | Generation, Likelihood | str] = {}
        answers.update(zip(likelihoods, _finite(engine.likelihoods(likelihoods)), strict=True))
        answers.update(zip(generations, engine.generate(generations), strict=True))
        outcomes = {
            name: _stack(self.tasks[name].outcomes(items, [[_answer(r, answers) for r in i.requests] for i in items]))
            for name, items in self.items.items()
        }
        return Score(outcomes, time.perf_counter() - started)

    def scores(self, outcomes: Outcomes) -> dict[str, float]:
        """Task scores as lm-eval reports them."""
        return {name: float(self.tasks[name].score(outcomes[name].mean())) for name in self.items}


class Panel:
    """All tasks of a study with their items dealt into splits."""

    def __init__(self, tasks: Sequence[PanelTask], sizes: Mapping[SplitName, float], seed: int = 0) -> None:
        self.tasks = {task.name: task for task in tasks}
        dealt = deal(tasks, sizes, seed)
        self.splits: dict[SplitName, Split] = {
            split: Split(split, self.tasks, {name: hands[split] for name, hands in dealt.items()}) for split in SPLITS
        }

    def manifest(self) -> dict[str, Any]:
        """Every item by split, pinned by the hash of its prompts."""
        return {
            "tasks": {
                name: {"metric": task.metric, "filter": task.filter, "higher_is_better": task.higher_is_better}
                for name, task in self.tasks.items()
            },
            "splits": {
                split: {
                    name: [[item.doc_id, item.key[:16], item.prompt_hash[:16]] for item in items]
                    for name, items in self.splits[split].items.items()
                }
                for split in SPLITS
            },
        }

    @property
    def digest(self) -> str:
        """Identity of the panel: tasks, metrics, items, prompts, splits."""
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
    tasks: Sequence[PanelTask], sizes: Mapping[SplitName, float], seed: int
) -> dict[str, dict[SplitName, list[Item]]]:
    """Deal every task's items into the splits, by hash. Task -> split -> items.

    Items that are the same document or ask the same prompt, within a task or across tasks, form a cluster, and a
    cluster lies in one split only. A size below 1 is a fraction of a task's clusters, any other a number of them.
    """
    cluster = _clusters(tasks)
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


def _clusters(tasks: Sequence[PanelTask]) -> dict[str, str]:
    """Item key -> name of its cluster: the smallest key of all items linked by equal documents or equal prompts."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for item in (item for task in tasks for item in task.items):
        one, other = sorted((root(item.key), root(item.prompt_hash)))
        above[other] = one
    return {item.key: root(item.key) for task in tasks for item in task.items}


def _count(size: float, available: int) -> int:
    return round(size * available) if 0 < size < 1 else int(size)


def _check_enough(task: PanelTask, sizes: Mapping[SplitName, float], available: int, got: int, wanted: int) -> None:
    if got < wanted - 1 or not got:
        asked = ", ".join(f"{name} {sizes[name]:g}" for name in SPLITS)
        raise TaskError(
            f"{task.name}: {available} distinct items are too few for splits {asked}. "
            "Set smaller splits, or fractions that sum to at most 1."
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


def _short(value: float) -> float:
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
