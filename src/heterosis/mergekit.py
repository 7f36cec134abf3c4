"""Recipes as mergekit YAML, with every difference that mergekit cannot express named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from heterosis.checkpoints.layout import LAYER, Layout
from heterosis.merge.methods import METHODS
from heterosis.recipe import Parameters, Recipe


class MergekitConfig(NamedTuple):
    """A mergekit configuration, and in what its merge would differ from the recipe's."""

    content: dict[str, Any]
    differences: list[str]

    def to_yaml(self) -> str:
        """The file, differences first."""
        head = "# The same merge in mergekit's terms.\n"
        if self.differences:
            head = "# The nearest mergekit configuration, NOT the same merge (recipe.yaml is exact). It differs in:\n"
            head += "".join(f"# - {difference}\n" for difference in self.differences)
        return head + yaml.safe_dump(self.content, sort_keys=False, default_flow_style=None, width=120)


def to_mergekit(recipe: Recipe, tensor_names: Sequence[str]) -> MergekitConfig:
    """Translate a recipe over the tensors of its family."""
    layout = Layout(tensor_names, recipe.groups)
    method = METHODS[recipe.method]
    models = []
    for parent in recipe.parents:
        given = recipe.parameters.get(parent.name, {})
        parameters = {"weight": _setting(layout, given, _weight)}
        if method.trims or method.drops:
            parameters["density"] = _setting(layout, given, _density)
        models.append({"model": _reference(parent.model, parent.revision), "parameters": parameters})
    content: dict[str, Any] = {"merge_method": recipe.method, "models": models}
    if method.combine != "mean":
        content["base_model"] = _reference(recipe.base.model, recipe.base.revision)
    content["parameters"] = {"normalize": method.combine == "mean" or _normalizes(recipe)}
    content |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return MergekitConfig(content, _differences(recipe))


def _normalizes(recipe: Recipe) -> bool:
    return METHODS[recipe.method].combine == "ties" and recipe.divisor != "none"


def _differences(recipe: Recipe) -> list[str]:
    method = METHODS[recipe.method]
    numbers = [p for by_group in recipe.parameters.values() for p in by_group.values()]
    drops = method.drops and any(_largest(p.drop) > 0.0 for p in numbers)
    trims = method.trims and any(_smallest(p.density) < 1.0 for p in numbers)
    found = []
    if drops:
        found.append("mergekit draws other random masks, and rescales them to the L1 norm instead of by 1/(1-p)")
    if trims and method.drops:
        found.append("mergekit drops at random instead of trimming by magnitude: density stands for (1-p)·d")
    if method.combine == "ties" and recipe.divisor == "count":
        found.append("mergekit divides by the sum of agreeing weights, not by the number of agreeing parents")
    if method.combine == "ties":
        found.append("where signs cancel exactly mergekit takes +, not the tensor's majority sign")
    if trims and recipe.trim_scope == "model":
        found.append("mergekit trims per tensor, not over the whole task vector")
    if drops and recipe.rescale != "inverse_keep":
        found.append(f"mergekit has no rescale: {recipe.rescale}")
    return found


def _setting(layout: Layout, given: Mapping[str, Parameters], value: Any) -> Any:
    """A number, a gradient over the layers, or a list of filters with one of these each."""
    groups = layout.used_groups()
    if len(groups) == 1:
        return value(given.get(groups[0], Parameters()))
    entries = []
    for group in groups:
        found = value(given.get(group, Parameters()))
        entries += [{"filter": part, "value": _at(found, layout, part)} for part in _filters(layout, group)]
    return entries


def _filters(layout: Layout, group: str) -> list[str]:
    """Substrings that select a group's tensors: what follows the layer number, or the whole name outside the layers."""
    found = []
    for name, place in layout.places.items():
        if place.group == group:
            layer = LAYER.search(name)
            found.append(f".{name[layer.end() :]}" if layer else name)
    return list(dict.fromkeys(found))


def _at(found: Any, layout: Layout, filter_: str) -> Any:
    place = layout.places.get(filter_)
    return found[place.depth(layout.layers)] if place is not None and isinstance(found, list) else found


def _weight(parameters: Parameters) -> Any:
    return list(parameters.weight) if isinstance(parameters.weight, tuple) else parameters.weight


def _density(parameters: Parameters) -> Any:
    density, drop = parameters.density, parameters.drop
    if not isinstance(density, tuple) and not isinstance(drop, tuple):
        return (1.0 - drop) * density
    length = len(density) if isinstance(density, tuple) else len(drop) if isinstance(drop, tuple) else 1
    densities = density if isinstance(density, tuple) else (density,) * length
    drops = drop if isinstance(drop, tuple) else (drop,) * length
    return [(1.0 - p) * d for p, d in zip(drops, densities, strict=True)]


def _reference(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model}@{revision}"


def _largest(value: Any) -> float:
    return float(max(value)) if isinstance(value, tuple) else float(value)


def _smallest(value: Any) -> float:
    return float(min(value)) if isinstance(value, tuple) else float(value)
