"""The fused pass: trim, drop, elect and average, entry by entry, as one function that a compiler can take whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heterosis.merge.consensus import agreeing, disjoint_mean, disjoint_sum, elect, total
from heterosis.merge.sparsify import drop_mask, trim, trim_mask

# Columns of `reals` and `integers`, one row per parent.
FACTOR, VOTE, SHARE, FLOOR_UPPER, FLOOR_LOWER, CEILING_UPPER, CEILING_LOWER = range(7)
FLOOR_CUT, CEILING_CUT, TRIM_KEY, DROP_CUT, DROP_LOW, DROP_HIGH = range(6)

# Entries of one row.
WIDTH = 1024
# What an election that ties counts as, against 1 for any other, so that one sum over a row tells signs and ties.
# More than twice a row, and small enough for the sum to be exact in float32.
TIE = 4096.0


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
    merged: Tensor,
    base: Tensor,
    parents: Sequence[Tensor],
    rows: Tensor,
    columns: Tensor,
    reals: Tensor,
    integers: Tensor,
    tie: Tensor,
    stages: Stages,
) -> Tensor | None:
    """Merge r rows of w entries in float32 and write them to `merged`, rounded once to its dtype.

    merged, base and parents: [r, w] each; rows: int32 [r, 1], the counter of each row's first entry; columns: int32
    [w], 0 … w - 1; reals: float32 [k, 7] and integers: int32 [k, 6], columns as named above; tie: float32 scalar, the
    sign where an election ties, times TIE. Rows of entries rather than a flat block, because the compiler builds
    the counters of a flat block number by number, which costs more than all else.
    Returns float32 [r], the sum of each row's elected signs with ties as `tie`, or None where nobody counts them.
    """
    index = rows + columns
    origin = base.to(torch.float32)
    updates = []
    for k, parent in enumerate(parents):
        update = parent.to(torch.float32)
        if stages.combine != "mean":
            update = update - origin
        kept = _kept(update, index, reals[k], integers[k], stages)
        updates.append(update if kept is None else trim(update, kept))
    weighted = [reals[k, FACTOR] * update for k, update in enumerate(updates)]
    if stages.combine != "ties":
        result = total(weighted)
        merged.copy_(result if stages.combine == "mean" else origin + result)
        return None
    votes = _votes(updates, weighted, reals, stages.election)
    sign = elect(total(votes), tie)
    chosen = [agreeing(vote, sign) for vote in votes]
    if stages.divisor == "none":
        update = disjoint_sum(weighted, chosen)
    elif stages.divisor == "count" and len(chosen) == 2:
        # The same bits as dividing by a count of one or two, and a seventh off the time of the whole pass.
        update = disjoint_sum(weighted, chosen) * torch.where(chosen[0] & chosen[1], 0.5, 1.0)
    else:
        shares: list[Tensor | float] = [1.0 if stages.divisor == "count" else row[SHARE] for row in reals.unbind()]
        update = disjoint_mean(weighted, chosen, shares)
    merged.copy_(origin + update)
    return _elected(chosen, sign).sum(dim=1) if stages.counts_ties else None


def signs_and_ties(elected: Tensor, tie: float) -> tuple[int, int]:
    """What `merge_entries` returned, taken apart: the sum of elected signs, and how many elections tied."""
    sums = elected.to(torch.float64)
    ties = (sums / tie).round()
    return int((sums - tie * ties).sum()), int(ties.sum())


def _kept(update: Tensor, index: Tensor, reals: Tensor, integers: Tensor, stages: Stages) -> Tensor | None:
    """Mask of what stays of one parent; None where nothing is taken away."""
    key, masks = integers[TRIM_KEY], []
    if stages.trims:
        masks.append(trim_mask(update, index, reals[FLOOR_UPPER], reals[FLOOR_LOWER], integers[FLOOR_CUT], key))
    if stages.caps:
        masks.append(~trim_mask(update, index, reals[CEILING_UPPER], reals[CEILING_LOWER], integers[CEILING_CUT], key))
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


def _elected(chosen: Sequence[Tensor], sign: Tensor) -> Tensor:
    """The sign where anybody agrees with it; entries in which no parent changed anything elect none."""
    anybody = chosen[0]
    for one in chosen[1:]:
        anybody = anybody | one
    return torch.where(anybody, sign, 0.0)
