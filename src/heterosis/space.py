"""The space: which numbers the search may move, and how a point in it becomes a recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterosis.checkpoints.layout import DEFAULT_GROUPS, NAMED_GROUPS, Layout
from heterosis.config import Depth, Gene, SpaceConfig
from heterosis.errors import StudyError
from heterosis.merge.methods import METHODS, Method
from heterosis.profiles import FloatArray, Profiles, average, coarser, fitted, over_layers, stretched
from heterosis.recipe import NEUTRAL, DataSource, Depthwise, Parameters, Recipe, Source

Data = DataSource | dict[str, DataSource] | None
Genome = tuple[float, ...]
"""One number in [0, 1] per gene."""

WHOLE = {"all": ".*"}
ARITHMETIC_WEIGHTS = (0.3, 0.5, 1.0)
PARENT_GENES = frozenset(Parameters.model_fields)


class GeneSlot(NamedTuple):
    """One searched number and its range."""

    name: str
    low: float
    high: float
    initial: float

    def value(self, unit: float) -> float:
        """From [0, 1] to the gene's own range."""
        return self.low + (self.high - self.low) * min(max(unit, 0.0), 1.0)

    def unit(self, value: float) -> float:
        """From the gene's own range, to which it is clipped, to [0, 1]."""
        wanted = min(max(value, self.low), self.high)
        unit = min(max((wanted - self.low) / (self.high - self.low), 0.0), 1.0)
        # Rounding misses by a few units in the last place, and a number off by one gives the merge another digest.
        for _ in range(8):
            found = self.value(unit)
            if found == wanted:
                break
            unit = math.nextafter(unit, 1.0 if found < wanted else 0.0)
        return unit


