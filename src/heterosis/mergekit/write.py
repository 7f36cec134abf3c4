"""Recipes as mergekit YAML, with every difference that mergekit cannot express named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import yaml

from heterosis.checkpoints.layout import LAYER, Layout
from heterosis.errors import RecipeError
from heterosis.merge.methods import METHODS, depth_factor
from heterosis.mergekit.schema import Reference
from heterosis.mergekit.terms import CONTRACTS, Contract
from heterosis.recipe import Parameters, Recipe, Source

# Methods that mergekit has under another name, with what makes them the same there.
ALIASES = {"lines": "task_arithmetic", "magnitude": "breadcrumbs"}
Value = Callable[[str], Any]


class Translated(NamedTuple):
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


class Part(NamedTuple):
    """Layers of the merge that one slice gives, and the first layer of each member in it."""

    first: int
    last: int
    starts: Mapping[str, int]


def to_mergekit(recipe: Recipe, tensor_names: Sequence[str]) -> Translated:
    """Translate a recipe over the tensors of its merge. RecipeError where mergekit has no such method at all."""
    name = ALIASES.get(recipe.method, recipe.method)
    contract = CONTRACTS.get(name)
    if contract is None:
        raise RecipeError(f"mergekit has no method like {recipe.method}, so the recipe cannot be written for it.")
    layout = Layout(tensor_names, recipe.groups)
    writer = _Writer(recipe, contract, layout)
    content: dict[str, Any] = {"merge_method": name}
    if recipe.stack is None:
        content["models"] = [writer.model(source, None) for source in writer.inputs()]
    else:
        content["slices"] = [writer.slice(part) for part in _parts(recipe.stack)]
    if writer.names_base:
        content["base_model"] = _reference(recipe.base if writer.base is None else writer.base)
    if recipe.stack is None and (shared := writer.shared(None)):
        content["parameters"] = shared
    content |= {"dtype": recipe.arithmetic or "float32", "out_dtype": recipe.dtype}
    content |= _vocabulary(recipe)
    return Translated(content, _differences(recipe, contract) + _places(layout, content, recipe.compat is None))


class _Writer:
    """Writes one recipe's models and parameters."""

    def __init__(self, recipe: Recipe, contract: Contract, layout: Layout) -> None:
        self.recipe, self.contract, self.layout = recipe, contract, layout
        self.base: Source | None = None
        if recipe.method == "slerp" and len(recipe.parents) == 2:
            self.base = recipe.parents[0]
        apart = contract.needs_base or any(given.get("around_base") for given in recipe.settings.values())
        self.names_base = contract.sets_base_apart and apart

    def inputs(self) -> list[Source]:
        """Models to list, the base among them where mergekit wants it there."""
        return [self.recipe.base, *self.recipe.parents] if self._lists_base() else list(self.recipe.parents)

    def _lists_base(self) -> bool:
        return self.names_base and self.base is None and self.contract.name in ("slerp", "model_stock", "nearswap")

    def model(self, source: Source, part: Part | None) -> dict[str, Any]:
        """One entry of `models`, or of a slice's `sources`."""
        entry: dict[str, Any] = {"model": _reference(source)}
        if part is not None:
            member = "base" if source is self.recipe.base else source.name
            start = part.starts[member]
            entry["layer_range"] = [start, start + part.last - part.first]
        if source is not self.recipe.base and (own := self._own(source, part)):
            entry["parameters"] = own
        return entry

    def slice(self, part: Part) -> dict[str, Any]:
        """One slice of a stack."""
        sources = [s for s in self.recipe.parents if s.name in part.starts]
        if "base" in part.starts and self.names_base:
            sources.insert(0, self.recipe.base)  # mergekit forgets whoever comes late behind the last slice
        shared = self.shared(part)
        return {"sources": [self.model(s, part) for s in sources]} | ({"parameters": shared} if shared else {})

    def _own(self, source: Source, part: Part | None) -> dict[str, Any]:
        by_group = self.recipe.parameters.get(source.name, {})

        def gene(read: Callable[[Parameters], Any]) -> Any:
            return self._setting(lambda group: read(by_group.get(group, Parameters())), part)

        found = {}
        if self.contract.weight is not None:
            found["weight"] = gene(self._weight)
        thins = self.contract.thins
        if thins == "trim":
            found["density"] = gene(lambda p: p.density)
        elif thins in ("drop", "rank"):
            found["density"] = gene(lambda p: _zip(lambda d, q: (1.0 - q) * d, p.density, p.drop))
        elif thins == "band":
            found["density"] = gene(lambda p: p.density)
            found["gamma"] = gene(lambda p: p.gamma)
        if thins == "rank":
            found["epsilon"] = gene(lambda p: p.epsilon)
        return found

    def _weight(self, parameters: Parameters) -> Any:
        if any(given.get("prune_rescale") for given in self.recipe.settings.values()):
            return _zip(lambda w, d: w / d if d > 0.0 else w, parameters.weight, parameters.density)
        return parameters.weight

    def shared(self, part: Part | None) -> dict[str, Any]:
        """Parameters of the merge as a whole."""
        found: dict[str, Any] = {}
        if self.contract.name == "slerp":
            found["t"] = self._setting(self._t, part)
        if self.contract.normalizes is not None:
            found["normalize"] = self.recipe.divisor != "none"
        if self.contract.thins:
            found["rescale"] = self._rescales()
        for each in self.contract.shared:
            value = self._setting(partial(self._value, each.ours), part)
            if value != each.default:
                found[each.theirs] = value
        return found

    def _rescales(self) -> bool:
        """`inverse_keep` is nearest to mergekit's rescaling, where anything is dropped."""
        return self.recipe.rescale == "l1" or (
            self.recipe.rescale == "inverse_keep" and self.contract.thins in ("drop", "rank")
        )

    def _value(self, name: str, group: str) -> Any:
        given = {**METHODS[self.recipe.method].settings, **self.recipe.settings.get(group, {})}
        if name != "scale" or "beta" not in given:
            return given.get(name)
        layers = range(self.layout.layers)
        return tuple(depth_factor({k: _at(v, i) for k, v in given.items()}, i, self.layout.layers) for i in layers)

    def _t(self, group: str) -> Any:
        numbers = [self.recipe.parameters.get(p.name, {}).get(group, Parameters()).weight for p in self.recipe.parents]
        if len(numbers) == 1:
            return numbers[0]
        return _zip(lambda a, b: b / (a + b), *numbers)

    def _setting(self, value: Value, part: Part | None) -> Any:
        """A number, a gradient over the layers, or a list of filters with one of these each."""
        found = {group: _within(value(group), part) for group in self.layout.used_groups()}
        if all(each == next(iter(found.values())) and not isinstance(each, list) for each in found.values()):
            return next(iter(found.values()))
        if len(found) == 1 and all(place.layer is not None for place in self.layout.places.values()):
            return next(iter(found.values()))
        entries = []
        for group, each in found.items():
            entries += [{"filter": at, "value": self._outside(each, at)} for at in _filters(self.layout, group)]
        return entries

    def _outside(self, value: Any, name: str) -> Any:
        """mergekit gives tensors outside the layers the first value of a list, whichever end they are at."""
        place = self.layout.places.get(name)
        if place is None or not isinstance(value, list):
            return value
        return value[0] if place.at_input else value[-1]


