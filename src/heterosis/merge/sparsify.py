"""Which entries of a task vector stay: trim by magnitude (TIES, Breadcrumbs), drop at random (DARE, DELLA)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from heterosis.merge.masks import INT32_MIN, counter_hash, tie_hash


def trim_mask(
    delta: Tensor, index: Tensor, upper: Tensor | float, lower: Tensor | float, cut: Tensor | int, key: Tensor | int
) -> Tensor:
    """Entries among the largest magnitudes. delta float32, index int32, one shape -> bool of it.

    TIES (Yadav et al. 2023), section 3, step 1. Task vectors of bf16 checkpoints hold many equal magnitudes, so a
    threshold alone cannot keep an exact fraction: what exceeds `lower` but not `upper` stays where its hash reaches
    `cut`.
    """
    return delta.abs() > torch.where(tie_hash(index, key) >= cut, lower, upper)


def drop_mask(index: Tensor, threshold: Tensor | int, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Entries that survive the random drop. index int32 -> bool of its shape.

    DARE (Yu et al. 2024), equation 1: m ~ Bernoulli(p), kept where m = 0.
    """
    return counter_hash(index, low, high) >= threshold


def trim(delta: Tensor, kept: Tensor) -> Tensor:
    """Zero what is not kept. Both of one shape."""
    return torch.where(kept, delta, 0.0)


def rescale_factor(p: float, rescale: str | float) -> float:
    """Factor on the survivors of drop rate p.

    `inverse_keep` is DARE's 1/(1-p), which keeps the expectation (equation 2); `none` is the paper's DropOnly;
    a number is DAREx (Deng et al. 2025).
    """
    if rescale == "inverse_keep":
        return 1.0 / (1.0 - p)
    return 1.0 if rescale == "none" else float(rescale)


def ranked_drop_rates(delta: Tensor, p: float, epsilon: float) -> Tensor:
    """Drop rate of each entry by its rank in its row: p + ε for the smallest magnitude, p - ε for the largest.

    delta [rows, n], or [n] as one row -> float64 of the same shape. DELLA (Deep et al. 2024), section 3.1 (MagPrune):
    rates fall linearly with rank. `epsilon` is half the window, as in mergekit; the paper's ε is the whole of it.
    """
    rows = delta.reshape(-1, delta.shape[-1]) if delta.dim() > 1 else delta.reshape(1, -1)
    steps = torch.arange(rows.shape[1], dtype=torch.float64, device=delta.device) / max(rows.shape[1] - 1, 1)
    rates = torch.empty(rows.shape, dtype=torch.float64, device=delta.device)
    rates.scatter_(1, _ascending(rows), (p + epsilon - 2.0 * epsilon * steps).expand_as(rates))
    return rates.reshape(delta.shape)


def _ascending(rows: Tensor) -> Tensor:
    """Columns of each row by rising magnitude, equal ones in their order. [rows, n] float32 -> int64."""
    columns = torch.arange(rows.shape[1], dtype=torch.int64, device=rows.device)
    keys = (rows.abs().view(torch.int32).to(torch.int64) << 32) | columns
    if rows.device.type == "cpu":  # NumPy sorts numbers several times faster than PyTorch sorts rows
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda part: part.numpy().sort(axis=1), keys.chunk(torch.get_num_threads())))
    else:
        keys = keys.sort(dim=1).values
    return keys.bitwise_and_(0xFFFFFFFF)


def ranked_drop(delta: Tensor, index: Tensor, rates: Tensor, low: int, high: int, rescale: str | float) -> Tensor:
    """Drop each entry with its own rate and rescale the survivors. All [n] -> [n] float32.

    DELLA, section 3.1: survivors are divided by 1 - p_i, which keeps the expectation entry by entry. Where all rates
    are equal this is DARE, mask for mask.
    """
    cut = (rates * 2.0**32).to(torch.int64).clamp_(0, 2**32 - 1).add_(INT32_MIN).to(torch.int32)
    kept = counter_hash(index, low, high) >= cut
    if rescale == "inverse_keep":
        return trim(delta / (1.0 - rates).to(delta.dtype), kept)
    return trim(delta * rescale_factor(0.0, rescale), kept)
