"""Merges one tensor by any method: the entry-by-entry ones in one fused pass, compiled when it pays, the rest whole.

The compiled path is `torch.compile` of the very same functions and gives the same bits. All arithmetic is float32
with one rounding at the end; parents are taken in the order given, so callers pass them in a canonical order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heterosis.merge import compat
from heterosis.merge.consensus import Divisor, Election
from heterosis.merge.entries import TIE, WIDTH, Stages, merge_entries, signs_and_ties
from heterosis.merge.magnitude import KEEP_ALL, KEEP_NONE, Threshold
from heterosis.merge.masks import INT32_MIN, Key, counters, drop_threshold, stream_key
from heterosis.merge.methods import Method
from heterosis.merge.pages import Pages
from heterosis.merge.sparsify import drop_mask, ranked_drop, ranked_drop_rates, rescale_factor, trim, trim_mask
from heterosis.merge.whole import Inputs, Measured

# Entries per pass of eager code on a CPU, whose float32 temporaries should stay in the caches, and of all other code,
# which has none to speak of but costs something to call. Powers of two, so that no pass straddles a key.
BLOCK, LARGE_BLOCK = 2**20, 2**23

# What makes a GPU's compiler round as a CPU does: no product and sum in one rounding, no approximate division.
EXACT = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}

Entries = Callable[..., Tensor | None]
# Of `merge_entries`: merged, base, parents, rows, columns, reals, integers.
_Arguments = tuple[Tensor, Tensor, Sequence[Tensor], Tensor, Tensor, Tensor, Tensor]


class ParentTerm(NamedTuple):
    """One parent's part in the merge of one tensor."""

    tensor: Tensor
    digest: str
    weight: float = 1.0
    drop: float = 0.0
    threshold: Threshold = KEEP_ALL
    """Where what is too small to stay ends."""
    ceiling: Threshold = KEEP_NONE
    """Where what is too large to stay begins."""
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
    tie_sign: int | None = None
    """What decides them instead: the majority of the whole model, where one threshold trims the whole model."""


def trim_key(parent_digest: str, tensor_name: str) -> int:
    """Key of the tie-breaking hash of a trim. Free of the mask seed: a threshold belongs to parent and tensor."""
    return stream_key("trim", 0, parent_digest, tensor_name).low


def drop_key(seed: int, parent_digest: str, tensor_name: str, high_counter: int = 0) -> Key:
    """Key of one tensor's DARE mask."""
    return stream_key("drop", seed, parent_digest, tensor_name, high_counter)


class _Job(NamedTuple):
    """What all passes over one tensor share."""

    stages: Stages
    merged: Tensor
    base: Tensor
    parents: Sequence[Tensor]
    columns: Tensor
    reals: Tensor
    integers: Callable[[int], Tensor]
    """For the entries that share these upper 32 bits of their index."""


