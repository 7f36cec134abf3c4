"""How the parents' updates become one: by sum, or by elected sign and disjoint mean (TIES)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Election = Literal["weighted", "unweighted", "frequency"]
Divisor = Literal["count", "weight", "signed_weight", "none"]


def total(updates: Sequence[Tensor]) -> Tensor:
    """Σ_k u_k in the given order. k tensors of one shape -> that shape."""
    result = updates[0]
    for update in updates[1:]:
        result = result + update
    return result


def elect(mass: Tensor, tie: Tensor | float) -> Tensor:
    """Sign of the total mass per entry, `tie` where it is 0. -> float of mass's shape.

    TIES (Yadav et al. 2023), section 3, step 2. Where the mass cancels exactly, the sign of `tie` decides: the one
    that most entries of the tensor elected, as in the authors' code, or + as in mergekit and PEFT.
    """
    return torch.where(mass > 0.0, 1.0, torch.where(mass < 0.0, -1.0, tie))


def agreeing(vote: Tensor, sign: Tensor) -> Tensor:
    """Entries of one parent that point the elected way. -> bool of their shape."""
    return vote * sign > 0.0


def disjoint_mean(updates: Sequence[Tensor], chosen: Sequence[Tensor], shares: Sequence[Tensor | float]) -> Tensor:
    """Sum of the chosen updates over the sum of their shares. k tensors of one shape -> that shape.

    TIES, section 3, step 3, with every share 1 (divide by the number that agree). Shares |λ_k| give a weighted mean.
    """
    denominator = total([torch.where(kept, share, 0.0) for kept, share in zip(chosen, shares, strict=True)])
    return disjoint_sum(updates, chosen) / torch.where(denominator == 0.0, 1.0, denominator)


def disjoint_sum(updates: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """Sum of the chosen updates. k tensors of one shape -> that shape."""
    return total([torch.where(kept, update, 0.0) for kept, update in zip(chosen, updates, strict=True)])
