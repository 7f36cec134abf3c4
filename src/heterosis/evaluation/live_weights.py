"""What a live vLLM model holds, summed up so that it can be held against what it was given.

vLLM fuses, transposes, pads and packs what it loads, and an error of its loaders or ours would show in a score alone.
The multiset checksum survives all of that, so the sum over the live model is the sum over the merge, to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from heterosis.errors import CanaryError
from heterosis.evaluation.observed import WORD, multiset_checksum

# Layer, by id -> checksum of its own parameters when it was packed.
Packed = dict[int, int]


@contextlib.contextmanager
def watch_packing(model: nn.Module) -> Iterator[Packed]:
    """Checksums of the layers that are packed while the block runs, taken just before.

    vLLM's CPU build keeps linear layers in a form that cannot be read back, and drops the parameters.
    """
    packed: Packed = {}
    found: list[Any] = [getattr(layer, "quant_method", None) for layer in model.modules()]
    methods = {id(method): method for method in found if method is not None}

    def watched(pack: Any) -> Any:
        def observe_and_pack(layer: nn.Module) -> None:
            packed[id(layer)] = _own_checksum(layer)
            pack(layer)

        return observe_and_pack

    for method in methods.values():
        method.process_weights_after_loading = watched(method.process_weights_after_loading)
    try:
        yield packed
    finally:
        for method in methods.values():
            del method.process_weights_after_loading  # the instance's; that of its class is left


def live_checksum(model: nn.Module, packed: Packed) -> int:
    """Multiset checksum of all parameters: as they lie in memory, or where they no longer do, as they were packed."""
    total, counted = 0, set()
    for layer in model.modules():
        own = list(layer.parameters(recurse=False))
        if id(layer) in packed and any(parameter.numel() == 0 for parameter in own):
            total += packed[id(layer)]
            continue
        for parameter in own:
            if id(parameter) not in counted:  # a tied head is the embedding
                counted.add(id(parameter))
                total += multiset_checksum(parameter)
    return total % WORD


def check_tied_head(model: Any, packed: Packed) -> None:
    """CanaryError if the packed copy that a tied head answers from is not of the embedding as it is."""
    head: Any = getattr(model, "lm_head", None)
    if not hasattr(head, "cpu_linear") or not getattr(model.config, "tie_word_embeddings", False):
        return
    if packed.get(id(head)) != _own_checksum(head):
        raise CanaryError(
            "canary: the tied output head still answers from the embedding of an earlier merge. The swap did not take; "
            "the candidate is not scored."
        )


def _own_checksum(layer: nn.Module) -> int:
    return sum(multiset_checksum(parameter) for parameter in layer.parameters(recurse=False)) % WORD
