"""Which entries of a task vector stay: trim by magnitude (TIES), drop at random (DARE)."""

from __future__ import annotations

import torch
from torch import Tensor

from heterosis.merge.masks import counter_hash


def trim_mask(delta: Tensor, index: Tensor, value: Tensor, cut: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Entries among the largest magnitudes. delta [n] float32 -> bool [n].

    TIES (Yadav et al. 2023), section 3, step 1. Task vectors of bf16 checkpoints hold many equal magnitudes, so a
    threshold alone cannot keep an exact fraction: entries at the threshold `value` stay when their hash reaches `cut`.
    """
    magnitude = delta.abs()
    return (magnitude > value) | ((magnitude == value) & (counter_hash(index, low, high) >= cut))


def drop_mask(index: Tensor, threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Entries that survive the random drop. index [n] int32 -> bool [n].

    DARE (Yu et al. 2024), equation 1: m ~ Bernoulli(p), kept where m = 0.
    """
    return counter_hash(index, low, high) >= threshold


def trim(delta: Tensor, kept: Tensor) -> Tensor:
    """Zero what is not kept. Both [n]."""
    return torch.where(kept, delta, 0.0)


def rescale_factor(p: float, rescale: str | float) -> float:
    """Factor on the survivors of drop rate p.

    `inverse_keep` is DARE's 1/(1-p), which keeps the expectation (equation 2); `none` is the paper's DropOnly;
    a number is DAREx (Deng et al. 2025).
    """
    if rescale == "inverse_keep":
        return 1.0 / (1.0 - p)
    return 1.0 if rescale == "none" else float(rescale)
