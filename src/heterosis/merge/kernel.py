"""Merges one tensor by any method: the entry-by-entry ones in one fused pass, compiled when it pays, the rest whole.

The compiled path is `torch.compile` of the very same functions and gives the same bits. All arithmetic is float32
with one rounding at the end; parents are taken in the order given, so callers pass them in a canonical order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heterosis.merge import compat
from heterosis.merge.consensus import Divisor, Election
from heterosis.merge.entries import Stages, merge_entries
from heterosis.merge.magnitude import KEEP_ALL, KEEP_NONE, Threshold
from heterosis.merge.masks import INT32_MIN, Key, counters, drop_threshold, stream_key
from heterosis.merge.methods import Method
from heterosis.merge.sparsify import drop_mask, ranked_drop, ranked_drop_rates, rescale_factor, trim, trim_mask
from heterosis.merge.whole import Inputs, Measured

# Entries per pass: bounds the float32 temporaries of the eager path, and divides 2^32 so no pass straddles a key.
BLOCK = 2**24


class ParentTerm(NamedTuple):
    """One parent's part in the merge of one tensor."""

    tensor: Tensor
    digest: str
    weight: float = 1.0
    drop: float = 0.0
    threshold: Threshold = KEEP_ALL
    """Smallest magnitude that stays."""
    ceiling: Threshold = KEEP_NONE
    """Smallest magnitude that is left out for being too large."""
    epsilon: float = 0.0
    """Half the window of drop rates over ranks (DELLA)."""
    factor: float = 1.0
    """Factor on what pruning left."""
    evidence: Measured | None = None
    """What was measured of this tensor."""
    density: float = 1.0
    """What `threshold` stands for; read with mergekit's rules alone, as is `gamma`."""
    gamma: float = 0.0

    @property
    def numbers(self) -> dict[str, float]:
        """The parameters as a recipe gives them."""
        return {name: getattr(self, name) for name in ("weight", "density", "drop", "gamma", "epsilon")}


class Rules(NamedTuple):
    """What all tensors of a merge share."""

    seed: int = 0
    divisor: Divisor = "count"
    election: Election = "weighted"
    majority: bool = True
    """Whether the tensor's majority decides elections that tie; + otherwise."""
    rescale: str | float = "inverse_keep"
    arithmetic: torch.dtype | None = None
    """mergekit's rules, in this dtype, instead of the papers' in float32."""


def trim_key(parent_digest: str, tensor_name: str) -> int:
    """Key of the tie-breaking hash of a trim. Free of the mask seed: a threshold belongs to parent and tensor."""
    return stream_key("trim", 0, parent_digest, tensor_name).low


def drop_key(seed: int, parent_digest: str, tensor_name: str, high_counter: int = 0) -> Key:
    """Key of one tensor's DARE mask."""
    return stream_key("drop", seed, parent_digest, tensor_name, high_counter)


