"""One pass over a tensor that trims, drops, elects and averages: plain PyTorch functions, compiled when it pays.

The compiled path is `torch.compile` of the very same functions and gives the same bits. All arithmetic is float32
with one rounding at the end; parents are taken in the order given, so callers pass them in a canonical order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heterosis.merge.consensus import disjoint_mean, disjoint_sum, elect, total
from heterosis.merge.magnitude import KEEP_ALL, Threshold
from heterosis.merge.masks import INT32_MIN, Key, counters, drop_threshold, stream_key
from heterosis.merge.methods import Divisor, Method
from heterosis.merge.sparsify import drop_mask, rescale_factor, trim, trim_mask

# Entries per pass: bounds the float32 temporaries of the eager path, and divides 2^32 so no pass straddles a key.
BLOCK = 2**24


class ParentTerm(NamedTuple):
    """One parent's part in the merge of one tensor."""

    tensor: Tensor
    digest: str
    weight: float = 1.0
    drop: float = 0.0
    threshold: Threshold = KEEP_ALL


class Stages(NamedTuple):
    """What of the pipeline a compiled variant contains. Plain values, so a compiler can specialise on them."""

    trims: bool
    drops: bool
    combine: str
    divisor: str


def trim_key(parent_digest: str, tensor_name: str) -> Key:
    """Key of the tie-breaking hash of a trim. Free of the mask seed: a threshold belongs to parent and tensor."""
    return stream_key("trim", 0, parent_digest, tensor_name)


