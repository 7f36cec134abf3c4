"""The Gram matrices of what the linear layers of a model see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def gram_matrices(model: Any, examples: Sequence[Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """G = Xᵀ X / tokens for every layer, X [tokens, in] being all its inputs. -> float32 [in, in], symmetric.

    RegMean (Jin et al. 2023), equation 2; per token as in MergeLM, so that the length of the texts does not weigh the
    parents. `examples`: rows of token ids, one at a time and so without padding. Products in float32, sums in float64.
    A layer that no token reached (an expert never chosen) gets zeros.
    """
    sums = {name: torch.zeros(_inputs(layer), _inputs(layer), dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def add(layer: Any, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0].detach().reshape(-1, _inputs(layer)).float()
            sums[name] += (inputs.T @ inputs).cpu()
            counts[name] += len(inputs)

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            for tokens in examples:
                model(tokens[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / max(1, counts[name])).float() for name, total in sums.items()}


def _inputs(layer: Any) -> int:
    """Number of inputs of a Linear, or of a Conv1D, which keeps its weight as [in, out]."""
    return int(layer.in_features if isinstance(layer, torch.nn.Linear) else layer.nx)