class Kernel:
    """Runs a method over whole tensors, the fused pass block by block."""

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
        rules: Rules,
        settings: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Merge one tensor. Terms must be in canonical order; `settings` override the method's defaults."""
        settings = {**method.settings, **(settings or {})}
        if rules.arithmetic is not None:
            return _as_mergekit(method, tensor_name, base, terms, rules, settings, rules.arithmetic).to(dtype)
        if callable(method.combine):
            inputs = _inputs(method, tensor_name, base, terms, rules, settings)
            return method.combine(inputs).to(dtype)
        terms = [term for term in terms if term.weight != 0.0]
        if not terms:
            return base.to(dtype, copy=True)
        if len(terms) == 1 and _is_identity(method, terms[0], rules.rescale, settings):
            return terms[0].tensor.to(dtype, copy=True)
        if not method.entrywise:
            return self._by_rank(method, tensor_name, base, terms, dtype, rules, settings)
        stages = _stages(method, terms, rules)
        return self._elected(stages, tensor_name, base, terms, dtype, rules, _factors(method, terms, settings))

    def _by_rank(
        self,
        method: Method,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        dtype: torch.dtype,
        rules: Rules,
        settings: Mapping[str, Any],
    ) -> Tensor:
        """DELLA: sparsify whole tensors, then combine them in the fused pass as task vectors of a base of zeros."""
        updates = _inputs(method, tensor_name, base, terms, rules, settings).updates
        dense = [t._replace(tensor=u, drop=0.0) for t, u in zip(terms, updates, strict=True)]
        assert isinstance(method.combine, str)
        stages = _stages(method, dense, rules)._replace(drops=False)
        zero = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
        factors = _factors(method, dense, settings)
        update = self._elected(stages, tensor_name, zero, dense, torch.float32, rules._replace(rescale="none"), factors)
        return (base.to(torch.float32) + update).to(dtype)

    def _elected(
        self,
        stages: Stages,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        dtype: torch.dtype,
        rules: Rules,
        factors: Sequence[float],
    ) -> Tensor:
        """The fused pass; again with the other sign where elections tied and the majority of the tensor is not +."""
        numbers = _reals(stages, terms, rules, factors)
        merged, signs, tied = self._blocks(stages, tensor_name, base, terms, dtype, rules.seed, numbers, tie_sign=1.0)
        majority = float((signs > 0) - (signs < 0))
        if tied and majority != 1.0:
            merged, _, _ = self._blocks(stages, tensor_name, base, terms, dtype, rules.seed, numbers, tie_sign=majority)
        return merged

    def _blocks(
        self,
        stages: Stages,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        dtype: torch.dtype,
        seed: int,
        numbers: Sequence[tuple[float, ...]],
        tie_sign: float,
    ) -> tuple[Tensor, int, int]:
        device = base.device
        origin = base.reshape(-1)
        parents = [term.tensor.reshape(-1) for term in terms]
        merged = torch.empty(origin.shape, dtype=dtype, device=device)
        tie = torch.tensor(tie_sign, device=device)
        reals = torch.tensor(numbers, dtype=torch.float32, device=device)
        signs = tied = 0
        for first in range(0, origin.numel(), BLOCK):
            part = slice(first, first + BLOCK)
            start = torch.tensor((first & 0xFFFFFFFF) + INT32_MIN, dtype=torch.int32, device=device)
            integers = torch.tensor(_integers(tensor_name, terms, seed, first >> 32), dtype=torch.int32, device=device)
            out, block_signs, block_tied = self._guarded(
                origin[part], [parent[part] for parent in parents], start, reals, integers, tie, stages
            )
            merged[part] = out.to(dtype)
            if stages.combine == "ties" and stages.counts_ties:
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


def _as_mergekit(
    method: Method,
    tensor_name: str,
    base: Tensor,
    terms: Sequence[ParentTerm],
    rules: Rules,
    settings: Mapping[str, Any],
    arithmetic: torch.dtype,
) -> Tensor:
    if not terms:
        return base.to(arithmetic)
    keys = [drop_key(rules.seed, term.digest, tensor_name) for term in terms]
    parents, numbers = [term.tensor for term in terms], [term.numbers for term in terms]
    return compat.merge(method, base, parents, numbers, keys, settings, rules.divisor, rules.rescale, arithmetic)


def _is_sparse(method: Method, term: ParentTerm, rescale: str | float) -> bool:
    """Whether pruning or dropping changes this parent at all."""
    rescaled = method.drops and rescale_factor(0.0, rescale) != 1.0
    pruned = term.threshold != KEEP_ALL or term.ceiling != KEEP_NONE or term.factor != 1.0
    return term.drop > 0.0 or term.epsilon != 0.0 or rescaled or (pruned and method.trims)


def _is_identity(method: Method, term: ParentTerm, rescale: str | float, settings: Mapping[str, Any]) -> bool:
    """Whether the merge is this parent exactly: computing it would only add rounding."""
    if _is_sparse(method, term, rescale) or settings.get("scale", 1.0) != 1.0:
        return False
    return term.weight == 1.0 or bool(method.combine == "mean" and settings.get("normalize", True))