class Space:
    """Genes <-> genome <-> recipe, for one family of models."""

    def __init__(self, config: SpaceConfig, blank: Recipe, tensor_names: Sequence[str], data: Data = None) -> None:
        """`blank` gives sources, seed and dtype; `tensor_names` are the base's; `data` is for methods that measure."""
        self.config = config
        self.method = METHODS[config.method]
        self._kinds = _kinds(config, self.method)
        _check_parents(self.method, len(blank.parents))
        self.groups = _groups(config, [*self._kinds.values(), *config.settings.values()])
        self._layout = Layout(tensor_names, self.groups)
        self._blank = blank
        self.data = data
        self._parents = [parent.name for parent in blank.parents]
        self.genes: list[GeneSlot] = []
        self._slots: dict[tuple[str, str, str], list[int]] = {}
        for gene, range_ in self._kinds.items():
            if isinstance(range_, Gene):
                self._lay_out(gene, range_, ["all"] if range_.shared else self._parents)
        for setting, value in config.settings.items():
            if isinstance(value, Gene):
                self._lay_out(setting, value, ["all"])
        if not self.genes:
            raise StudyError("space: every gene is fixed, so there is nothing to search. Give at least one a range.")

    def _lay_out(self, gene: str, range_: Gene, owners: Sequence[str]) -> None:
        """Number the slots of one kind of gene; shared genes are numbered once for all parents."""
        initial = range_.initial if range_.initial is not None else (range_.low + range_.high) / 2
        for owner in owners:
            for group in self._layout.used_groups():
                count = self._positions(range_.depth or self.config.depth, group)
                first = len(self.genes)
                for i in range(count):
                    name = f"{owner}.{gene}.{group}" + (f".{i}" if count > 1 else "")
                    self.genes.append(GeneSlot(name, range_.low, range_.high, initial))
                for parent in [*self._parents, "all"] if owner == "all" else [owner]:
                    self._slots[parent, gene, group] = list(range(first, first + count))

    def _positions(self, depth: Depth, group: str) -> int:
        if depth == "uniform" or not self._layout.has_layers(group):
            return 1
        wanted = {"knots": getattr(depth, "knots", 0), "blocks": getattr(depth, "blocks", 0)}
        return min(max(wanted.values()) or self._layout.layers, self._layout.layers)

    @property
    def parents(self) -> tuple[Source, ...]:
        """The models that every recipe of this space merges."""
        return self._blank.parents

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
        groups = self._layout.used_groups()
        parameters = {
            parent: {group: self._parameters(parent, group, numbers) for group in groups} for parent in self._parents
        }
        settings = {
            group: {
                name: self._profile("all", name, value, group, numbers) for name, value in self.config.settings.items()
            }
            for group in (groups if self.config.settings else ())
        }
        return blank_with(
            self._blank,
            method=self.config.method,
            groups=self.groups,
            parameters=parameters,
            settings=settings,
            trim_scope=self.config.trim_scope,
            election=self.config.election,
            divisor=self.config.divisor,
            rescale=self.config.rescale,
            data=self.data if self.method.evidence is not None else None,
        )

    def profiles(self, genome: Genome) -> Profiles:
        """What a genome says of every parent and setting, fixed numbers included."""
        numbers = list(self.values(genome).values())
        groups = self._layout.used_groups()
        owned = [(parent, gene, range_) for parent in self._parents for gene, range_ in self._kinds.items()]
        owned += [("all", setting, value) for setting, value in self.config.settings.items()]
        values = {
            (owner, gene): {group: self._profile(owner, gene, range_, group, numbers) for group in groups}
            for owner, gene, range_ in owned
        }
        return Profiles(self.groups, values)

    def nearest(self, profiles: Profiles) -> list[float | None]:
        """For each gene its place in [0, 1] that comes nearest to what `profiles` say; None where they are silent.

        Other groups are matched tensor by tensor. A gene that parents share takes their mean.
        """
        theirs = Layout(self._layout.places, profiles.groups)
        owners: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
        for (owner, gene, group), slots in self._slots.items():
            owners.setdefault((gene, group, tuple(slots)), []).append(owner)
        overlaps = {group: self._overlap(group, theirs) for group in self._layout.used_groups()}
        found: list[float | None] = [None] * len(self.genes)
        for (gene, group, numbered), names in owners.items():
            known = [profiles.values[name, gene] for name in names if (name, gene) in profiles.values]
            if known:
                wanted = average(np.stack([self._seen(overlaps[group], by_group) for by_group in known]))
                values = fitted(wanted, self._depth(gene), len(numbered))
                for slot, value in zip(numbered, values, strict=True):
                    found[slot] = self.genes[slot].unit(value)
        return found

    def _overlap(self, group: str, theirs: Layout) -> Counter[tuple[str, int | None]]:
        """How many of a group's tensors lie in each of their groups; with the depth, where the group has no layers."""
        layered = self._layout.has_layers(group)
        return Counter(
            (theirs.places[name].group, None if layered else place.depth(self._layout.layers))
            for name, place in self._layout.places.items()
            if place.group == group
        )

    def _seen(self, overlap: Mapping[tuple[str, int | None], int], values: Mapping[str, Depthwise]) -> FloatArray:
        """Their profile as a group of ours sees it: [layers], or [1] for a group outside the layers."""
        rows = []
        for theirs, depth in overlap:
            row = stretched(values[theirs], self._layout.layers)
            rows.append(row if depth is None else row[[depth]])
        return average(np.stack(rows), list(overlap.values()))

    def _depth(self, gene: str) -> Depth:
        range_ = self.config.settings[gene] if gene in self.config.settings else self._kinds[gene]
        assert isinstance(range_, Gene)
        return range_.depth or self.config.depth

    def _parameters(self, parent: str, group: str, numbers: Sequence[float]) -> Parameters:
        found = {gene: self._profile(parent, gene, range_, group, numbers) for gene, range_ in self._kinds.items()}
        if "epsilon" in found:
            found["epsilon"] = _narrowed(found["epsilon"], found["drop"])
        return Parameters(**found)

    def _profile(self, owner: str, gene: str, range_: Gene | float, group: str, numbers: Sequence[float]) -> Any:
        if not isinstance(range_, Gene):
            return range_
        values = [numbers[slot] for slot in self._slots[owner, gene, group]]
        if len(values) == 1:
            return values[0]
        return over_layers(values, range_.depth or self.config.depth, self._layout.layers)


