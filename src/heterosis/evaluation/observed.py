"""A merge on its way into an engine: timed, digested, and checked to be finite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import content_digest, tensor_digest
from heterosis.errors import CandidateError, RecipeError
from heterosis.recipe import Recipe


class Observed:
    """A recipe's tensors, as an iterable of (name, tensor)."""

    def __init__(self, builder: Builder, recipe: Recipe, keep: bool = False) -> None:
        """`keep`: hold on to the tensors in `kept`. CandidateError if the recipe's numbers make no merge."""
        try:
            plan = builder.plan(recipe)
        except RecipeError as error:
            raise CandidateError(str(error)) from error
        self.specs = builder.specs(plan)
        self.seconds = 0.0
        self.kept: dict[str, Tensor] = {}
        self._keep = keep
        self._tensors = builder.tensors(plan)
        self._digests: dict[str, Future[tuple[str, bool]]] = {}
        self._pool = ThreadPoolExecutor(max_workers=2)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while True:
            started = time.perf_counter()
            pair = next(self._tensors, None)
            self.seconds += time.perf_counter() - started
            if pair is None:
                return
            name, tensor = pair
            self._digests[name] = self._pool.submit(_digest_and_finite, tensor)
            if self._keep:
                self.kept[name] = tensor
            yield pair

    def digest(self) -> str:
        """Content digest of all that went by. CandidateError if a tensor is missing or not finite."""
        self._pool.shutdown(wait=True)
        missing = sorted(set(self.specs) - set(self._digests))
        if missing:
            raise CandidateError(f"{missing[0]} was never taken by the engine ({len(missing)} tensors missing).")
        results = {name: future.result() for name, future in self._digests.items()}
        broken = sorted(name for name, (_, finite) in results.items() if not finite)
        if broken:
            raise CandidateError(f"{broken[0]} holds NaN or Inf after merging ({len(broken)} tensors in all).")
        return content_digest(self.specs, {name: digest for name, (digest, _) in results.items()})


def _digest_and_finite(tensor: Tensor) -> tuple[str, bool]:
    return tensor_digest(tensor), bool(torch.isfinite(tensor).all())
