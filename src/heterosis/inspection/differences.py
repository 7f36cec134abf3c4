"""What keeps models from being one family, listed without refusing any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch

from heterosis.checkpoints import Adapter, TensorSource
from heterosis.checkpoints.family import FORWARD_KEYS
from heterosis.checkpoints.vocabulary import vocabulary

Kind = Literal["config", "tokens moved", "missing", "extra", "shape", "dtype", "tokens added"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Difference(NamedTuple):
    """One thing that a parent has otherwise than the base."""

    parent: str
    kind: Kind
    name: str
    """The tensor, the key of config.json, or the tokens"""
    base: str | None
    theirs: str | None

    @property
    def harmless(self) -> bool:
        """Whether the models merge all the same: arithmetic is in float32 however a tensor is stored."""
        return self.kind in ("dtype", "tokens added")


def differences(base: TensorSource, parents: Mapping[str, TensorSource]) -> list[Difference]:
    """All that differs between the base and each parent, parent by parent and kind by kind; nothing is refused."""
    found: list[Difference] = []
    for name, parent in parents.items():
        own = [*_configs(base, parent, name), *_tokens(base, parent, name), *_tensors(base, parent, name)]
        found += sorted(own, key=lambda one: KINDS.index(one.kind))
    return found


def comparable(base: TensorSource, parent: TensorSource) -> set[str]:
    """Tensors that both hold in one shape."""
    return {name for name in base.specs.keys() & parent.specs if parent.specs[name].shape == base.specs[name].shape}


def _tensors(base: TensorSource, parent: TensorSource, name: str) -> Iterator[Difference]:
    for tensor in sorted({*base.specs, *parent.specs}):
        ours, theirs = base.specs.get(tensor), parent.specs.get(tensor)
        if theirs is None:
            yield Difference(name, "missing", tensor, str(list(base.specs[tensor].shape)), None)
        elif ours is None:
            yield Difference(name, "extra", tensor, None, str(list(theirs.shape)))
        elif ours.shape != theirs.shape:
            yield Difference(name, "shape", tensor, str(list(ours.shape)), str(list(theirs.shape)))
        elif ours.dtype != theirs.dtype and not isinstance(parent, Adapter):  # which has no storage of its own
            yield Difference(name, "dtype", tensor, _dtype(ours.dtype), _dtype(theirs.dtype))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _configs(base: TensorSource, parent: TensorSource, name: str) -> Iterator[Difference]:
    if base.tied != parent.tied:
        yield Difference(name, "config", "tie_word_embeddings", str(base.tied), str(parent.tied))
    ours, theirs = _forward(base.config), _forward(parent.config)
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            yield Difference(name, "config", key, str(ours[key]), str(theirs[key]))


def _forward(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the forward pass, with the rotary base wherever its version of the format has it."""
    said = {key: config[key] for key in FORWARD_KEYS if key in config}
    nested = config.get("rope_parameters")
    for place in (nested, config):
        if isinstance(place, dict) and "rope_theta" in place:
            said["rope_theta"] = place["rope_theta"]
    return said


def _tokens(base: TensorSource, parent: TensorSource, name: str) -> Iterator[Difference]:
    ours, theirs = vocabulary(base.folder), vocabulary(parent.folder)
    if ours is None or theirs is None:
        return
    moved = [token for token in ours if theirs.get(token) != ours[token]]
    if moved:
        first = moved[0]
        there = str(theirs[first]) if first in theirs else None
        yield Difference(name, "tokens moved", f"{len(moved)}, first {first!r}", str(ours[first]), there)
    added = [token for token in theirs if token not in ours]
    if added:
        yield Difference(name, "tokens added", f"{len(added)}, first {added[0]!r}", None, str(theirs[added[0]]))
