"""A study without models: a family whose best merge is known, and items that are answered by a formula.

A family of parents and layers has an optimum W* of per-layer weights for every task, smooth over depth but for a little
roughness. A recipe with weights W [parents, layers] has the ability θ_t(W) = θ₀_t − c·|W − W*_t|² on task t, where |·|²
is the mean over layers, summed over parents. It answers item i, of difficulty b_i ~ N(0, 1), when

    θ_t(W) + s·a_i·f(W) > b_i,    a_i ~ N(0, I),  |f(W)| = 1.

f are random Fourier features (Rahimi & Recht 2007) of a Gaussian kernel, so s·a_i·f(W) is a disturbance of variance s²
that near recipes share and far ones do not: what one merge happens to know, its neighbours happen to know too. Answers
are a function of item and recipe, as with greedy decoding. Over infinitely many items the score is
Φ(θ_t(W) / √(1 + s²)) exactly.

Everything else is the program's own: spaces, optimizers, search, races, records, finals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from scipy import special

from heterosis.config import RacingConfig, SpaceConfig
from heterosis.evaluation.panel import SPLITS, Outcomes, Split, SplitName, TaskOutcomes
from heterosis.evaluation.tasks import Item
from heterosis.finals import Choice, Evidence, choose, claims, finalists, score_all
from heterosis.ledger import Candidate, Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.ledger.rungs import RungRecord
from heterosis.optimizers import Optimizer, make_optimizer
from heterosis.race import Race
from heterosis.recipe import Recipe, Source
from heterosis.scoring import GenerationScorer, OneByOne
from heterosis.search import Budget, Found, Stage, search
from heterosis.space import Space, baselines, default_population
from heterosis.standings import leaders
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

Array = npt.NDArray[np.float64]

optuna.logging.set_verbosity(optuna.logging.WARNING)

PHASES = ("merge", "swap", "score", "total")
# Kernel features: enough that the disturbance of far recipes is nearly independent.
WAVES = 32


class Nature(NamedTuple):
    """What a simulated family is like."""

    parents: int = 3
    layers: int = 32
    tasks: int = 3
    ability: float = 1.2
    """Mean θ₀, the ability at a task's optimum."""
    uneven: float = 0.3
    """Standard deviation of θ₀ over the tasks: some are harder than others."""
    curvature: float = 2.0
    """c, the loss of ability per squared distance; 0: all recipes are equally good."""
    level: float = 0.3
    """Mean weight of the optimum."""
    swing: float = 0.2
    """Standard deviation of the optimum over the layers."""
    modes: int = 6
    """Cosines over depth in it, the k-th with an amplitude of 1/k."""
    roughness: float = 0.05
    """Standard deviation of what is not smooth in it."""
    skill: float = 0.4
    """How much more of a parent its own task wants."""
    disturbance: float = 0.5
    """s, what a recipe happens to know, beside difficulties of standard deviation 1."""
    reach: float = 0.5
    """Distance over which recipes share disturbances."""
    parents_lack: float = 0.0
    """Ability that the parents lack, and merges do not."""


class Family:
    """One family, drawn from a nature by its seed."""

    def __init__(self, nature: Nature, seed: int = 0) -> None:
        self.nature, self.seed = nature, seed
        rng = np.random.default_rng([seed, 0xFA11])
        self.names = [f"p{number}" for number in range(nature.parents)]
        self.tasks = [f"t{number}" for number in range(nature.tasks)]
        self.optima = _optima(nature, rng)
        self._peaks = nature.ability + nature.uneven * rng.standard_normal(nature.tasks)
        shape = (WAVES, nature.parents, nature.layers)
        self._waves = rng.standard_normal(shape) / (nature.reach * np.sqrt(nature.layers))
        self.blank = Recipe(
            method="task_arithmetic",
            base=Source(name="base", model="base", digest="0"),
            parents=tuple(Source(name=name, model=name, digest=name) for name in self.names),
            groups={"all": ".*"},
            parameters={},
        )
        self.baselines = baselines(self.blank)
        self.best = self._best()

    def space(self, depth: Any, **changes: Any) -> Space:
        """Per-parent weights from 0 to 1.5 with a depth profile."""
        config = {"method": "task_arithmetic", "groups": {"all": ".*"}, "depth": depth, **changes}
        config.setdefault("weight", {"low": 0.0, "high": 1.5, "initial": 0.5})
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(self.nature.layers)]
        return Space(SpaceConfig.model_validate(config), self.blank, names)

    def weights(self, recipe: Recipe) -> Array:
        """W [parents, layers]; an average is task arithmetic with weights that sum to 1."""
        rows = [np.broadcast_to(recipe.parameters[name]["all"].weight, self.nature.layers) for name in self.names]
        table = np.stack(rows).astype(np.float64)
        return table / table.sum(axis=0) if recipe.method == "linear" else table

    def abilities(self, weights: Array) -> Array:
        """θ [tasks]."""
        distances = np.square(weights - self.optima).mean(axis=-1).sum(axis=-1)
        lack = self.nature.parents_lack if _is_a_parent(weights) else 0.0
        abilities: Array = self._peaks - self.nature.curvature * distances - lack
        return abilities

    def features(self, weights: Array) -> Array:
        """f [2·WAVES], of length 1."""
        phase = np.tensordot(self._waves, weights, axes=2)
        features: Array = np.concatenate([np.cos(phase), np.sin(phase)]) / np.sqrt(WAVES)
        return features

    def true_scores(self, weights: Array) -> dict[str, float]:
        """Task scores over infinitely many items."""
        spread = np.sqrt(1.0 + self.nature.disturbance**2)
        return dict(zip(self.tasks, special.ndtr(self.abilities(weights) / spread).tolist(), strict=True))

    def true_value(self, weights: Array) -> float:
        """Objective over infinitely many items."""
        return float(np.mean(list(self.true_scores(weights).values())))

    def _best(self) -> Array:
        """The optimum of the objective. Its gradient vanishes where W = Σ φ_t W*_t / Σ φ_t, φ_t the density at θ_t."""
        best: Array = self.optima.mean(axis=0)
        for _ in range(200):
            abilities = self.abilities(best)
            density = np.exp(-0.5 * np.square(abilities) / (1.0 + self.nature.disturbance**2))
            best = np.tensordot(density / density.sum(), self.optima, axes=1)
        return best


