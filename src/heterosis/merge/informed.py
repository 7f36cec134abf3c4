"""Merges that weigh parents by what was measured on texts: Fisher-weighted averaging and RegMean.

Both are computed in float64 and returned in the dtype of the points, so that one parent, or equal parents, come back
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heterosis.errors import CheckpointError, RecipeError
from heterosis.merge.consensus import total


def fisher_mean(
    points: Sequence[Tensor],
    fishers: Sequence[Tensor],
    weights: Sequence[float],
    floor: float = 1e-6,
    normalize: bool = False,
    norms: Sequence[float] | None = None,
) -> Tensor:
    """θ = Σ_k c_k (F_k + floor) θ_k / Σ_k c_k (F_k + floor), entry by entry. k tensors of one shape -> that shape.

    Matena and Raffel (2022), equation 3, with c_k = λ_k. `fishers` are the diagonals F_k ≥ 0, shaped as the points, in
    units of squared gradients; `floor` keeps entries that no text informs about at the weighted average.
    `normalize` takes c_k = λ_k / (‖F_k‖ + floor) as MergeLM does, so that a model with larger gradients does not
    outweigh the others. There ‖F_k‖ is the L2 norm over the Fisher of the *whole* model: give it as `norms`. Without
    `norms` the tensors given are taken for the whole.
    Where all c_k (F_k + floor) are 0 (possible with floor 0 only) the weighted average stands.
    RecipeError for weights, floor or norms that are no weights; CheckpointError for a Fisher of another shape.
    """
    _check_weights("fisher", weights)
    if not 0.0 <= floor < float("inf"):
        raise RecipeError(f"fisher: floor is {floor}; it must be 0 or more.")
    factors = list(weights)
    if normalize:
        lengths = [float(fisher.double().norm()) for fisher in fishers] if norms is None else norms
        factors = [_divide(weight, norm + floor) for weight, norm in zip(weights, lengths, strict=True)]
    shares = []
    for point, fisher, factor in zip(points, fishers, factors, strict=True):
        if fisher.shape != point.shape:
            raise CheckpointError(
                f"fisher: the tensor is {list(point.shape)}, its Fisher information {list(fisher.shape)}. "
                "Measure it on this very checkpoint."
            )
        shares.append(factor * (fisher.double() + floor))
    mass = total(shares)
    nothing_known = mass == 0.0
    if bool(nothing_known.any()):
        shares = [torch.where(nothing_known, weight, share) for weight, share in zip(weights, shares, strict=True)]
        mass = total(shares)
    merged = total([share * point.double() for share, point in zip(shares, points, strict=True)]) / mass
    return merged.to(points[0].dtype)


def regmean(
    points: Sequence[Tensor],
    grams: Sequence[Tensor],
    alpha: float,
    weights: Sequence[float] | None = None,
    *,
    input_first: bool = False,
) -> Tensor:
    """W = (Σ_k λ_k G_k)⁻¹ Σ_k λ_k G_k W_k, off-diagonal entries of G_k scaled by α. k of [out, in] -> [out, in].

    RegMean (Jin et al. 2023), equation 2 (W_k there is [in, out], so transposed) and section 4.1 (α). G_k = X_kᵀ X_k
    [in, in], symmetric, of the inputs X_k that parent k's layer saw; per token or in sum, but all alike, because their
    scales weigh the parents. λ_k default to 1. `input_first` is for layers that store their weight as [in, out], as
    GPT-2's Conv1D. With α = 1 the result minimises Σ_k λ_k ‖X_k W - X_k W_k‖²; with α = 0 it is an average of the
    columns, weighted by the mean square of each input.

    Where texts do not tell (Σ λ_k G_k is singular: fewer tokens than inputs, an input that is always 0) many W fit
    equally well. The one nearest to the weighted average of the parents is taken, distances measured in units of each
    input's root mean square. No ridge is added, so a regular sum is solved exactly.
    RecipeError for weights or α out of range; CheckpointError for a Gram matrix of another size.
    """
    weights = [1.0] * len(points) if weights is None else weights
    _check_weights("regmean", weights)
    if not 0.0 <= alpha <= 1.0:
        raise RecipeError(f"regmean: alpha is {alpha}; it must lie in [0, 1].")
    rows = [(point.T if input_first else point).double() for point in points]
    parts = []
    for row, gram, weight in zip(rows, grams, weights, strict=True):
        if gram.shape != (row.shape[1], row.shape[1]):
            raise CheckpointError(
                f"regmean: the layer takes {row.shape[1]} inputs, its Gram matrix is {list(gram.shape)}. "
                "Measure it on this very checkpoint."
            )
        parts.append(weight * shrink_off_diagonal(gram.double(), alpha))
    centre = total([weight * row for weight, row in zip(weights, rows, strict=True)]) / sum(weights)
    # Solved for the step away from the average: what the texts leave open then stays there.
    pull = total([(row - centre) @ part for row, part in zip(rows, parts, strict=True)])
    merged = centre + _solve(total(parts), pull, max(torch.finfo(gram.dtype).eps for gram in grams))
    return (merged.T if input_first else merged).contiguous().to(points[0].dtype)


def shrink_off_diagonal(gram: Tensor, alpha: float) -> Tensor:
    """α G + (1 - α) diag(G). [in, in] -> [in, in]. RegMean, section 4.1."""
    return alpha * gram + (1.0 - alpha) * torch.diag(gram.diagonal())


def _solve(system: Tensor, target: Tensor, precision: float) -> Tensor:
    """Smallest X with X · system = target, for a system that is symmetric and not negative. [n, n], [m, n] -> [m, n].

    The system is scaled to a diagonal of ones first, so that one large input does not drown the others. Directions
    whose eigenvalue is below `precision` (of the numbers the system was made from) times the largest count as unseen.
    """
    root = system.diagonal().clamp(min=0.0).sqrt()
    root = torch.where(root == 0.0, 1.0, root)
    scaled = (system + system.T) / (2.0 * root[:, None] * root)
    right = (target / root).T
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if int(failed) == 0 and float(factor.diagonal().min()) ** 2 > 10.0 * precision:
        return torch.cholesky_solve(right, factor).T.div(root)
    values, vectors = torch.linalg.eigh(scaled)
    seen = values > precision * values[-1].clamp(min=0.0)
    inverse = torch.where(seen, 1.0 / torch.where(seen, values, 1.0), 0.0)
    step: Tensor = (vectors @ (inverse[:, None] * (vectors.T @ right))).T / root
    return step


def _divide(weight: float, norm: float) -> float:
    if not 0.0 <= norm < float("inf"):
        raise RecipeError(f"fisher: a norm is {norm}; it must be finite and 0 or more.")
    return weight / norm if norm > 0.0 else weight


def _check_weights(method: str, weights: Sequence[float]) -> None:
    """Weights of a mean: none negative, since a negative one can cancel the others and divide by nothing."""
    if not all(0.0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0.0:
        raise RecipeError(f"{method}: weights are {list(weights)}; they must be 0 or more, and one of them above 0.")
