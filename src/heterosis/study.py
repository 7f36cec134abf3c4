"""A study prepared: everything that follows from the study file and needs no engine."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from heterosis.checkpoints import Family, ModelRef, open_family, resolve
from heterosis.checkpoints.source import is_hub_snapshot
from heterosis.config import DataConfig, Model, Study, load_study
from heterosis.errors import StudyError
from heterosis.evaluation.engine import Sources, compute_dtype, context_length
from heterosis.evaluation.panel import SPLITS, Panel
from heterosis.evaluation.tasks import TaskChoice, load_tasks
from heterosis.evaluation.tokens import Tokenizer
from heterosis.merge import METHODS
from heterosis.recipe import DataSource, Recipe, Source
from heterosis.space import WHOLE, GeneSlot, Space, at_depth, baselines, default_population
from heterosis.statistics import Objective
from heterosis.statistics.objective import Bound, TaskShare
from heterosis.warmstart import WarmStart, warm_start

# The file in a study's folder that holds where its search started.
WARM_START = "warm_start.json"


class Prepared(NamedTuple):
    """What a run works with."""

    config: Study
    path: Path
    folder: Path
    family: Family
    sources: Sources
    blank: Recipe
    spaces: tuple[Space, ...]
    """One for each stage of the search, the finest last."""
    warm: WarmStart | None
    baselines: dict[str, Recipe]
    panel: Panel
    objective: Objective

    @property
    def space(self) -> Space:
        """The space that the search ends in."""
        return self.spaces[-1]

    @property
    def genes(self) -> list[GeneSlot]:
        """The genes of all stages."""
        return list({gene.name: gene for space in self.spaces for gene in space.genes}.values())

    @property
    def identity(self) -> dict[str, Any]:
        """What a study may not change once it has a record. Budget, names of folders and URIs are free to change."""
        config = self.config
        return {
            "base": self.blank.base.digest,
            "parents": {parent.name: parent.digest for parent in self.blank.parents},
            "space": config.resolved_space.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in config.tasks],
            "data": _identity_of(self.space.data),
            "splits": config.splits.model_dump(mode="json"),
            "panel": self.panel.digest,
            "objective": config.objective,
            "constraints": [constraint.model_dump(mode="json") for constraint in config.constraints],
            "scoring": self._scoring,
            "optimizer": config.optimizer.model_dump(mode="json"),
            "engine": {"kind": config.engine.kind, "dtype": self.engine_dtype},
            "dtype": self.blank.dtype,
            "seed": config.seed,
        }

    @property
    def engine_dtype(self) -> str:
        """What the engine computes in."""
        wanted = self.config.engine.options.get("dtype")
        return str(wanted) if wanted else compute_dtype(self.blank.dtype, on_cpu=not torch.cuda.is_available())

    @property
    def _scoring(self) -> dict[str, Any]:
        """How candidates are scored and where the search starts: it decides what the optimizer is told."""
        config = self.config
        found: dict[str, Any] = {
            "racing": config.race.model_dump(mode="json") if config.race is not None else None,
            "anchors": config.anchors.model_dump(mode="json") if config.anchors is not None else None,
        }
        if config.stages:  # a stage ends where its share of the budget does
            found["stages"] = [stage.model_dump(mode="json") for stage in config.stages]
            found["budget"] = config.budget.model_dump(mode="json")
        if self.warm is not None:
            found["warm_start"] = hashlib.sha256(json.dumps(self.warm, sort_keys=True).encode()).hexdigest()
        return found

    @property
    def population(self) -> int:
        """Candidates in a generation of the last stage."""
        return self.population_in(self.space)

    def population_in(self, space: Space) -> int:
        """Candidates in a generation of the search of a space."""
        wanted = self.config.optimizer.population
        if wanted is not None:
            return wanted
        batches = self.config.optimizer.name in ("cmaes", "nsga2", "nsga3")
        return default_population(len(space.genes)) if batches else 1


def _identity_of(data: DataSource | dict[str, DataSource] | None) -> Any:
    if isinstance(data, dict):
        return {parent: _identity_of(each) for parent, each in data.items()}
    return None if data is None else data.model_dump(exclude={"path"})


def prepare(path: Path, unsafe_code: bool = False) -> Prepared:
    """Load and check everything that can be checked without scoring. `unsafe_code` as in `load_tasks`."""
    return prepare_as(load_study(path), path, unsafe_code)


def prepare_as(config: Study, path: Path, unsafe_code: bool = False) -> Prepared:
    """The same for a study that was read already; `path`: the file that its relative paths are relative to."""
    beside = path.resolve().parent
    family = _open(config, beside)
    blank = _blank_recipe(config, family)
    spaces = _spaces(config, blank, family.names, _data(config, beside))
    max_length = context_length(family.base.config, config.engine.options.get("max_model_len"))
    panel = _panel(config, Tokenizer(family.base.folder, max_length), beside, unsafe_code)
    weights = _task_weights(config, panel)
    shares = {name: TaskShare(weights[name], task.higher_is_better) for name, task in panel.tasks.items()}
    return Prepared(
        config,
        path,
        Path(config.output) / config.name,
        family,
        Sources(family.base.folder, {name: parent.folder for name, parent in family.parents.items()}),
        blank,
        spaces,
        _warm_start(config, spaces[0], beside),
        baselines(blank),
        panel,
        Objective(config.objective, shares, [Bound(**each.model_dump()) for each in config.constraints]),
    )


def _spaces(config: Study, blank: Recipe, names: Sequence[str], data: Any) -> tuple[Space, ...]:
    """The space of every stage."""
    whole = config.resolved_space
    if not config.stages:
        return (Space(whole, blank, names, data),)
    finest = at_depth(whole, config.stages[-1].depth)
    groups = Space(finest, blank, names, data).groups  # the same in all stages, so that points can pass on
    return tuple(
        Space(at_depth(whole, stage.depth).model_copy(update={"groups": dict(groups)}), blank, names, data)
        for stage in config.stages
    )


def _warm_start(config: Study, space: Space, beside: Path) -> WarmStart | None:
    """Where the search starts. Kept with the study: the earlier one may go on, or be deleted."""
    if config.warm_start is None:
        return None
    own = Path(config.output) / config.name
    earlier = beside / config.warm_start.run
    if earlier.resolve() == own.resolve():
        raise StudyError("warm_start.run: that is this study's own folder. Name an earlier study's.")
    kept = own / WARM_START
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        starts = [tuple(start) for start in content["starts"]]
        return WarmStart(tuple(content["mean"]), tuple(content["spread"]), starts)
    return warm_start(earlier, config.warm_start.top, space, config.record)


def _open(config: Study, beside: Path) -> Family:
    def folder(model: Model) -> Path:
        return resolve(ModelRef(model.model, model.revision), beside)

    family = open_family(folder(config.base), {name: folder(model) for name, model in config.parents.items()})
    digests = Counter(member.digest for member in family.parents.values())
    for name, parent in family.parents.items():
        if parent.digest == family.base.digest:
            raise StudyError(f"parents.{name}: its weights are the base's own. Drop it, or give the fine-tune.")
        if digests[parent.digest] > 1:
            twin = next(n for n, other in family.parents.items() if n != name and other.digest == parent.digest)
            raise StudyError(f"parents.{name}: {twin} has the same weights. Drop one of them.")
    return family


def _blank_recipe(config: Study, family: Family) -> Recipe:
    dtype = config.dtype or _main_dtype(family)

    def source(name: str, model: Model) -> Source:
        member = family.members[name]
        if is_hub_snapshot(member.folder):
            return Source(name=name, model=model.model, revision=member.folder.name, digest=member.digest)
        return Source(name=name, model=str(member.folder), digest=member.digest)

    return Recipe(
        method="task_arithmetic",
        base=source("base", config.base),
        parents=tuple(source(name, model) for name, model in config.parents.items()),
        groups=WHOLE,
        parameters={},
        seed=config.seed,
        dtype=dtype,
    )


def _data(config: Study, beside: Path) -> DataSource | dict[str, DataSource] | None:
    """The texts that parents are measured on, pinned by content."""
    method = config.resolved_space.method
    if METHODS[method].evidence is None:
        if config.data is not None:
            raise StudyError(f"data: {method} does not read it. Remove it.")
        return None
    if config.data is None:
        raise StudyError(f"data: {method} measures its parents. Name a .txt or .jsonl file.")
    if isinstance(config.data, DataConfig):
        return _pinned(config.data, beside)
    if set(config.data) != set(config.parents):
        raise StudyError(f"data: give one file, or one for each of {', '.join(config.parents)}.")
    return {parent: _pinned(data, beside) for parent, data in config.data.items()}


def _pinned(data: DataConfig, beside: Path) -> DataSource:
    path = (beside / data.path).resolve()
    if not path.is_file():
        raise StudyError(f"data.path: no file {path}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataSource(**data.model_dump(exclude={"path"}), path=str(path), digest=digest)


def _main_dtype(family: Family) -> Any:
    sizes: Counter[str] = Counter()
    for spec in family.base.specs.values():
        sizes[str(spec.dtype).removeprefix("torch.")] += spec.numel
    main = sizes.most_common(1)[0][0]
    return "float32" if main == "float64" else main


def _panel(config: Study, tokenizer: Tokenizer, beside: Path, unsafe_code: bool) -> Panel:
    choices = [TaskChoice(**task.model_dump(include=set(TaskChoice._fields))) for task in config.tasks]
    sizes = config.splits.model_dump()
    tasks = load_tasks(choices, tokenizer, beside, unsafe_code)
    return Panel(tasks, {split: sizes[split] for split in SPLITS}, config.seed)


def _task_weights(config: Study, panel: Panel) -> dict[str, float]:
    """Weight of each task; a group's weight is shared by its members."""
    members = Counter(task.spec for task in panel.tasks.values())
    given = {task.task: task.weight for task in config.tasks}
    return {name: given[task.spec] / members[task.spec] for name, task in panel.tasks.items()}