def _optima(nature: Nature, rng: np.random.Generator) -> Array:
    """W* [tasks, parents, layers]: a level, a profile that all tasks share, a smaller one of the task's own, and more
    of the task's own parent."""

    def profile() -> Array:
        at = np.linspace(0.0, 1.0, nature.layers)
        waves = np.stack([np.cos(np.pi * k * at) / k for k in range(1, nature.modes + 1)])
        smooth = rng.standard_normal(nature.modes) @ waves
        return nature.swing * (smooth - smooth.mean()) / smooth.std() if nature.layers > 1 else np.zeros(1)

    shared = np.stack([profile() for _ in range(nature.parents)])
    optima = np.empty((nature.tasks, nature.parents, nature.layers))
    for task in range(nature.tasks):
        own = np.stack([profile() for _ in range(nature.parents)])
        rough = nature.roughness * rng.standard_normal(shared.shape)
        optima[task] = nature.level + shared + 0.5 * own + rough
        optima[task, task % nature.parents] += nature.skill
    return np.clip(optima, 0.0, 1.5)


def _is_a_parent(weights: Array) -> bool:
    return bool((weights.max(axis=-1) == 1.0).sum() == 1 and weights.sum() == weights.shape[-1])


class Items(NamedTuple):
    """The items of one task in one split."""

    difficulty: Array
    """b [n]."""
    loadings: Array
    """s·a [n, 2·WAVES]."""


class SimulatedPanel:
    """Items in three splits, and the answers of recipes to them."""

    def __init__(self, family: Family, sizes: Mapping[SplitName, int], seed: int = 0, cluster: int = 1) -> None:
        """`sizes`: items of every task. `cluster`: so many consecutive items share a document: they are half alike."""
        self.family = family
        self.objective = Objective("mean", {task: TaskShare(1.0, True) for task in family.tasks})
        self.splits: dict[SplitName, Split] = {}
        self._items: dict[tuple[str, str], Items] = {}
        rng = np.random.default_rng([seed, 0x17E5])
        for split in SPLITS:
            for task in family.tasks:
                self._items[split, task] = _draw_items(sizes[split], cluster, family.nature.disturbance, rng)
            listed = {task: _listed(f"{split}/{task}", sizes[split]) for task in family.tasks}
            documents = {item.key: _document(item.key, cluster) for items in listed.values() for item in items}
            tasks: Any = {task: _Task(task) for task in family.tasks}
            self.splits[split] = Split(split, tasks, listed, documents, seed)

    def answers(self, recipe: Recipe, part: Split) -> Outcomes:
        """1 for every item that is answered right, else 0."""
        return self.answers_at(self.family.weights(recipe), part)

    def answers_at(self, weights: Array, part: Split) -> Outcomes:
        """The same for the recipe with these weights [parents, layers]."""
        abilities, features = self.family.abilities(weights), self.family.features(weights)
        found = {}
        for task, ability in zip(self.family.tasks, abilities, strict=True):
            items = self._items[part.name, task]
            rows = [item.doc_id for item in part.items[task]]
            margin = ability + items.loadings[rows] @ features - items.difficulty[rows]
            found[task] = TaskOutcomes((margin > 0.0).astype(np.float64), np.ones(len(rows)))
        return found


