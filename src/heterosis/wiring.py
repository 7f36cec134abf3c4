"""Which tensor of which member goes into each tensor of a merge: one to one, or by a stack of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from heterosis.checkpoints import TensorSource
from heterosis.checkpoints.layout import INPUT_EMBEDDING, LAYER, storage_order
from heterosis.errors import RecipeError

Inputs = Mapping[str, str]
Stack = Mapping[str, tuple[int | None, ...]]


class Wiring(NamedTuple):
    """Name of each merged tensor, in storage order -> member name -> name of that member's tensor."""

    inputs: Mapping[str, Inputs]
    shapes: Mapping[str, tuple[int, ...]]


def wire(stack: Stack | None, members: Mapping[str, TensorSource]) -> Wiring:
    """Wire opened members (`base` and the parents), layer by layer or as a stack says."""
    found: dict[str, dict[str, str]] = {}
    for member, source in members.items():
        for merged, name in _taken(stack, member, source):
            found.setdefault(merged, {})[member] = name
    names = storage_order(found)
    shapes = {name: _shape(found[name], members) for name in names}
    return Wiring({name: found[name] for name in names}, shapes)


def _taken(stack: Stack | None, member: str, source: TensorSource) -> list[tuple[str, str]]:
    """(name in the merge, name in the member) of every tensor that the member gives."""
    if stack is None:
        return [(name, name) for name in source.specs]
    order = stack.get(member)
    if order is None:
        return []
    depth = 1 + max((int(at.group(1)) for at in map(LAYER.search, source.specs) if at), default=0)
    if beyond := [layer for layer in order if layer is not None and layer >= depth]:
        raise RecipeError(f"stack.{member}: layer {beyond[0]} does not exist; the model has {depth} layers.")
    places: dict[int, list[int]] = {}
    for i, layer in enumerate(order):
        if layer is not None:
            places.setdefault(layer, []).append(i)
    pairs = []
    for name in source.specs:
        at = LAYER.search(name)
        if at is None:
            end = order[0 if INPUT_EMBEDDING.search(name) else -1]
            pairs += [(name, name)] if end is not None else []
        else:
            head, tail = name[: at.start(1)], name[at.end(1) :]
            pairs += [(f"{head}{i}{tail}", name) for i in places.get(int(at.group(1)), ())]
    return pairs


def _shape(inputs: Inputs, members: Mapping[str, TensorSource]) -> tuple[int, ...]:
    member, name = next(iter(inputs.items()))
    return members[member].specs[name].shape