def _parts(stack: Mapping[str, tuple[int | None, ...]]) -> Iterator[Part]:
    """Longest runs of layers in which every member goes on by one layer each time."""
    length = len(next(iter(stack.values())))
    first = 0
    for i in range(1, length + 1):
        goes_on = i < length and all(_follows(layers[i - 1], layers[i]) for layers in stack.values())
        if not goes_on:
            starts = {member: at for member, layers in stack.items() if (at := layers[first]) is not None}
            yield Part(first, i, starts)
            first = i


def _follows(one: int | None, two: int | None) -> bool:
    return two == (None if one is None else one + 1)


def _within(value: Any, part: Part | None) -> Any:
    if not isinstance(value, tuple):
        return value
    inside = list(value) if part is None else list(value[part.first : part.last])
    return inside[0] if all(each == inside[0] for each in inside) else inside


def _filters(layout: Layout, group: str) -> list[str]:
    """Substrings that select a group's tensors: what follows the layer number, or the whole name outside the layers."""
    found = []
    for name, place in layout.places.items():
        if place.group == group:
            layer = LAYER.search(name)
            found.append(f".{name[layer.end() :]}" if layer else name)
    return list(dict.fromkeys(found))


def _zip(function: Callable[[float, float], float], one: Any, two: Any) -> Any:
    """Layer by layer where either is a profile."""
    if not isinstance(one, tuple) and not isinstance(two, tuple):
        return function(one, two)
    length = len(one) if isinstance(one, tuple) else len(two)
    return tuple(function(_at(one, i), _at(two, i)) for i in range(length))


