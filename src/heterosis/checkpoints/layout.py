"""From a tensor's name to its place: which layer it belongs to, and which group of genes governs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from heterosis.errors import RecipeError

# `model.layers.3.mlp…`, `transformer.h.3.attn…`, `gpt_neox.layers.3…`, `model.decoder.layers.3…`, `blocks.3…`
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
INPUT_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|wpe|embed_in|word_embeddings|embed_positions|tok_embeddings)"
)

EMBEDDINGS = r"(^|\.)(embed_tokens|wte|wpe|embed_in|word_embeddings|embed_positions|tok_embeddings)"
HEAD = (
    r"^(lm_head|embed_out|output)\."
    r"|^(model|transformer|gpt_neox|model\.decoder)\.(norm|ln_f|final_layer_norm|final_layernorm)\."
)
ATTENTION = r"(self_attn|attention|attn)\."
MLP = r"(mlp|feed_forward|block_sparse_moe)\."
NORMS = r"norm|(^|\.)ln_"

# Named patterns that a search space may use; a pattern of the user's own works the same way.
NAMED_GROUPS: Mapping[str, str] = {
    "embeddings": EMBEDDINGS,
    "head": HEAD,
    "attention": ATTENTION,
    "mlp": MLP,
    "norms": NORMS,
    "body": ".*",
}
DEFAULT_GROUPS: Mapping[str, str] = {key: NAMED_GROUPS[key] for key in ("embeddings", "head", "body")}


class Place(NamedTuple):
    """Where a tensor sits: its group, and its layer (None outside the layers)."""

    group: str
    layer: int | None
    at_input: bool

    def depth(self, layers: int) -> int:
        """Index into a list with one value per layer. Outside the layers: the first or the last value."""
        if self.layer is not None:
            return self.layer
        return 0 if self.at_input else layers - 1


class Layout:
    """The places of all tensors of a model under one partition into groups (first matching pattern wins)."""

    def __init__(self, names: Iterable[str], groups: Mapping[str, str]) -> None:
        try:
            patterns = {group: re.compile(pattern) for group, pattern in groups.items()}
        except re.error as error:
            raise RecipeError(f"groups: {error.pattern!r} is not a regular expression ({error}).") from error
        self.places: dict[str, Place] = {}
        for name in names:
            group = next((g for g, pattern in patterns.items() if pattern.search(name)), None)
            if group is None:
                raise RecipeError(f"groups: no pattern matches {name}. End the groups with one that matches all: .*")
            layer = LAYER.search(name)
            self.places[name] = Place(
                group, int(layer.group(1)) if layer else None, bool(INPUT_EMBEDDING.search(name)) and layer is None
            )
        self.layers = 1 + max((p.layer for p in self.places.values() if p.layer is not None), default=0)

    def has_layers(self, group: str) -> bool:
        """Whether any tensor of this group lies inside the layers."""
        return any(p.group == group and p.layer is not None for p in self.places.values())

    def used_groups(self) -> list[str]:
        """Groups that hold at least one tensor, in order of first appearance."""
        return list(dict.fromkeys(place.group for place in self.places.values()))


def storage_order(names: Iterable[str]) -> list[str]:
    """Names in the order of a forward pass: input embedding, layers by number, then the rest.

    Engines that fuse tensors (q, k, v into one) need a layer's tensors to arrive together.
    """

    def position(name: str) -> tuple[int, int, str]:
        layer = LAYER.search(name)
        if layer:
            return (1, int(layer.group(1)), name)
        return (0 if INPUT_EMBEDDING.search(name) else 2, 0, name)

    return sorted(names, key=position)
