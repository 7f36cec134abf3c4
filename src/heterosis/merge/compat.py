"""Merging with mergekit's choices in place of the papers': for published mergekit configurations.

Where the two differ, mergekit (0.1.5) computes in the configured dtype instead of float32, keeps at least one entry
of a trimmed tensor, gives + to elections that tie, divides by the sum of the agreeing λ, and rescales to the L1 norm
from before pruning. Random masks stay ours: those of mergekit come from one global stream and cannot be had again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heterosis.merge.masks import INT32_MIN, Key, counter_hash, counters
from heterosis.merge.methods import Method
from heterosis.merge.whole import Inputs

# Below these norms mergekit does not rescale, and below this sum it does not normalise.
SMALL_NORM, SMALL_SUM = 1e-7, 1e-8
Keep = Callable[[Tensor, Tensor], Tensor]


def merge(
    method: Method,
    base: Tensor,
    parents: Sequence[Tensor],
    numbers: Sequence[Mapping[str, float]],
    keys: Sequence[Key],
    settings: Mapping[str, Any],
    divisor: str,
    rescale: str | float,
    arithmetic: torch.dtype,
) -> Tensor:
    """Merge one tensor as mergekit does. base and parents: one shape; result: that shape in `arithmetic`.

    numbers: weight, density, drop, gamma, epsilon of each parent; keys: of their random masks.
    """
    origin = base.to(arithmetic)
    points = [parent.to(arithmetic) for parent in parents]
    weights = [row["weight"] for row in numbers]
    if callable(method.combine):
        return method.combine(Inputs(origin, points, [p - origin for p in points], weights, settings, as_mergekit=True))
    if method.name == "passthrough":
        return points[0] if settings["scale"] == 1.0 else points[0] * settings["scale"]
    if method.combine == "mean":
        return _average(points, weights, settings["normalize"])
    deltas = torch.stack(
        [
            _sparse(method, point - origin, row, key, rescale == "l1")
            for point, row, key in zip(points, numbers, keys, strict=True)
        ]
    )
    column = torch.tensor(weights, dtype=arithmetic).reshape(-1, *[1] * base.dim())
    normalize = settings["normalize"] if method.combine == "sum" else divisor != "none"
    update = _combine(deltas * column, column, method.combine == "ties", normalize)
    if settings["scale"] != 1.0:
        update = update * settings["scale"]
    return origin + update


def _average(points: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Accumulated in float32 whatever the tensors are in."""
    total = torch.zeros(points[0].shape, dtype=torch.float32)
    for point, weight in zip(points, weights, strict=True):
        total.addcmul_(point, torch.tensor(weight, dtype=torch.float32))
    if normalize:
        total = total / torch.tensor(weights, dtype=torch.float32).sum()
    return total.to(points[0].dtype)


def _combine(weighted: Tensor, weights: Tensor, elects: bool, normalize: bool) -> Tensor:
    """[k, *shape] -> [*shape]: sum, or the sum of those that agree with the sign of the sum, 0 counting as +."""
    if not elects:
        share = weights.sum(dim=0)
        update = weighted.sum(dim=0)
        return update / torch.where(share.abs() < SMALL_SUM, 1.0, share) if normalize else update
    majority = torch.where(weighted.sum(dim=0) >= 0, 1, -1)
    chosen = (weighted.sign() == majority).to(weighted.dtype)
    update = (weighted * chosen).sum(dim=0)
    if not normalize:
        return update
    share = (weights * chosen).sum(dim=0)
    return update / torch.where(share == 0, 1.0, share)


def _sparse(method: Method, delta: Tensor, row: Mapping[str, float], key: Key, matches_norm: bool) -> Tensor:
    if method.prunes == "by_rank":
        mask = _random(delta, _keep_by_rank(delta, 1.0 - row["drop"], row["epsilon"]), key) if row["drop"] > 0 else None
    elif row["drop"] > 0.0:
        mask = _random(delta, torch.full(delta.shape, 1.0 - row["drop"], dtype=torch.float64), key)
    elif method.prunes == "small_and_large":
        mask = _band(delta, row["density"], row["gamma"])
    elif method.trims:
        mask = _largest(delta, row["density"])
    else:
        mask = None
    if mask is None:
        return delta
    pruned = delta * mask.to(delta.dtype)
    before, after = delta.abs().sum(), pruned.abs().sum()
    if not matches_norm or before < SMALL_NORM or after < SMALL_NORM:
        return pruned
    return pruned * (before / after)


def _largest(delta: Tensor, density: float) -> Tensor | None:
    """int(density · n) entries, at least one unless density is 0; of equal ones those that sorting puts first."""
    if density >= 1.0:
        return None
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    if density > 0.0 and delta.numel():
        order = torch.argsort(delta.abs().reshape(-1).float(), descending=True)
        mask[order[: max(1, int(density * delta.numel()))]] = True
    return mask.reshape(delta.shape)


def _band(delta: Tensor, density: float, gamma: float) -> Tensor | None:
    """int(density · n) entries below the int(gamma · n) largest; fewer of the largest go where both are too many."""
    if density >= 1.0:
        return None
    wanted = int(density * delta.numel())
    first = max(0, delta.numel() - wanted - int(gamma * delta.numel()))
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[torch.sort(delta.abs().reshape(-1).float()).indices[first : first + wanted]] = True
    return mask.reshape(delta.shape)


def _keep_by_rank(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Probabilities from density - ε to density + ε by rank in the row. float64."""
    rows = delta.reshape(-1, delta.shape[-1]) if delta.dim() > 1 else delta.reshape(1, -1)
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(torch.float64)
    spread = ranks / max(rows.shape[1] - 1, 1)
    return (density - epsilon + 2.0 * epsilon * spread).reshape(delta.shape)


def _random(delta: Tensor, keep: Tensor, key: Key) -> Tensor:
    """Mask that keeps each entry with its own probability; the hash of DARE's masks, so they are nested and ours."""
    draws = counter_hash(counters(0, delta.numel(), delta.device), key.low, key.high).to(torch.float64)
    uniform = (draws - INT32_MIN) / 2.0**32
    return (uniform >= 1.0 - keep.reshape(-1)).reshape(delta.shape)
