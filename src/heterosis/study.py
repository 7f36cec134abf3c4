"""A study prepared: everything that follows from the study file and needs no engine."""

from __future__ import annotations

import hashlib
from collections import Counter
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
from heterosis.space import WHOLE, Space, baselines, default_population
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare


class Prepared(NamedTuple):
    """What a run works with."""

    config: Study
    path: Path
    folder: Path
    family: Family
    sources: Sources
    blank: Recipe
    space: Space
    baselines: dict[str, Recipe]
    panel: Panel
    objective: Objective

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
    def population(self) -> int:
        """Candidates in a generation."""
        wanted = self.config.optimizer.population
        if wanted is not None:
            return wanted
        batches = self.config.optimizer.name in ("cmaes", "nsga2")
        return default_population(len(self.space.genes)) if batches else 1


def _identity_of(data: DataSource | dict[str, DataSource] | None) -> Any:
    if isinstance(data, dict):
        return {parent: _identity_of(each) for parent, each in data.items()}
    return None if data is None else data.model_dump(exclude={"path"})


def prepare(path: Path) -> Prepared:
    """Load and check everything that can be checked without scoring."""
    config = load_study(path)
    beside = path.resolve().parent
    family = _open(config, beside)
    blank = _blank_recipe(config, family)
    space = Space(config.resolved_space, blank, family.names, _data(config, beside))
    max_length = context_length(family.base.config, config.engine.options.get("max_model_len"))
    panel = _panel(config, Tokenizer(family.base.folder, max_length), beside)
    weights = _task_weights(config, panel)
    shares = {name: TaskShare(weights[name], task.higher_is_better) for name, task in panel.tasks.items()}
    return Prepared(
        config,
        path,
        Path(config.output) / config.name,
        family,
        Sources(family.base.folder, {name: parent.folder for name, parent in family.parents.items()}),
        blank,
        space,
        baselines(blank),
        panel,
        Objective(config.objective, shares),
    )


def _open(config: Study, beside: Path) -> Family:
    def folder(model: Model) -> Path:
        return resolve(ModelRef(model.model, model.revision), beside)

    family = open_family(folder(config.base), {name: folder(model) for name, model in config.parents.items()})
    digests = Counter(member.digest for member in family.parents.values())
    for name, parent in family.parents.items():
        if parent.digest == family.base.digest:
            raise StudyError(f"parents.{name}: its weights are the base's own. Drop it, or give the fine-tune.")
        if digests[parent.digest] > 1:
            raise StudyError(f"parents.{name}: another parent has the same weights. Drop one of them.")
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


def _panel(config: Study, tokenizer: Tokenizer, beside: Path) -> Panel:
    choices = [TaskChoice(**task.model_dump(include=set(TaskChoice._fields))) for task in config.tasks]
    sizes = config.splits.model_dump()
    return Panel(load_tasks(choices, tokenizer, beside), {split: sizes[split] for split in SPLITS}, config.seed)


def _task_weights(config: Study, panel: Panel) -> dict[str, float]:
    """Weight of each task; a group's weight is shared by its members."""
    members = Counter(task.spec for task in panel.tasks.values())
    given = {task.task: task.weight for task in config.tasks}
    return {name: given[task.spec] / members[task.spec] for name, task in panel.tasks.items()}
