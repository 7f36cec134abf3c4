"""From one value per tensor to groups of tensors with one profile over depth each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from heterosis.checkpoints import TensorSource
from heterosis.checkpoints.layout import INPUT_EMBEDDING, LAYER, NAMED_GROUPS
from heterosis.recipe import NEUTRAL

HOLE = "\0"
Values = dict[str, Any]


class Site(NamedTuple):
    """One merged tensor: its name, its name without the layer's number, its layer (None outside)."""

    name: str
    template: str
    layer: int | None

    @property
    def at_input(self) -> bool:
        """Whether it comes before the layers."""
        return self.layer is None and bool(INPUT_EMBEDDING.search(self.name))


def site(name: str) -> Site:
    """Where a tensor's name puts it."""
    found = LAYER.search(name)
    if found is None:
        return Site(name, name, None)
    return Site(name, name[: found.start(1)] + HOLE + name[found.end(1) :], int(found.group(1)))


def depth_of(member: TensorSource) -> int:
    """Number of layers of a checkpoint."""
    layers = [site(name).layer for name in member.specs]
    return 1 + max((layer for layer in layers if layer is not None), default=0)


class Profiles:
    """Collects values tensor by tensor; `groups` finds the tensors that share them."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._values: dict[str, dict[str, list[Values | None]]] = {}

    def add(self, where: Site, owner: str, values: Values) -> None:
        """Note one owner's values at one tensor."""
        count = 1 if where.layer is None else self._layers
        by_owner = self._values.setdefault(where.template, {})
        by_owner.setdefault(owner, [None] * count)[where.layer or 0] = values

    def groups(self) -> tuple[dict[str, str], dict[str, dict[str, Values]]]:
        """Group name -> pattern (the largest last, as all the rest), and owner -> group -> values or profiles."""
        clusters: dict[str, list[str]] = {}
        profiles: dict[str, dict[str, Values]] = {}
        for template, by_owner in self._values.items():
            profile = {owner: _profile(values) for owner, values in by_owner.items()}
            key = repr(sorted((owner, sorted(values.items())) for owner, values in profile.items() if values))
            clusters.setdefault(key, []).append(template)
            profiles[key] = profile
        ordered = sorted(clusters.items(), key=lambda item: len(item[1]))
        patterns: dict[str, str] = {}
        found: dict[str, dict[str, Values]] = {}
        for i, (key, templates) in enumerate(ordered):
            last = i == len(ordered) - 1
            group = _label(templates, patterns, last and i == 0)
            patterns[group] = ".*" if last else f"^(?:{'|'.join(map(_pattern, templates))})$"
            for owner, values in profiles[key].items():
                if values:
                    found.setdefault(owner, {})[group] = values
        return patterns, found


def _profile(values: Sequence[Values | None]) -> Values:
    """One value where all layers agree, else one per layer; what is absent from a layer counts as neutral there.

    A layer may have values without one that others have: nothing is dropped where a density reaches 1.
    """
    found: Values = {}
    for name in dict.fromkeys(name for each in values if each is not None for name in each):
        column = [None if each is None else each.get(name, NEUTRAL.get(name)) for each in values]
        given = [value for value in column if value is not None]
        if all(value == given[0] for value in given):
            found[name] = given[0]
        else:
            found[name] = tuple(NEUTRAL.get(name, given[0]) if value is None else value for value in column)
    return found


def _pattern(template: str) -> str:
    return re.escape(template).replace(re.escape(HOLE), r"\d+")


def _label(templates: Sequence[str], taken: Mapping[str, str], alone: bool) -> str:
    if alone:
        return "all"
    for name, pattern in NAMED_GROUPS.items():
        if name not in taken and name != "body" and all(re.search(pattern, each) for each in templates):
            return name
    stem, i = "body", 1
    while stem in taken:
        i += 1
        stem = f"body{i}"
    return stem