class _Task:
    """A task whose score is the mean of its outcomes."""

    metric, filter, higher_is_better, limit = "acc", "none", True, None

    def __init__(self, name: str) -> None:
        self.name = self.spec = name

    def score(self, mean: Any) -> Any:
        return mean


def _draw_items(count: int, cluster: int, disturbance: float, rng: np.random.Generator) -> Items:
    drawn = rng.standard_normal((count, 1 + 2 * WAVES))
    if cluster > 1:
        shared = np.repeat(rng.standard_normal((-(-count // cluster), drawn.shape[1])), cluster, axis=0)[:count]
        drawn = (drawn + shared) / np.sqrt(2.0)
    return Items(drawn[:, 0], disturbance * drawn[:, 1:])


def _listed(place: str, count: int) -> list[Item]:
    return [Item(row, f"{place}/{row}", f"{place}/{row}", ()) for row in range(count)]


def _document(key: str, cluster: int) -> str:
    place, _, row = key.rpartition("/")
    return f"{place}/{int(row) // cluster}"


class SimulatedScorer:
    """Scores recipes on a split or a part of it, and counts the items."""

    def __init__(self, panel: SimulatedPanel, split: SplitName) -> None:
        self._panel, self._split = panel, panel.splits[split]
        self.items = 0

    def measure(self, recipe: Recipe) -> Measurement:
        """The whole split."""
        return self.ask(recipe, self._split)

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        """A part of it."""
        outcomes = self._panel.answers(recipe, part)
        self.items += part.size
        seconds = dict.fromkeys(PHASES, 0.0)
        return Measurement(part.scores(outcomes), outcomes, recipe.digest, seconds, part.size)


class Plan(NamedTuple):
    """How a simulated study searches."""

    optimizer: str = "cmaes"
    depth: Any = "uniform"
    candidates: int = 24
    racing: RacingConfig | None = None
    """None: every candidate on the whole search split."""
    finalists: int = 5


class Searched(NamedTuple):
    """A finished search."""

    record: Record
    found: Found
    extend: Callable[[Candidate], Candidate | None]


def search_for(panel: SimulatedPanel, plan: Plan, seed: int = 0) -> Searched:
    """The program's search, on simulated answers, recorded in memory."""
    space = panel.family.space(plan.depth)
    population = default_population(len(space.genes)) if plan.optimizer == "cmaes" else 1
    storage = optuna.storages.InMemoryStorage()
    record = Record(storage, "study", space.genes)
    scorer = SimulatedScorer(panel, "search")
    generations: GenerationScorer = OneByOne(scorer)
    extend: Callable[[Candidate], Candidate | None] = _as_it_is
    if plan.racing is not None:
        pieces, split = RungRecord(storage, "study/rungs"), panel.splits["search"]
        generations = Race(scorer, split, panel.objective, record, pieces, plan.racing, plan.finalists)
        extend = generations.extend

    def begin(*_: Any) -> Optimizer:
        return make_optimizer(plan.optimizer, space.initial, space.config.sigma, population, seed)

    stage = Stage(space, begin, Budget(plan.candidates, None, None))
    found = search([stage], panel.family.baselines, scorer, generations, panel.objective, record)
    return Searched(record, found, extend)


def _as_it_is(candidate: Candidate) -> Candidate:
    return candidate


class Chosen(NamedTuple):
    """What the selection split decided."""

    choice: Choice
    proposals: dict[str, Proposal]
    """The finalists by label."""


def select(panel: SimulatedPanel, searched: Searched, plan: Plan) -> Chosen:
    """The program's choice among its finalists."""
    proposed = [candidate for candidate in searched.record.proposed if candidate.fitness is not None]
    best = leaders(proposed, panel.splits["search"], panel.objective, plan.finalists, searched.extend)
    proposals = finalists(searched.record, searched.found, best)
    record = Record(optuna.storages.InMemoryStorage(), "study/selection", searched.found.space.genes)
    scorer = SimulatedScorer(panel, "selection")
    score_all(proposals, scorer, panel.objective, record, required=panel.family.baselines)
    by_label = {proposal.label: proposal for proposal in proposals}
    return Chosen(choose(record, set(by_label)), by_label)


class Certified(NamedTuple):
    """What the test split says."""

    evidence: Evidence
    claims: dict[str, Any]


def certify(panel: SimulatedPanel, chosen: Chosen, space: Space, seed: int = 0) -> Certified:
    """The program's claim about its winner."""
    choice, parents = chosen.choice, panel.family.names
    wanted = dict.fromkeys([*parents, choice.best_baseline, choice.winner])
    record = Record(optuna.storages.InMemoryStorage(), "study/test", space.genes)
    scorer = SimulatedScorer(panel, "test")
    score_all([chosen.proposals[label] for label in wanted], scorer, panel.objective, record, required=wanted)
    evidence = Evidence(record.candidates, panel.splits["test"], panel.objective, seed)
    return Certified(evidence, claims(evidence, choice, parents))
