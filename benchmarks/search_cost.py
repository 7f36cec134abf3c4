"""What a search costs: items evaluated until what it recommends is truly so good, way of searching by way of searching.

    python benchmarks/search_cost.py --json figures.json
    python benchmarks/search_cost.py --json figures.json --family FOLDER --tasks FILE…

The first is on simulated families, the second on a real one (a folder with `base` and parents), on a CPU. Every way
searches the same families with the same items. After a generation the recipe that it would recommend (the optimizer's
mean; without one, its best candidate) is valued at its true score: over infinitely many items in the simulator, over
all items for a real family. See docs/search-cost.md.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
import yaml
from search_figures import REFERENCE, Point, Run, show, summary
from setting import machine, say, write_json
from simulation import Family, Nature, SimulatedPanel, SimulatedScorer

from heterosis.config import Depth, Knots, RacingConfig
from heterosis.evaluation.panel import SPLITS, Split
from heterosis.ledger import Record
from heterosis.ledger.record import Measurement
from heterosis.ledger.rungs import RungRecord
from heterosis.optimizers import Fitness, Genome, Optimizer, make_optimizer
from heterosis.race import Race
from heterosis.recipe import Recipe
from heterosis.scoring import EngineScorer, GenerationScorer, OneByOne, PartScorer
from heterosis.search import LATER_STEP, Budget, Stage, search
from heterosis.space import Space, at_depth, default_population, transfer
from heterosis.statistics import Objective

KNOTS = Knots(knots=4)
RESAMPLES = 2000
OF_EACH_TASK = 150
FINAL = "reference's final"


class Way(NamedTuple):
    """A way of searching."""

    optimizer: str
    depths: tuple[tuple[Depth, float], ...]
    """Depth profile and share of the budget, stage by stage."""
    races: bool = False


WAYS = {
    REFERENCE: Way("cmaes", (("per_layer", 1.0),)),
    "CMA-ES, knots": Way("cmaes", ((KNOTS, 1.0),)),
    "TPE, knots": Way("tpe", ((KNOTS, 1.0),)),
    "random, knots": Way("random", ((KNOTS, 1.0),)),
    "racing CMA-ES, per layer": Way("cmaes", (("per_layer", 1.0),), races=True),
    "racing CMA-ES, knots": Way("cmaes", ((KNOTS, 1.0),), races=True),
    "racing CMA-ES, coarse to fine": Way("cmaes", (("uniform", 1.0), (KNOTS, 3.0), ("per_layer", 6.0)), races=True),
}
FEW = (REFERENCE, "CMA-ES, knots", "TPE, knots", "racing CMA-ES, knots")


class Plan(NamedTuple):
    """How much is run."""

    seeds: int
    items: int
    """Items of a search split, all tasks together."""
    candidates: int
    """Budget of the reference, in candidates on the whole split; all ways get the same number of items."""
    looks: int
    """At most so many times in a search the true score is taken."""


DEFAULT, QUICK, REAL = Plan(6, 600, 600, 100_000), Plan(2, 96, 40, 100_000), Plan(1, 90, 60, 5)


class Ground(NamedTuple):
    """One family with its items."""

    space: Callable[[Depth], Space]
    baselines: Mapping[str, Recipe]
    split: Split
    scorer: PartScorer
    objective: Objective
    truth: Callable[[Recipe], float]
    """True value of a recipe; to ask again costs nothing."""
    best: float | None
    """True value of the best recipe, where it is known."""


class Counting:
    """A scorer that counts the items it is asked for."""

    def __init__(self, inner: PartScorer) -> None:
        self._inner = inner
        self.items = 0

    def measure(self, recipe: Recipe) -> Measurement:
        return self._count(self._inner.measure(recipe))

    def ask(self, recipe: Recipe, part: Split) -> Measurement:
        return self._count(self._inner.ask(recipe, part))

    def _count(self, measured: Measurement) -> Measurement:
        self.items += measured.items
        return measured


class Watched:
    """An optimizer that is looked at after every generation."""

    def __init__(self, inner: Optimizer, look: Callable[[Optimizer], None]) -> None:
        self._inner, self._look = inner, look

    def ask(self) -> list[Genome]:
        return self._inner.ask()

    def tell(self, genomes: Sequence[Genome], found: Sequence[Fitness | None]) -> None:
        self._inner.tell(genomes, found)
        self._look(self._inner)

    def mean(self) -> Genome | None:
        return self._inner.mean()

    def converged(self) -> bool:
        return self._inner.converged()


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    plan = QUICK if options.quick else REAL if options.family else DEFAULT
    plan = plan._replace(**{name: value for name in Plan._fields if (value := getattr(options, name)) is not None})
    begun = time.perf_counter()
    settings = {}
    if options.family:
        with real(options.family, options.tasks, plan) as ground:
            settings[options.family.name] = compare(lambda _: ground, options.only or FEW, plan)
    else:
        for name in options.natures:
            say(f"{name} families")
            nature = natures(options.quick)[name]
            ways = options.only or list(WAYS)
            settings[name] = compare(lambda seed, nature=nature: simulated(nature, plan, seed), ways, plan)
    figures: dict[str, Any] = {"benchmark": "search_cost", "quick": options.quick, "machine": machine(1)}
    figures |= {"plan": plan._asdict(), "reference": REFERENCE, "settings": settings}
    figures |= {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time(), 1)}
    show(figures)
    write_json(options.json, figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="small families, to see that all works")
    parser.add_argument("--seeds", type=int, help="how many families, or searches of the real one")
    parser.add_argument("--items", type=int, help="items of the search split, all tasks together")
    parser.add_argument("--candidates", type=int, help="budget, in candidates on the whole split")
    parser.add_argument("--looks", type=int, help="at most so many true scores in a search")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=WAYS,
        default=None,
        help="ways of searching; all of them, or four for a real family",
    )
    parser.add_argument("--natures", nargs="+", choices=("smooth", "rough"), default=("smooth", "rough"))
    parser.add_argument("--family", type=Path, help="a folder with base and parents")
    parser.add_argument("--tasks", type=Path, nargs="+", default=(), help="task files for it")
    return parser.parse_args()


def natures(quick: bool) -> dict[str, Nature]:
    """Families whose optimum is mostly smooth over depth, and, against us, such as are half rough."""
    layers = 8 if quick else 32
    smooth = Nature(layers=layers)
    return {"smooth": smooth, "rough": smooth._replace(swing=0.14, roughness=0.14)}


def simulated(nature: Nature, plan: Plan, seed: int) -> Ground:
    """A simulated family and its items."""
    family = Family(nature, seed)
    sizes = dict.fromkeys(SPLITS, plan.items // nature.tasks)
    panel = SimulatedPanel(family, sizes, seed)
    return Ground(
        family.space,
        family.baselines,
        panel.splits["search"],
        SimulatedScorer(panel, "search"),
        panel.objective,
        lambda recipe: family.true_value(family.weights(recipe)),
        family.true_value(family.best),
    )


@contextmanager
def real(folder: Path, tasks: Sequence[Path], plan: Plan) -> Iterator[Ground]:
    """A family of real models on the CPU, weights searched by task arithmetic, tasks weighing alike."""
    from heterosis.evaluation.transformers_engine import TransformersEngine
    from heterosis.study import prepare

    members = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    each = plan.items // len(tasks)
    about = {
        "name": "search-cost",
        "base": str(folder.resolve() / "base"),
        "parents": {name: str(folder.resolve() / name) for name in members},
        "space": {"method": "task_arithmetic", "groups": {"all": ".*"}, "depth": "per_layer"},
        "tasks": [{"task": str(path.resolve()), "limit": OF_EACH_TASK} for path in tasks],
        "objective": "normalized_mean",
        "splits": {"search": each, "selection": 10, "test": OF_EACH_TASK - each - 10},
        "engine": {"kind": "transformers", "options": {"device": "cpu", "max_model_len": 256}},
    }
    with tempfile.TemporaryDirectory() as work:
        study = Path(work) / "study.yaml"
        study.write_text(yaml.safe_dump(about), encoding="utf-8")
        prepared = prepare(study)
    splits = prepared.panel.splits
    everything = {
        task: [item for split in SPLITS for item in splits[split].items[task]] for task in prepared.panel.tasks
    }
    whole = Split("test", prepared.panel.tasks, everything)
    engine: Any = TransformersEngine(prepared.sources, prepared.engine_dtype, about["engine"]["options"])
    scorer, final = EngineScorer(engine, splits["search"], []), copy.deepcopy(prepared.objective)

    known: dict[str, Mapping[str, float]] = {}

    def scores(recipe: Recipe) -> Mapping[str, float]:
        if recipe.digest not in known:
            known[recipe.digest] = scorer.ask(recipe, whole).scores
        return known[recipe.digest]

    def space(depth: Depth) -> Space:
        return Space(at_depth(prepared.config.resolved_space, depth), prepared.blank, prepared.family.names)

    final.calibrate({name: scores(prepared.baselines[name]) for name in members})
    yield Ground(
        space,
        prepared.baselines,
        splits["search"],
        scorer,
        prepared.objective,
        lambda recipe: final.number(scores(recipe)),
        None,
    )
    engine.close()


def compare(ground_of: Callable[[int], Ground], ways: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Run the reference and the ways on all seeds."""
    order = list(dict.fromkeys([REFERENCE, *ways]))
    runs: dict[str, list[Run]] = {way: [] for way in order}
    starts, ends = [], []
    for seed in range(plan.seeds):
        ground = ground_of(seed)
        for way in order:
            begun = time.perf_counter()
            runs[way].append(run(ground, WAYS[way], plan, seed))
            say(f"  seed {seed}, {way}: {time.perf_counter() - begun:.1f} s")
        starts.append(max(ground.truth(recipe) for recipe in ground.baselines.values()))
        found = max(point.value for way in order for point in runs[way][seed].points)
        ends.append(found if ground.best is None else ground.best)
    return summary(runs, starts, ends, plan.candidates * ground.split.size)