def _stages(method: Method, terms: Sequence[ParentTerm], rules: Rules) -> Stages:
    sparse = any(_is_sparse(method, term, rules.rescale) for term in terms)
    combine = "sum" if method.combine == "mean" and sparse else str(method.combine)
    return Stages(
        combine,
        trims=method.trims,
        caps=method.prunes == "small_and_large",
        drops=method.drops or any(term.drop > 0.0 for term in terms),
        election=rules.election,
        divisor=rules.divisor,
        counts_ties=rules.majority,
    )


def _factors(method: Method, terms: Sequence[ParentTerm], settings: Mapping[str, Any]) -> list[float]:
    """Factor on each parent's sparse update, before what dropping adds: λ_k, its share, the scale of the whole."""
    whole = 1.0
    if settings.get("normalize", method.combine == "mean"):
        whole = sum(term.weight for term in terms)
        if method.combine != "mean" and abs(whole) < 1e-8:
            whole = 1.0
    return [term.weight / whole * term.factor * float(settings.get("scale", 1.0)) for term in terms]


def _reals(
    stages: Stages, terms: Sequence[ParentTerm], rules: Rules, factors: Sequence[float]
) -> list[tuple[float, ...]]:
    rows = []
    for term, factor in zip(terms, factors, strict=True):
        rescaled = 1.0
        if stages.drops and (term.drop > 0.0 or rules.rescale != "inverse_keep"):
            rescaled = rescale_factor(term.drop, rules.rescale)
        share = term.weight if rules.divisor == "signed_weight" else abs(term.weight)
        rows.append((factor * rescaled, term.factor * rescaled, share, term.threshold.value, term.ceiling.value))
    return rows


def _integers(tensor_name: str, terms: Sequence[ParentTerm], seed: int, high: int) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for term in terms:
        cut = drop_threshold(term.drop) if term.drop > 0.0 else INT32_MIN
        at = drop_key(seed, term.digest, tensor_name, high)
        rows.append((term.threshold.cut, term.ceiling.cut, trim_key(term.digest, tensor_name), cut, *at))
    return rows


def _inputs(
    method: Method,
    tensor_name: str,
    base: Tensor,
    terms: Sequence[ParentTerm],
    rules: Rules,
    settings: Mapping[str, Any],
) -> Inputs:
    """Whole float32 tensors for a method that needs to see them so."""
    origin = base.to(torch.float32)
    points, updates = [], []
    for term in terms:
        point = term.tensor.to(torch.float32)
        update = point - origin
        if _is_sparse(method, term, rules.rescale):
            update = _sparse(update, tensor_name, term, rules, method.prunes == "by_rank")
            point = origin + update
        points.append(point)
        updates.append(update)
    evidence = [term.evidence for term in terms if term.evidence is not None]
    return Inputs(origin, points, updates, [term.weight for term in terms], settings, evidence)


def _sparse(delta: Tensor, tensor_name: str, term: ParentTerm, rules: Rules, by_rank: bool) -> Tensor:
    """One parent's whole task vector, pruned, dropped and rescaled as the fused pass would."""
    flat = delta.reshape(-1)
    rates = ranked_drop_rates(delta, term.drop, term.epsilon).reshape(-1) if by_rank else None
    parts = []
    for first in range(0, flat.numel(), BLOCK):
        part = flat[first : first + BLOCK]
        index = counters(first, part.numel(), delta.device)
        low, high = drop_key(rules.seed, term.digest, tensor_name, first >> 32)
        if rates is not None:
            part = ranked_drop(part, index, rates[first : first + BLOCK], low, high, rules.rescale)
        else:
            key = trim_key(term.digest, tensor_name)
            for limit, keeps in ((term.threshold, True), (term.ceiling, False)):
                within = trim_mask(part, index, limit.value, limit.cut, key)
                part = trim(part, within if keeps else ~within)
            if term.drop > 0.0:
                kept = drop_mask(index, drop_threshold(term.drop), low, high)
                part = rescale_factor(term.drop, rules.rescale) * trim(part, kept)
        parts.append(part * term.factor)
    return torch.cat(parts).reshape(delta.shape) if parts else delta


def _compile(function: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # One variant per (stages, number of parents, dtypes): a search over several methods passes the default of eight.
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  (the documented place)
    compiled: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.compile(function, dynamic=True, fullgraph=True)
    return compiled
