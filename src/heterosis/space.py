"""The space: which numbers the search may move, and how a point in it becomes a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heterosis.checkpoints.layout import DEFAULT_GROUPS, NAMED_GROUPS, Layout
from heterosis.config import Blocks, Depth, Gene, Knots, SpaceConfig
from heterosis.errors import StudyError
from heterosis.merge.methods import METHODS
from heterosis.recipe import NEUTRAL, Depthwise, Parameters, Recipe

Genome = tuple[float, ...]
"""One number in [0, 1] per gene."""

WHOLE = {"all": ".*"}
ARITHMETIC_WEIGHTS = (0.3, 0.5, 1.0)


class GeneSlot(NamedTuple):
    """One searched number and its range."""

    name: str
    low: float
    high: float
    initial: float

    def value(self, unit: float) -> float:
        """From [0, 1] to the gene's own range."""
        return self.low + (self.high - self.low) * min(max(unit, 0.0), 1.0)


class Space:
    """Genes <-> genome <-> recipe, for one family of models."""

    def __init__(self, config: SpaceConfig, blank: Recipe, tensor_names: Sequence[str]) -> None:
        """`blank` gives sources, seed and dtype; `tensor_names` are the base's."""
        self.config = config
        self.method = METHODS[config.method]
        unread = {"weight", "density", "drop"} - set(self.method.genes)
        if named := sorted(unread & config.model_fields_set):
            raise StudyError(f"space: {config.method} does not read {named[0]}. Remove it, or choose another method.")
        self.groups = _groups(config, self.method.genes)
        self._layout = Layout(tensor_names, self.groups)
        self._blank = blank
        self._parents = [parent.name for parent in blank.parents]
        self.genes: list[GeneSlot] = []
        self._slots: dict[tuple[str, str, str], list[int]] = {}
        for gene in self.method.genes:
            self._lay_out(gene)
        if not self.genes:
            raise StudyError("space: every gene is fixed, so there is nothing to search. Give at least one a range.")

    def _lay_out(self, gene: str) -> None:
        """Number the slots of one kind of gene; shared genes are numbered once for all parents."""
        range_ = getattr(self.config, gene)
        if not isinstance(range_, Gene):
            return
        initial = range_.initial if range_.initial is not None else (range_.low + range_.high) / 2
        for owner in ["all"] if range_.shared else self._parents:
            for group in self._layout.used_groups():
                count = self._positions(range_.depth or self.config.depth, group)
                first = len(self.genes)
                for i in range(count):
                    name = f"{owner}.{gene}.{group}" + (f".{i}" if count > 1 else "")
                    self.genes.append(GeneSlot(name, range_.low, range_.high, initial))
                for parent in self._parents if range_.shared else [owner]:
                    self._slots[parent, gene, group] = list(range(first, first + count))

    def _positions(self, depth: Depth, group: str) -> int:
        if depth == "uniform" or not self._layout.has_layers(group):
            return 1
        wanted = {"knots": getattr(depth, "knots", 0), "blocks": getattr(depth, "blocks", 0)}
        return min(max(wanted.values()) or self._layout.layers, self._layout.layers)

    @property
    def initial(self) -> Genome:
        """Where the search starts."""
        return tuple((gene.initial - gene.low) / (gene.high - gene.low) for gene in self.genes)

    def values(self, genome: Genome) -> dict[str, float]:
        """Gene name -> value in its own range."""
        return {gene.name: gene.value(unit) for gene, unit in zip(self.genes, genome, strict=True)}

    def recipe(self, genome: Genome) -> Recipe:
        """The merge that a genome stands for."""
        numbers = list(self.values(genome).values())
        parameters = {
            parent: {
                group: Parameters(**{gene: self._profile(parent, gene, group, numbers) for gene in self.method.genes})
                for group in self._layout.used_groups()
            }
            for parent in self._parents
        }
        return blank_with(
            self._blank,
            method=self.config.method,
            groups=self.groups,
            parameters=parameters,
            trim_scope=self.config.trim_scope,
            divisor=self.config.divisor,
            rescale=self.config.rescale,
        )

    def _profile(self, parent: str, gene: str, group: str, numbers: Sequence[float]) -> Depthwise:
        range_ = getattr(self.config, gene)
        if not isinstance(range_, Gene):
            return float(range_)
        values = [numbers[slot] for slot in self._slots[parent, gene, group]]
        if len(values) == 1:
            return values[0]
        return over_layers(values, range_.depth or self.config.depth, self._layout.layers)


def over_layers(values: Sequence[float], depth: Depth, layers: int) -> tuple[float, ...]:
    """Spread a profile's values over all layers: knots are interpolated, blocks repeated."""
    at = np.arange(layers)
    if isinstance(depth, Knots):
        return tuple(np.interp(at, np.linspace(0, layers - 1, len(values)), values).tolist())
    if isinstance(depth, Blocks):
        return tuple(values[i * len(values) // layers] for i in range(layers))
    return tuple(values)


def blank_with(blank: Recipe, **changes: object) -> Recipe:
    """A recipe like `blank` but for the changes, validated again."""
    return Recipe.model_validate({**{name: getattr(blank, name) for name in Recipe.model_fields}, **changes})


def baselines(blank: Recipe) -> dict[str, Recipe]:
    """Generation 0: every parent, the uniform average, and task arithmetic at a few λ. Label -> recipe."""
    names = [parent.name for parent in blank.parents]
    found = {name: _uniform(blank, "task_arithmetic", {n: float(n == name) for n in names}) for name in names}
    found["average"] = _uniform(blank, "linear", dict.fromkeys(names, 1.0))
    for weight in ARITHMETIC_WEIGHTS:
        label = f"task_arithmetic({weight:g})"
        found[label] = _uniform(blank, "task_arithmetic", dict.fromkeys(names, weight))
    return found


def _uniform(blank: Recipe, method: str, weights: Mapping[str, float]) -> Recipe:
    parameters = {name: {"all": Parameters(**{**NEUTRAL, "weight": weight})} for name, weight in weights.items()}
    return blank_with(blank, method=method, groups=WHOLE, parameters=parameters)


def _groups(config: SpaceConfig, genes: Sequence[str]) -> dict[str, str]:
    if config.groups is None:
        ranges = [gene for gene in (getattr(config, name) for name in genes) if isinstance(gene, Gene)]
        depths = [gene.depth or config.depth for gene in ranges]
        return dict(WHOLE) if all(depth == "uniform" for depth in depths) else dict(DEFAULT_GROUPS)
    groups = {}
    for name, pattern in config.groups.items():
        if pattern is None and name not in NAMED_GROUPS:
            raise StudyError(f"space.groups: {name} has no pattern and is not one of {', '.join(NAMED_GROUPS)}.")
        groups[name] = NAMED_GROUPS[name] if pattern is None else pattern
    return groups


def default_population(genes: int) -> int:
    """Hansen's default, 4 + 3 ln n (The CMA evolution strategy: a tutorial, table 1)."""
    return 4 + int(3 * math.log(genes))