def _kinds(config: SpaceConfig, method: Method) -> dict[str, Gene | float]:
    """Per-parent genes that the method reads, a drop rate in front of it among them where one is asked for."""
    asked = config.model_fields_set & PARENT_GENES
    if unread := sorted(asked - method.reads):
        raise StudyError(f"space: {method.name} does not read {unread[0]}. Remove it, or choose another method.")
    if unknown := sorted(set(config.settings) - set(method.settings)):
        known = ", ".join(method.settings) or "none"
        raise StudyError(f"space.settings: {method.name} has no setting {unknown[0]}; known: {known}.")
    genes = dict.fromkeys(method.genes) | ({"drop": None} if "drop" in asked else {})
    return {gene: getattr(config, gene) for gene in genes}


def _check_parents(method: Method, count: int) -> None:
    fewest, most = method.parents
    if count < fewest or (most is not None and count > most):
        raise StudyError(f"space: {method.name} takes {method.wanted_parents} parents, the study has {count}.")


def _narrowed(epsilon: Depthwise, drop: Depthwise) -> Depthwise:
    """The window as far as every drop rate in it stays within [0, 1)."""
    if not isinstance(epsilon, tuple) and not isinstance(drop, tuple):
        return min(epsilon, drop, 0.999 - drop)
    length = len(epsilon) if isinstance(epsilon, tuple) else len(drop) if isinstance(drop, tuple) else 1
    windows = epsilon if isinstance(epsilon, tuple) else (epsilon,) * length
    rates = drop if isinstance(drop, tuple) else (drop,) * length
    return tuple(min(e, p, 0.999 - p) for e, p in zip(windows, rates, strict=True))


def at_depth(config: SpaceConfig, depth: Depth) -> SpaceConfig:
    """The same space searched at another depth profile.

    Genes without a depth of their own take `depth`. One with a depth of its own keeps it unless that is finer, so a
    stage never searches a gene at more places than the user gave it.
    """

    def moved(value: Any) -> Any:
        if not isinstance(value, Gene) or value.depth is None:
            return value
        return value.model_copy(update={"depth": coarser(value.depth, depth)})

    # What the user left out stays left out: a method refuses genes that were written and that it does not read.
    changes = {name: moved(getattr(config, name)) for name in sorted(config.model_fields_set & PARENT_GENES)}
    if config.settings:
        changes["settings"] = {name: moved(value) for name, value in config.settings.items()}
    return config.model_copy(update={**changes, "depth": depth})


def transfer(coarse: Space, genome: Genome, fine: Space) -> Genome:
    """The point of `fine` whose profiles equal, or come nearest to, those of `genome` in `coarse`.

    From coarse to fine the recipe stays what it was wherever the finer profile can express the coarser one (uniform to
    anything, anything to per layer); from fine to coarse genes take the mean over their stretch. Values outside the
    range of `fine` are clipped; genes that `coarse` does not know start where `fine` starts.
    """
    return fill(fine.nearest(coarse.profiles(genome)), fine.initial)


def fill(found: Sequence[float | None], otherwise: Genome) -> Genome:
    """A genome from what is known of it."""
    return tuple(start if unit is None else unit for unit, start in zip(found, otherwise, strict=True))


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


def _groups(config: SpaceConfig, ranges: Sequence[Gene | float | bool]) -> dict[str, str]:
    if config.groups is None:
        depths = [gene.depth or config.depth for gene in ranges if isinstance(gene, Gene)]
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
