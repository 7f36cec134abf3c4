"""Merging task matrices by their singular vectors: TSV-Merge and Iso-C.

Decompositions run on the CPU in float64 whatever the tensors are in and wherever they are: a search on a GPU and the
export of its winner must agree, and rounding then hides what LAPACK does differently with other threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge.consensus import total

# A singular value of less than this part of the largest is rounding: weights are float32 at best.
ZERO = 1e-6


def tsv_merge(deltas: Sequence[Tensor], weights: Sequence[float] | None = None, keep: float | None = None) -> Tensor:
    """Merged task vector of T tasks whose singular vectors were made orthogonal. T tensors of one shape -> that shape.

    TSV-Merge (Gargiulo et al. 2025, "Task Singular Vectors"), algorithm 1. Of every matrix δ_t = U_t Σ_t V_tᵀ the
    fraction `keep` of the triplets stays, 1/T where not given (rounded down, one at least); U = [U_1 … U_T] and V alike
    are replaced by the nearest matrices with orthonormal columns (orthogonal Procrustes); the result is U Σ Vᵀ.
    Everything but matrices is averaged, as in the authors' code. The factor on the result is the caller's.

    λ_t scale the task vectors, so here they scale Σ_t, and a task with λ = 0 is no task. Not settled by the paper: a
    triplet whose singular value is zero has no direction of its own and is left out; where tasks repeat a direction,
    there is no one nearest orthonormal matrix, and P Qᵀ is taken over the directions that the columns span. Signs of
    singular vectors cancel; equal singular values at the cut leave the choice of their directions to LAPACK.
    """
    factors = [1.0] * len(deltas) if weights is None else list(weights)
    tasks = [(factor, delta) for factor, delta in zip(factors, deltas, strict=True) if factor != 0.0]
    if not tasks or deltas[0].dim() != 2 or deltas[0].numel() == 0:
        return _mean([factor * delta for factor, delta in tasks] or [torch.zeros_like(deltas[0])])
    if keep is not None and not 0.0 < keep <= 1.0:
        raise RecipeError(
            f"tsv: keep is {keep}, a fraction of the singular triplets. Give a number above 0 and up to 1."
        )
    rank = min(deltas[0].shape)
    kept = max(1, rank // len(tasks) if keep is None else int(rank * keep))
    lefts, values, rights = [], [], []
    for factor, delta in tasks:
        left, singular, right = _decompose(delta)
        lefts.append(left[:, :kept])
        values.append(factor * singular[:kept])
        rights.append(right[:kept].T)
    merged = (_orthonormal(torch.cat(lefts, dim=1)) * torch.cat(values)) @ _orthonormal(torch.cat(rights, dim=1)).T
    return merged.to(deltas[0].device, deltas[0].dtype)


def iso_c(deltas: Sequence[Tensor]) -> Tensor:
    """Sum of T task vectors with all its singular values set to their mean. T tensors of one shape -> that shape.

    Iso-C (Marczak et al. 2025, "No Task Left Behind"), section 4: Σ_t δ_t = U Σ Vᵀ for matrices, and the result is
    σ̄ U Vᵀ, σ̄ the mean of all min(m, n) singular values. Everything but matrices is averaged, as in the authors' code.
    The factor on the result is the caller's. Directions in which the sum is zero have no singular vectors of their own
    and stay zero, where the paper would take whatever the decomposition made up.
    """
    if deltas[0].dim() != 2 or deltas[0].numel() == 0:
        return _mean(deltas)
    left, singular, right = _decompose(total([delta.to("cpu", torch.float64) for delta in deltas]))
    mean = singular.sum() / min(deltas[0].shape)
    return (left @ right).mul(mean).to(deltas[0].device, deltas[0].dtype)


def _mean(deltas: Sequence[Tensor]) -> Tensor:
    return total(deltas) / len(deltas)


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets of other than zero value. [m, n] -> [m, r], [r] descending, [r, n]; float64, on the CPU."""
    left, singular, right = torch.linalg.svd(matrix.to("cpu", torch.float64), full_matrices=False)
    rank = int((singular > ZERO * singular[:1]).sum())
    return left[:, :rank], singular[:rank], right[:rank]


def _orthonormal(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, P Qᵀ of A = P Σ Qᵀ (orthogonal Procrustes). [m, c] -> [m, c]."""
    left, _, right = _decompose(columns)
    return left @ right