def run(ground: Ground, way: Way, plan: Plan, seed: int) -> Run:
    """Search, and note the true value of what is recommended."""
    scorer = Counting(ground.scorer)
    storage = optuna.storages.InMemoryStorage()
    spaces = [ground.space(depth) for depth, _ in way.depths]
    genes = {gene.name: gene for space in spaces for gene in space.genes}
    record = Record(storage, "study", list(genes.values()))
    budget = plan.candidates * ground.split.size
    points: list[Point] = []

    def look(space: Space, optimizer: Optimizer) -> None:
        due = points[-1].items + budget / plan.looks if points else 0
        if scorer.items >= min(due, budget):
            mean = optimizer.mean()
            recipe = space.recipe(mean) if mean is not None else _best(record)
            points.append(Point(scorer.items, ground.truth(recipe)))

    generations: GenerationScorer = OneByOne(scorer)
    if way.races:
        pieces = RungRecord(storage, "study/rungs")
        generations = Race(scorer, ground.split, ground.objective, record, pieces, RacingConfig(), finalists=5)
    stages = _stages(way, spaces, Budget(None, None, budget), seed, look)
    search(stages, ground.baselines, scorer, generations, ground.objective, record)
    return Run(points, len(record.proposed))


def _stages(
    way: Way, spaces: Sequence[Space], total: Budget, seed: int, look: Callable[[Space, Optimizer], None]
) -> list[Stage]:
    shares = [share for _, share in way.depths]
    stages = []
    for number, space in enumerate(spaces):

        def begin(before: Space | None, mean: Genome | None, space: Space = space, number: int = number) -> Optimizer:
            start = space.initial if before is None or mean is None else transfer(before, mean, space)
            population = default_population(len(space.genes)) if way.optimizer == "cmaes" else 1
            sigma = space.config.sigma * (LATER_STEP if number else 1.0)
            inner = make_optimizer(way.optimizer, start, sigma, population, seed + number)
            return Watched(inner, lambda optimizer: look(space, optimizer))

        part = sum(shares[: number + 1]) / sum(shares)
        stages.append(Stage(space, begin, total.share(part)))
    return stages


def _best(record: Record) -> Recipe:
    """The best candidate so far."""
    return max(record.proposed, key=lambda c: -np.inf if c.value is None else c.value).recipe


if __name__ == "__main__":
    main()
