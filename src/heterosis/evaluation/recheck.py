"""A second opinion on a merge: some of its tensors, merged once more by another process.

An engine's digest is of what its worker merged. It cannot tell that the worker took the wrong parent, drew its masks
from another seed or was hit by a flipped bit, so this process merges a few tensors of every candidate itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from heterosis.builder import Builder, Plan
from heterosis.checkpoints import TensorSpec, tensor_digest
from heterosis.errors import CanaryError, CandidateError, RecipeError
from heterosis.recipe import Recipe

# Entries that are merged again for each candidate: all tensors of a model of up to so many, some of a larger one.
# Methods on whole tensors take longer for each entry.
ENTRIES, ENTRIES_OF_WHOLE = 1 << 20, 1 << 18


class Recheck:
    """Merges tensors again that an engine has merged, and compares digests."""

    def __init__(self, builder: Builder) -> None:
        """`builder`: over the same family as the engine's, opened by this process."""
        self._builder = builder
        self._pool = ThreadPoolExecutor(1, "recheck")

    def start(self, recipe: Recipe, digests: Mapping[str, str]) -> Future[None]:
        """`compare` in the background, while the engine is asked other things."""
        return self._pool.submit(self._on_one_thread, recipe, digests)

    def _on_one_thread(self, recipe: Recipe, digests: Mapping[str, str]) -> None:
        # Two programs whose threads wait for each other in loops, this and the engine, slow each other down tenfold.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self.compare(recipe, digests)
        finally:
            torch.set_num_threads(threads)

    def compare(self, recipe: Recipe, digests: Mapping[str, str]) -> None:
        """Raise CanaryError where a tensor's digest is not the one that this process comes to."""
        try:
            plan = self._builder.plan(recipe)
        except RecipeError as error:
            raise CandidateError(str(error)) from error
        names = chosen(plan, self._builder.specs(plan))
        if not names:
            return
        for name, tensor in self._builder.tensors(_only(plan, names)):
            if digests.get(name) != tensor_digest(tensor):
                raise CanaryError(
                    f"canary: the engine's {name} is not what the recipe gives when it is merged again "
                    f"({len(names)} tensors compared). The candidate is not scored."
                )


def chosen(plan: Plan, specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names of the tensors to merge again, as a hash of recipe and name picks them.

    None of a large model under a trim of the whole model: a tensor of it depends on all others.
    """
    limit = ENTRIES if plan.method.entrywise else ENTRIES_OF_WHOLE
    sizes = {name: spec.numel for name, spec in specs.items()}
    if sum(sizes.values()) <= limit:
        return list(specs)
    if plan.recipe.trim_scope == "model":
        return []
    digest, left, picked = plan.recipe.digest, limit, set()
    for name in sorted(specs, key=lambda name: hashlib.sha256(f"{digest} {name}".encode()).digest()):
        if sizes[name] <= left:
            picked.add(name)
            left -= sizes[name]
    return [name for name in specs if name in picked]


def _only(plan: Plan, names: list[str]) -> Plan:
    inputs = {name: plan.wiring.inputs[name] for name in names}
    return plan._replace(wiring=plan.wiring._replace(inputs=inputs))
