"""Which entries of which parent enter: by variance (SCE), by importance (Arcee Fusion), by overlap (RAM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sce(origin: Tensor, points: Sequence[Tensor], select_topk: float = 1.0, uniform_below: float = 1e-6) -> Tensor:
    """Select, calculate, erase. k points and the base of one shape -> that shape.

    FuseChat (Wan et al. 2024), section 3.3, per tensor. Select: the fraction `select_topk` of the entries whose
    variance among parents is not zero, the largest first; of equal ones those that torch.topk on the CPU prefers.
    Calculate: the weight of a parent is its share of Σ δ² over the selected entries. Erase: entries against the sign of
    Σ_k δ_k, where 0 counts as +. The rest is averaged with its weights.

    Below a mean square of `uniform_below`, summed over parents, all weigh the same, as in the code that the authors
    gave to mergekit; 0 is the paper. One parent has no variance, so selecting less than all of it leaves the base.
    """
    if not points or origin.numel() == 0:
        return origin.clone()
    deltas = torch.stack([point - origin for point in points])
    if select_topk < 1.0:
        deltas = deltas * _most_varied(deltas, select_topk)
    energy = deltas.square().reshape(len(points), -1).mean(dim=1)
    whole = energy.sum()
    even = torch.full_like(energy, 1.0) / len(points)
    weights = even if whole.item() < uniform_below or whole == 0.0 else energy / whole
    majority = torch.where(deltas.sum(dim=0) >= 0.0, 1.0, -1.0).to(deltas.dtype)
    shares = weights.reshape(-1, *[1] * origin.dim()) * (deltas.sign() == majority)
    return origin + (deltas * shares).sum(dim=0) / shares.sum(dim=0).clamp(min=1e-6)


def _most_varied(deltas: Tensor, fraction: float) -> Tensor:
    """Mask of the entries with the largest variance among parents. [k, *shape] -> [*shape] of the same dtype."""
    variance = torch.var(deltas, dim=0, correction=0)
    mask = torch.zeros(variance.numel(), dtype=deltas.dtype)
    count = int(torch.count_nonzero(variance) * max(fraction, 0.0))
    mask[torch.topk(variance.reshape(-1).cpu(), count).indices] = 1.0
    return mask.reshape(variance.shape).to(deltas.device)


def arcee_fusion(origin: Tensor, point: Tensor) -> Tensor:
    """The base with the entries of one fine-tune that stand out. Both of one shape -> that shape.

    As in mergekit, arcee_fusion. Importance of an entry: |θ₁ - θ₀| times the divergence KL(softmax θ₁ ‖ softmax θ₀) of
    its row along the last dimension. Taken over are those of at least median + 1.5 (Q3 - Q1). A row of one entry has no
    divergence, so a tensor of such rows is taken over whole.
    The quartiles are exact (the entries at rank ⌊q (n - 1)⌋) for any size; mergekit estimates them from a random sample
    in tensors of more than 1,000,000 entries, which nobody can repeat.
    """
    if origin.numel() == 0:
        return origin.clone()
    delta = point - origin
    p, q = (torch.softmax(x, dim=-1) + 1e-8 for x in (point, origin))
    importance = delta.abs() * (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
    first, median, third = (_quantile(importance.reshape(-1), quarter) for quarter in (1, 2, 3))
    threshold = median + 1.5 * (third - first)
    # As in mergekit, the sum is float32 even where the parts are narrower.
    wide = torch.promote_types(origin.dtype, torch.float32)
    return origin.to(wide) + torch.where(importance >= threshold, delta, 0.0)


def _quantile(values: Tensor, quarter: int) -> Tensor:
    """The entry at rank ⌊quarter (n - 1) / 4⌋. [n] -> scalar."""
    rank = quarter * (values.numel() - 1) // 4
    return torch.kthvalue(values.float() if values.dtype.itemsize < 4 else values, rank + 1).values.to(values.dtype)


def ram(origin: Tensor, points: Sequence[Tensor], epsilon: float = 1e-5) -> Tensor:
    """What one parent alone changed is added whole, what several changed is averaged over those. One shape -> it.

    θ = θ₀ + Σ_k δ_k [|δ_k| > ε] / c, c the number of parents with |δ| > ε at the entry. As in mergekit, ram
    (Reinforced agent merging, arXiv:2601.13572). Changes of ε and less are left out.
    """
    deltas, changed, count = _changes(origin, points, epsilon)
    return origin + (deltas * changed / count.clamp(min=1)).sum(dim=0)


def ram_plus(
    origin: Tensor, points: Sequence[Tensor], r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5
) -> Tensor:
    """`ram`, with what parent k alone changed times 1 + r · min(ρ_k, alpha). One shape -> it.

    ρ_k: entries that k shares with others over entries that it alone changed, in this tensor; unbounded, so cut at
    alpha, where it shares all. As in mergekit, ramplus_tl (Reinforced agent merging, arXiv:2601.13572).
    """
    deltas, changed, count = _changes(origin, points, epsilon)
    shared, alone = ((changed & where).reshape(len(points), -1).sum(dim=1) for where in (count > 1, count == 1))
    ratio = (shared / alone.clamp(min=epsilon)).clamp(min=0.0, max=alpha)
    # Factors are float32, or the dtype of the tensors where that is wider, and so is the result, as in mergekit.
    factors = (1.0 + r * ratio).reshape(-1, *[1] * origin.dim())
    kept = deltas * changed
    update = kept * (count == 1) * factors + kept * (count > 1) / count.clamp(min=1)
    return origin + update.sum(dim=0)


def _changes(origin: Tensor, points: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Task vectors [k, *shape], where each is more than ε (bool), and how many of them are, [*shape]."""
    deltas = torch.stack([point - origin for point in points])
    changed = deltas.abs() > epsilon
    return deltas, changed, changed.sum(dim=0)
