"""The fused pass: trim, drop, elect and average, entry by entry, as one function that a compiler can take whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heterosis.merge.consensus import agreeing, disjoint_mean, disjoint_sum, elect, total
from heterosis.merge.sparsify import drop_mask, trim, trim_mask

# Columns of `reals` and `integers`, one row per parent.
FACTOR, VOTE, SHARE, FLOOR, CEILING = range(5)
FLOOR_CUT, CEILING_CUT, TRIM_KEY, DROP_CUT, DROP_LOW, DROP_HIGH = range(6)


class Stages(NamedTuple):
    """What of the pipeline a compiled variant contains. Plain values, so a compiler can specialise on them."""

    combine: str
    trims: bool = False
    caps: bool = False
    drops: bool = False
    election: str = "weighted"
    divisor: str = "count"
    counts_ties: bool = True


def merge_entries(
    base: Tensor,
    parents: Sequence[Tensor],
    start: Tensor,
    reals: Tensor,
    integers: Tensor,
    tie: Tensor,
    stages: Stages,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge n entries in float32.

    base and parents: [n] each; start: int32 scalar, counter of the first entry; reals: float32 [k, 5] and integers:
    int32 [k, 6], columns as named above; tie: float32 scalar, the sign where an election ties.
    Returns merged float32 [n], the sum of elected signs and the number of entries whose election tied (both int32
    scalars, 0 where nobody counts them).
    """
    index = torch.arange(base.shape[0], dtype=torch.int32, device=base.device) + start
    origin = base.to(torch.float32)
    updates = []
    for k, parent in enumerate(parents):
        update = parent.to(torch.float32)
        if stages.combine != "mean":
            update = update - origin
        kept = _kept(update, index, reals[k], integers[k], stages)
        updates.append(update if kept is None else trim(update, kept))
    zero = torch.zeros((), dtype=torch.int32, device=base.device)
    if stages.combine == "mean":
        return total([reals[k, FACTOR] * update for k, update in enumerate(updates)]), zero, zero
    weighted = [reals[k, FACTOR] * update for k, update in enumerate(updates)]
    if stages.combine == "sum":
        return origin + total(weighted), zero, zero
    votes = _votes(updates, weighted, reals, stages.election)
    mass = total(votes)
    sign = elect(mass, tie)
    chosen = [agreeing(vote, sign) for vote in votes]
    if stages.divisor == "none":
        merged = disjoint_sum(weighted, chosen)
    else:
        shares: list[Tensor | float] = [1.0 if stages.divisor == "count" else row[SHARE] for row in reals.unbind()]
        merged = disjoint_mean(weighted, chosen, shares)
    if not stages.counts_ties:
        return origin + merged, zero, zero
    return origin + merged, *_count_ties(votes, mass)


def _kept(update: Tensor, index: Tensor, reals: Tensor, integers: Tensor, stages: Stages) -> Tensor | None:
    """Mask of what stays of one parent; None where nothing is taken away."""
    masks = []
    if stages.trims:
        masks.append(trim_mask(update, index, reals[FLOOR], integers[FLOOR_CUT], integers[TRIM_KEY]))
    if stages.caps:
        masks.append(~trim_mask(update, index, reals[CEILING], integers[CEILING_CUT], integers[TRIM_KEY]))
    if stages.drops:
        masks.append(drop_mask(index, integers[DROP_CUT], integers[DROP_LOW], integers[DROP_HIGH]))
    if not masks:
        return None
    kept = masks[0]
    for mask in masks[1:]:
        kept = kept & mask
    return kept


def _votes(updates: Sequence[Tensor], weighted: Sequence[Tensor], reals: Tensor, election: str) -> Sequence[Tensor]:
    """What is summed to elect a sign: λ_k δ̂_k, δ̂_k (the TIES authors, PEFT `total`) or its sign (PEFT `frequency`)."""
    if election == "weighted":
        return weighted
    votes = [reals[k, VOTE] * update for k, update in enumerate(updates)]
    return votes if election == "unweighted" else [torch.sign(vote) for vote in votes]


def _count_ties(votes: Sequence[Tensor], mass: Tensor) -> tuple[Tensor, Tensor]:
    some = torch.zeros_like(mass, dtype=torch.bool)
    for vote in votes:
        some = some | (vote != 0.0)
    signs = torch.sign(mass).to(torch.int32).sum(dtype=torch.int32)
    return signs, ((mass == 0.0) & some).to(torch.int32).sum(dtype=torch.int32)
