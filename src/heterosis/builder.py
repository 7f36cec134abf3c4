"""From a recipe to weights: tensor by tensor, in the order of a forward pass.

Everything that holds a merged model gets it from here: the engine's worker, the export, a reproduction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from heterosis.checkpoints import Checkpoint, Family, Layout, ModelRef, TensorSpec, open_family, resolve
from heterosis.errors import RecipeError
from heterosis.merge import METHODS, Kernel, MagnitudeIndex, ParentTerm
from heterosis.merge.kernel import trim_key
from heterosis.merge.magnitude import KEEP_ALL, KEEP_NONE, Threshold
from heterosis.recipe import Recipe, Source, Terms

# Compiling costs tens of seconds on first use and pays from about this many parameters on.
COMPILE_FROM = 8_000_000


class Builder:
    """Merges recipes over one family, keeping what all candidates share: open files and magnitude indices."""

    def __init__(self, family: Family, device: str | torch.device = "cpu", compiled: bool | None = None) -> None:
        self.family = family
        self.device = torch.device(device)
        size = sum(spec.numel for spec in family.base.specs.values())
        # On a GPU the compiler may fuse a product and a sum into one rounding, and an export on a CPU must match.
        pays = size >= COMPILE_FROM and self.device.type == "cpu"
        self.kernel = Kernel(pays if compiled is None else compiled)
        self._indices: dict[tuple[str, str], MagnitudeIndex] = {}
        self._resident: dict[tuple[str, str], Tensor] = {}
        self._by_digest = {parent.digest: parent for parent in family.parents.values()}

    def specs(self, recipe: Recipe) -> dict[str, TensorSpec]:
        """Shape and dtype of every merged tensor, in the order in which `tensors` yields them."""
        dtype: torch.dtype = getattr(torch, recipe.dtype)
        return {name: TensorSpec(self.family.base.specs[name].shape, dtype) for name in self.family.names}

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """Merge, yielding a fresh tensor for each name. Problems of the recipe show before the first tensor."""
        parents = self._sources(recipe)
        canonical = recipe.canonical_parents()
        terms = recipe.terms(Layout(self.family.names, recipe.groups))
        method = METHODS[recipe.method]
        if method.combine == "mean":
            _check_weights(terms)
        dtype: torch.dtype = getattr(torch, recipe.dtype)

        def stream() -> Iterator[tuple[str, Tensor]]:
            for name in self.family.names:
                base = self._tensor(self.family.base, name)
                numbers = {source.name: terms[name][source.name] for source in recipe.parents}
                merged = self.kernel.merge(
                    method,
                    name,
                    base,
                    [self._term(parents[s.name], s, numbers[s.name], name, recipe) for s in canonical],
                    dtype,
                    seed=recipe.seed,
                    divisor=recipe.divisor,
                    rescale=recipe.rescale,
                )
                yield name, merged

        return stream()

    def _sources(self, recipe: Recipe) -> dict[str, Checkpoint]:
        if recipe.base.digest != self.family.base.digest:
            raise RecipeError(
                f"base: the recipe was made for weights {recipe.base.digest[:12]}, {self.family.base.folder} holds "
                f"{self.family.base.digest[:12]}. Give the base that the recipe names."
            )
        for source in recipe.parents:
            if source.digest not in self._by_digest:
                raise RecipeError(
                    f"{source.name}: no parent at hand has weights {source.digest[:12]}. Give the checkpoint that the "
                    "recipe names, unchanged."
                )
        return {source.name: self._by_digest[source.digest] for source in recipe.parents}

    def _term(self, parent: Checkpoint, source: Source, numbers: Terms, name: str, recipe: Recipe) -> ParentTerm:
        method = METHODS[recipe.method]
        threshold = KEEP_ALL
        if method.trims and numbers.density < 1.0 and numbers.weight != 0.0:
            threshold = self._threshold(parent, name, numbers.density, recipe.trim_scope)
        weight = 0.0 if threshold == KEEP_NONE else numbers.weight
        drop = numbers.drop if method.drops else 0.0
        return ParentTerm(self._tensor(parent, name), source.digest, weight, drop, threshold)

    def _threshold(self, parent: Checkpoint, name: str, density: float, scope: str) -> Threshold:
        if scope == "tensor":
            return self._index(parent, name).threshold(density)
        key = (parent.digest, "")
        if key not in self._indices:
            self._indices[key] = MagnitudeIndex.union([self._index(parent, each) for each in self.family.names])
        return self._indices[key].threshold(density)

    def _index(self, parent: Checkpoint, name: str) -> MagnitudeIndex:
        key = (parent.digest, name)
        if key not in self._indices:
            delta = (
                self._tensor(parent, name).reshape(-1).float()
                - self._tensor(self.family.base, name).reshape(-1).float()
            )
            self._indices[key] = MagnitudeIndex.build(delta, trim_key(parent.digest, name))
        return self._indices[key]

    def _tensor(self, checkpoint: Checkpoint, name: str) -> Tensor:
        """A source tensor on the device; off the CPU it stays resident once read."""
        if self.device.type == "cpu":
            return checkpoint.tensor(name)
        key = (checkpoint.digest, name)
        if key not in self._resident:
            self._resident[key] = checkpoint.tensor(name).to(self.device)
        return self._resident[key]


def _check_weights(terms: dict[str, dict[str, Terms]]) -> None:
    for name, by_parent in terms.items():
        weights = [numbers.weight for numbers in by_parent.values()]
        # Relative, because 0.1 + 0.2 - 0.3 is not 0.0; exact summation, because the order of parents must not matter.
        if abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
            raise RecipeError(f"linear: the weights for {name} sum to 0, so there is no average. Change one of them.")


def open_sources(recipe: Recipe, relative_to: Path | None = None) -> Family:
    """Open the base and parents that a recipe names."""
    parents = {s.name: resolve(ModelRef(s.model, s.revision), relative_to) for s in recipe.parents}
    return open_family(resolve(ModelRef(recipe.base.model, recipe.base.revision), relative_to), parents)