def _at(value: Any, layer: int) -> Any:
    return value[layer] if isinstance(value, tuple) else value


def _reference(source: Source) -> str:
    return str(Reference(source.model, source.revision, source.adapter, source.adapter_revision))


def _vocabulary(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    references = {"base": _reference(recipe.base), **{p.name: _reference(p) for p in recipe.parents}}
    if (given := recipe.vocabulary) is not None:
        source = given.source if given.source in ("base", "union") else references[given.source]
        tokens = {}
        for token, row in given.tokens.items():
            if row.kind == "model":
                origin: Any = None if row.member is None else references[row.member]
            else:
                origin = row.model_dump(include={"kind", "token", "token_id"}, exclude_none=True)
                origin |= {"model": references[row.member]} if row.member else {}
            tokens[token] = {"source": origin, "force": row.force}
        found["tokenizer"] = {
            "source": source,
            "tokens": tokens or None,
            "pad_to_multiple_of": given.pad_to_multiple_of,
        }
        found["tokenizer"] = {key: value for key, value in found["tokenizer"].items() if value is not None}
    if recipe.chat_template is not None:
        found["chat_template"] = recipe.chat_template
    return found


def _places(layout: Layout, content: Mapping[str, Any], ours: bool) -> list[str]:
    """What mergekit's filters and slices cannot tell apart. `ours`: the recipe does not come from mergekit's rules."""
    found = []
    owners: dict[str, set[str]] = {}
    for name, place in layout.places.items():
        if layer := LAYER.search(name):
            owners.setdefault(name[layer.end() :], set()).add(place.group)
    if any(len(groups) > 1 for groups in owners.values()):
        found.append("mergekit's filters do not tell layers apart, as these groups do")
    slices = content.get("slices")
    if ours and slices and len(slices[-1]["sources"]) > len(slices[0]["sources"]):
        found.append("behind the layers mergekit takes no more models than its first slice has")
    return found


def _differences(recipe: Recipe, contract: Contract) -> list[str]:
    method = METHODS[recipe.method]
    numbers = [p for by_group in recipe.parameters.values() for p in by_group.values()]
    drops = any(_largest(p.drop) > 0.0 for p in numbers)
    trims = method.trims and any(_smallest(p.density) < 1.0 for p in numbers)
    found = []
    if drops and contract.thins in ("drop", "rank"):
        found.append("mergekit draws other random masks")
    elif drops:
        found.append(f"mergekit does not drop at random in front of {recipe.method}")
    if recipe.compat is not None:
        return found
    if drops and recipe.rescale == "inverse_keep":
        found.append("mergekit rescales to the L1 norm instead of by 1/(1-p)")
    elif drops and recipe.rescale != "none":
        found.append(f"mergekit has no rescale: {recipe.rescale}")
    if trims and contract.thins == "drop":
        found.append("mergekit drops at random instead of trimming by magnitude: density stands for (1-p)·d")
    elif trims:
        found.append("where magnitudes are equal, mergekit may keep others of them")
    if trims and recipe.trim_scope == "model":
        found.append("mergekit trims per tensor, not over the whole task vector")
    return found + _combination_differences(recipe, method.combine, numbers)


def _combination_differences(recipe: Recipe, combine: Any, numbers: Sequence[Parameters]) -> list[str]:
    found = []
    if combine == "ties":
        if recipe.divisor in ("count", "weight"):
            found.append("mergekit divides by the sum of agreeing weights, not by the number of agreeing parents")
        if recipe.zero_sign == "majority":
            found.append("where signs cancel exactly mergekit takes +, not the tensor's majority sign")
        if recipe.election != "weighted":
            found.append(f"mergekit elects by weighted task vectors, not {recipe.election}")
    if recipe.method == "karcher" and len({p.weight for p in numbers}) > 1:
        found.append("mergekit's Karcher mean weighs all models equally")
    return found


def _largest(value: Any) -> float:
    return float(max(value)) if isinstance(value, tuple) else float(value)


def _smallest(value: Any) -> float:
    return float(min(value)) if isinstance(value, tuple) else float(value)