def merge_entries(
    base: Tensor, parents: Sequence[Tensor], index: Tensor, reals: Tensor, integers: Tensor, tie: Tensor, stages: Stages
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge n entries.

    base and parents: [n] each; index: int32 [n]; reals: float32 [k, 3] = (factor, share, trim value);
    integers: int32 [k, 6] = (trim cut, trim key low, high, drop threshold, drop key low, high); tie: float32 scalar.
    Returns merged [n] in the dtype of base's output (float32 here), the sum of elected signs and the number of entries
    whose election tied (both int64 scalars, 0 without election).
    """
    origin = base.to(torch.float32)
    updates = []
    for k, parent in enumerate(parents):
        update = parent.to(torch.float32)
        if stages.combine != "mean":
            update = update - origin
        if stages.trims:
            kept = trim_mask(update, index, reals[k, 2], integers[k, 0], integers[k, 1], integers[k, 2])
            update = trim(update, kept)
        if stages.drops:
            update = trim(update, drop_mask(index, integers[k, 3], integers[k, 4], integers[k, 5]))
        updates.append(reals[k, 0] * update)
    zero = torch.zeros((), dtype=torch.int64, device=base.device)
    if stages.combine == "mean":
        return total(updates), zero, zero
    if stages.combine == "sum":
        return origin + total(updates), zero, zero
    mass = total(updates)
    signs = torch.sign(mass).to(torch.int64).sum()
    some = torch.zeros_like(mass, dtype=torch.bool)
    for update in updates:
        some = some | (update != 0.0)
    tied = ((mass == 0.0) & some).to(torch.int64).sum()
    sign = elect(updates, tie)
    if stages.divisor == "none":
        return origin + disjoint_sum(updates, sign), signs, tied
    shares: list[Tensor | float] = [1.0 if stages.divisor == "count" else reals[k, 1] for k in range(len(parents))]
    return origin + disjoint_mean(updates, sign, shares), signs, tied


class Kernel:
    """Runs `merge_entries` over whole tensors, block by block."""

    def __init__(self, compiled: bool = False) -> None:
        self._run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _compile(merge_entries) if compiled else merge_entries
        self._may_fail = compiled

    def merge(
        self,
        method: Method,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        dtype: torch.dtype,
        *,
        seed: int,
        divisor: Divisor = "count",
        rescale: str | float = "inverse_keep",
    ) -> Tensor:
        """Merge one tensor. Terms must be in canonical order; a term with weight 0 takes no part."""
        terms = [term for term in terms if term.weight != 0.0]
        if method.combine != "mean" and not terms:
            return base.to(dtype, copy=True)
        if len(terms) == 1 and _is_identity(method, terms[0], rescale):
            return terms[0].tensor.to(dtype, copy=True)
        stages = Stages(method.trims, method.drops, method.combine, divisor)
        merged, signs, tied = self._blocks(stages, tensor_name, base, terms, dtype, seed, rescale, tie_sign=1.0)
        majority = float((signs > 0) - (signs < 0))
        if tied and majority != 1.0:
            merged, _, _ = self._blocks(stages, tensor_name, base, terms, dtype, seed, rescale, tie_sign=majority)
        return merged

    def _blocks(
        self,
        stages: Stages,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        dtype: torch.dtype,
        seed: int,
        rescale: str | float,
        tie_sign: float,
    ) -> tuple[Tensor, int, int]:
        device = base.device
        origin = base.reshape(-1)
        parents = [term.tensor.reshape(-1) for term in terms]
        merged = torch.empty(origin.shape, dtype=dtype, device=device)
        tie = torch.tensor(tie_sign, device=device)
        reals = torch.tensor(_reals(stages, terms, rescale), dtype=torch.float32, device=device)
        signs = tied = 0
        for start in range(0, origin.numel(), BLOCK):
            part = slice(start, start + BLOCK)
            index = counters(start, origin[part].numel(), device)
            integers = torch.tensor(_integers(tensor_name, terms, seed, start >> 32), dtype=torch.int32, device=device)
            out, block_signs, block_tied = self._guarded(
                origin[part], [parent[part] for parent in parents], index, reals, integers, tie, stages
            )
            merged[part] = out.to(dtype)
            if stages.combine == "ties":
                signs += int(block_signs)
                tied += int(block_tied)
        return merged.reshape(base.shape), signs, tied

    def _guarded(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        try:
            result = self._run(*arguments)
        except Exception as error:  # a missing or broken compiler shows as many types; the eager path needs none
            if not self._may_fail:
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            warnings.warn(
                f"No working compiler, so merging runs uncompiled (same results, slower): {reason}", stacklevel=2
            )
            self._run, self._may_fail = merge_entries, False
            result = self._run(*arguments)
        return result


def _is_identity(method: Method, term: ParentTerm, rescale: str | float) -> bool:
    """Whether the merge is this parent exactly: computing it would only add rounding."""
    if method.combine == "mean":
        return True
    undropped = not method.drops or (term.drop == 0.0 and rescale_factor(0.0, rescale) == 1.0)
    return undropped and (not method.trims or term.threshold == KEEP_ALL) and term.weight == 1.0


def _reals(stages: Stages, terms: Sequence[ParentTerm], rescale: str | float) -> list[tuple[float, float, float]]:
    weights = sum(term.weight for term in terms) if stages.combine == "mean" else 1.0
    rows = []
    for term in terms:
        factor = term.weight / weights
        if stages.drops:
            factor *= rescale_factor(term.drop, rescale) if term.drop > 0.0 or rescale != "inverse_keep" else 1.0
        rows.append((factor, abs(term.weight), term.threshold.value))
    return rows


def _integers(tensor_name: str, terms: Sequence[ParentTerm], seed: int, high: int) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for term in terms:
        trim_at, drop_at = trim_key(term.digest, tensor_name), stream_key("drop", seed, term.digest, tensor_name, high)
        cut = drop_threshold(term.drop) if term.drop > 0.0 else INT32_MIN
        rows.append((term.threshold.cut, *trim_at, cut, *drop_at))
    return rows


def _compile(function: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # One variant per (stages, number of parents, dtypes): a search over several methods passes the default of eight.
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  (the documented place)
    compiled: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.compile(function, dynamic=True, fullgraph=True)
    return compiled