class Kernel:
    """Runs a method over whole tensors, the fused pass block by block."""

    def __init__(self, compiled: bool = False) -> None:
        self._run: Entries = _compile(_whole_rows) if compiled else merge_entries
        self._compiled = compiled
        self._pages = Pages()

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
        return self._elected(stages, tensor_name, base, terms, dtype, rules, _factors(method, terms, settings))[0]

    def elections(
        self,
        method: Method,
        tensor_name: str,
        base: Tensor,
        terms: Sequence[ParentTerm],
        rules: Rules,
        settings: Mapping[str, Any] | None = None,
    ) -> int:
        """Sum of the signs that the entries of one tensor elect, by a method of the fused pass."""
        terms = [term for term in terms if term.weight != 0.0]
        if not terms:
            return 0
        factors = _factors(method, terms, {**method.settings, **(settings or {})})
        return self._elected(_stages(method, terms, rules), tensor_name, base, terms, base.dtype, rules, factors)[1]

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
        plain = rules._replace(rescale="none")
        update, _ = self._elected(stages, tensor_name, zero, dense, torch.float32, plain, factors)
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
    ) -> tuple[Tensor, int]:
        """The fused pass, and the sum of elected signs.

        Where the tensor's own majority decides elections that tie, it is known at the end alone: each block takes that
        of the blocks before it, and is done again if that was another.
        """

        @cache
        def integers(high: int) -> Tensor:
            rows = _integers(tensor_name, terms, rules.seed, high)
            return torch.tensor(rows, dtype=torch.int32, device=base.device)

        merged = self._pages.empty(base.shape, dtype, base.device)
        reals = torch.tensor(_reals(stages, terms, rules, factors), dtype=torch.float32, device=base.device)
        parents = [term.tensor.reshape(-1) for term in terms]
        columns = torch.arange(WIDTH, dtype=torch.int32, device=base.device)
        job = _Job(stages, merged.reshape(-1), base.reshape(-1), parents, columns, reals, integers)
        block = LARGE_BLOCK if self._compiled or base.device.type != "cpu" else BLOCK
        total, tied, tie = 0, [], 1 if rules.tie_sign is None else rules.tie_sign
        for first in range(0, base.numel(), block):
            signs, ties = self._block(job, first, min(block, base.numel() - first), tie)
            total += signs
            tied += [(first, tie)] if ties else []
            if rules.tie_sign is None:
                tie = -1 if total < 0 else 1
        majority = (total > 0) - (total < 0) if rules.tie_sign is None else rules.tie_sign
        for first, tie in tied:
            if tie != majority:
                self._block(job, first, min(block, base.numel() - first), majority)
        return merged, total

    def _block(self, job: _Job, first: int, count: int, tie: int) -> tuple[int, int]:
        """Merge `count` entries from `first` on. -> sum of their elected signs, and number of elections that tied."""
        whole = count - count % WIDTH
        sign = torch.tensor(tie * TIE, device=job.base.device)
        elected = []
        if whole:
            elected.append(self._guarded(*_rows(job, first, whole, WIDTH), sign, job.stages))
        if count > whole:
            elected.append(merge_entries(*_rows(job, first + whole, count - whole, count - whole), sign, job.stages))
        counted = [each for each in elected if each is not None]
        return signs_and_ties(torch.cat(counted), tie * TIE) if counted and tie else (0, 0)

    def _guarded(self, *arguments: Any) -> Tensor | None:
        try:
            return self._run(*arguments)
        except Exception as error:  # a missing or broken compiler shows as many types; the eager path needs none
            if not self._compiled:
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            warnings.warn(
                f"No working compiler, so merging runs uncompiled (same results, slower): {reason}", stacklevel=2
            )
            self._run, self._compiled = merge_entries, False
            return self._run(*arguments)


def _rows(job: _Job, first: int, count: int, width: int) -> _Arguments:
    """Arguments of `merge_entries` up to `integers` for some entries, laid out in rows."""
    merged, base, *parents = (x[first : first + count].view(-1, width) for x in (job.merged, job.base, *job.parents))
    rows = counters(first, count // width, job.base.device, step=width).reshape(-1, 1)
    return merged, base, parents, rows, job.columns[:width], job.reals, job.integers(first >> 32)


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
        trims=method.trims and any(term.threshold != KEEP_ALL for term in terms),
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
    rows: list[tuple[float, ...]] = []
    for term, factor in zip(terms, factors, strict=True):
        rescaled = 1.0
        if stages.drops and (term.drop > 0.0 or rules.rescale != "inverse_keep"):
            rescaled = rescale_factor(term.drop, rules.rescale)
        share = term.weight if rules.divisor == "signed_weight" else abs(term.weight)
        rows.append((factor * rescaled, term.factor * rescaled, share, *term.threshold[:2], *term.ceiling[:2]))
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
    known = evidence if len(evidence) == len(terms) else []
    return Inputs(origin, points, updates, [term.weight for term in terms], settings, known, tensor_name)


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
                within = trim_mask(part, index, *limit, key)
                part = trim(part, within if keeps else ~within)
            if term.drop > 0.0:
                kept = drop_mask(index, drop_threshold(term.drop), low, high)
                part = rescale_factor(term.drop, rules.rescale) * trim(part, kept)
        parts.append(part * term.factor)
    return torch.cat(parts).reshape(delta.shape) if parts else delta


def _whole_rows(merged: Tensor, *rest: Any) -> Tensor | None:
    """`merge_entries`, with what lets the compiler do without a case for rows that are not full vectors."""
    assert merged.shape[1] == WIDTH
    return merge_entries(merged, *rest)


def _compile(function: Entries) -> Entries:
    # One variant per (stages, number of parents, dtypes): a search over several methods passes the default of eight.
    from torch._inductor import list_options

    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  (the documented place)
    known = set(list_options())
    options: dict[str, str | int | bool | Callable[..., Any]] = {k: v for k, v in EXACT.items() if k in known}
    compiled: Entries = torch.compile(function, dynamic=True, fullgraph=True, options=options)
    return compiled
