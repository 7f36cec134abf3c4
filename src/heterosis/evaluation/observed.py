"""A merge on its way into an engine: timed, digested, summed, and checked to be finite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import content_digest, tensor_digest
from heterosis.errors import CandidateError, RecipeError
from heterosis.recipe import Recipe

# Entries that are summed at a time. On a CPU their 64-bit copies stay in its cache.
CPU_CHUNK, CHUNK = 1 << 16, 1 << 24
# An odd 64-bit number without pattern, so that Σ x² + C Σ x has no second multiset that anything makes by accident.
FACTOR = 0x2545F4914F6CDD1D
WORD = 1 << 64


class Observed:
    """A recipe's tensors, as an iterable of (name, tensor)."""

    def __init__(
        self, builder: Builder, recipe: Recipe, keep: bool = False, live_dtype: torch.dtype | None = None
    ) -> None:
        """`keep`: hold on to the tensors in `kept`. CandidateError if the recipe's numbers make no merge.

        `live_dtype`: what the engine keeps them in, for `checksum`.
        """
        try:
            plan = builder.plan(recipe)
        except RecipeError as error:
            raise CandidateError(str(error)) from error
        self.specs = builder.specs(plan)
        self.seconds = 0.0
        self.kept: dict[str, Tensor] = {}
        self._keep = keep
        self._live_dtype = live_dtype
        self._tensors = builder.tensors(plan)
        self._seen: dict[str, Future[Seen]] = {}
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while True:
            started = time.perf_counter()
            pair = next(self._tensors, None)
            self.seconds += time.perf_counter() - started
            if pair is None:
                return
            name, tensor = pair
            self._seen[name] = self._pool.submit(_look, tensor, self._live_dtype)
            if self._keep:
                self.kept[name] = tensor
            yield pair

    def digest(self) -> str:
        """Content digest of all that went by. CandidateError if a tensor is missing or not finite."""
        self._pool.shutdown(wait=True)
        missing = sorted(set(self.specs) - set(self._seen))
        if missing:
            raise CandidateError(f"{missing[0]} was never taken by the engine ({len(missing)} tensors missing).")
        broken = sorted(name for name, future in self._seen.items() if not future.result().finite)
        if broken:
            raise CandidateError(f"{broken[0]} holds NaN or Inf after merging ({len(broken)} tensors in all).")
        return content_digest(self.specs, self.digests())

    def digests(self) -> dict[str, str]:
        """Digest of every tensor that went by."""
        return {name: future.result().digest for name, future in self._seen.items()}

    def checksum(self) -> int:
        """Sum of the checksums of all tensors that went by, as the engine keeps them."""
        return sum(future.result().checksum for future in self._seen.values()) % WORD


class Seen(NamedTuple):
    """What is kept of a tensor that went by."""

    checksum: int
    digest: str
    finite: bool


def _look(tensor: Tensor, live_dtype: torch.dtype | None) -> Seen:
    # The checksum first: should the tensor change in between, the digest shows it, which is checked on its own.
    checksum = multiset_checksum(tensor.to(live_dtype)) if live_dtype is not None else 0
    return Seen(checksum, tensor_digest(tensor), bool(torch.isfinite(tensor).all()))


def multiset_checksum(tensor: Tensor) -> int:
    """Σ x² + C Σ x over the float32 bit patterns x of all entries, modulo 2⁶⁴. Any floats of up to 32 bits.

    It depends on the entries' values, not on their order, nor on how they are divided among tensors, nor on zeros that
    pad them: an engine that fuses, transposes and pads what it loads still has the checksum of what it was given.
    """
    values, squares = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for part in torch.split(tensor.detach().reshape(-1), CPU_CHUNK if tensor.device.type == "cpu" else CHUNK):
        bits = part.float().view(torch.int32).long()
        values += bits.sum()
        squares += (bits * bits).sum()  # overflows modulo 2⁶⁴, as it should
    return (int(squares) + FACTOR * int(values)) % WORD
