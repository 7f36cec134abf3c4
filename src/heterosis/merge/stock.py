"""Between the base and its fine-tunes: Model Stock for many, nearswap for one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge.consensus import total
from heterosis.merge.sphere import HALF, inner, norm


def model_stock(origin: Tensor, points: Sequence[Tensor], filter_wise: bool = False, eps: float = 1e-6) -> Tensor:
    """From the base towards the average of N >= 2 fine-tunes, as far as the angle between them says. One shape -> it.

    Model Stock (Jang et al. 2024), equations 2 and 5: θ = t θ̄ + (1 - t) θ₀ with t = N cos φ / (1 + (N - 1) cos φ), φ
    the angle between two task vectors, cos φ averaged over all pairs as in mergekit. The angle is that of whole
    tensors, or `filter_wise` that of each row along the last dimension. t < 0 where task vectors point apart; where its
    denominator vanishes (two opposite ones) the base stays. A pair with |δ_i| |δ_j| < eps counts as more orthogonal
    than it is and so stays near the base, as in mergekit; eps = 0 is the paper. A zero task vector has cos φ = 0.
    """
    if len(points) < 2:
        raise RecipeError(f"model_stock needs two parents or more, got {len(points)}. Add a parent, or use linear.")
    dtype = origin.dtype
    length = origin.shape[-1] if filter_wise and origin.dim() > 1 else origin.numel()
    if origin.numel() == 0:
        return origin.clone()
    base = origin.reshape(-1, length)
    rows = [point.reshape(-1, length) for point in points]
    deltas = [row - base for row in rows]
    # Half precision rounds at every step, as mergekit does; otherwise scalars are float64.
    exact = dtype if dtype in HALF else torch.float64
    lengths = [norm(delta).to(exact) for delta in deltas]
    cosines = []
    for i, j in combinations(range(len(deltas)), 2):
        product = lengths[i] * lengths[j]
        scale = torch.where(product == 0.0, 1.0, product.clamp(min=eps))
        cosines.append((inner(deltas[i], deltas[j], products=exact).to(exact) / scale).clamp(-1.0, 1.0))
    cosine = torch.cat(cosines, dim=1).mean(dim=1, keepdim=True)
    denominator = 1.0 + (len(points) - 1) * cosine
    singular = denominator.abs() < 1e-6
    share = torch.where(singular, 0.0, len(points) * cosine / torch.where(singular, 1.0, denominator)).to(dtype)
    return (share * (total(rows) / len(points)) + (1.0 - share) * base).reshape(origin.shape)


def nearswap(origin: Tensor, point: Tensor, t: float) -> Tensor:
    """Towards the fine-tune the more, the closer it is to the base, entry by entry. Both of one shape -> that shape.

    w = min(t / |θ₁ - θ₀|, 1) and θ = w θ₁ + (1 - w) θ₀: entries that differ by t or less are taken over, others move by
    t. As in mergekit, nearswap (alchemonaut 2024), where differences count as 1e-6 at least. t = 0 is the base.
    """
    distance = (origin - point).abs().clamp(min=1e-6)
    share = (t / distance).clamp(min=0.0, max=1.0)
    return share * point + (1.0 - share) * origin
