"""From a recipe to weights: tensor by tensor, in the order of a forward pass.

Everything that holds a merged model gets it from here: the engine's worker, the export, a reproduction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from heterosis.checkpoints import Checkpoint, Family, Layout, TensorSource, TensorSpec
from heterosis.checkpoints.reader import has_vocabulary
from heterosis.checkpoints.vocabulary import TokenSource, VocabularyPlan, plan_vocabulary
from heterosis.errors import RecipeError
from heterosis.evidence import Evidence, collect
from heterosis.merge import METHODS, Kernel, MagnitudeIndex, Method, ParentTerm, Rules
from heterosis.merge.kernel import trim_key
from heterosis.merge.magnitude import KEEP_ALL, KEEP_NONE, Threshold, task_vector
from heterosis.merge.whole import Measured
from heterosis.recipe import Recipe, Source, Terms
from heterosis.sources import data_file
from heterosis.wiring import Wiring, wire

# Compiling costs ten seconds or more on first use. It pays from about so many parameters on: in a search, and for one
# merge alone.
COMPILE_FROM, COMPILE_ONCE_FROM = 8_000_000, 200_000_000


class Plan(NamedTuple):
    """A recipe made concrete over one family: all that can be wrong with it has been found."""

    recipe: Recipe
    method: Method
    rules: Rules
    members: Mapping[str, TensorSource]
    wiring: Wiring
    terms: Mapping[str, Mapping[str, Terms]]
    settings: Mapping[str, Mapping[str, float | bool]]
    vocabulary: VocabularyPlan | None
    evidence: Mapping[str, Evidence]


class Builder:
    """Merges recipes over one family, keeping what all candidates share: open files and magnitude indices."""

    def __init__(
        self,
        family: Family,
        device: str | torch.device = "cpu",
        compiled: bool | None = None,
        relative_to: Path | None = None,
        once: bool = False,
    ) -> None:
        """`relative_to`: folder that a recipe's data file is looked for in. `once`: only one merge will be built."""
        self.family = family
        self.device = torch.device(device)
        size = sum(spec.numel for spec in family.base.specs.values())
        # On a GPU the compiler may fuse a product and a sum into one rounding, and an export on a CPU must match.
        pays = size >= (COMPILE_ONCE_FROM if once else COMPILE_FROM) and self.device.type == "cpu"
        self.kernel = Kernel(pays if compiled is None else compiled)
        self._relative_to = relative_to
        self._indices: dict[tuple[str, ...], MagnitudeIndex] = {}
        self._resident: dict[tuple[str, str], Tensor] = {}
        self._vocabularies: dict[str, VocabularyPlan] = {}
        self._measured: dict[tuple[str, ...], Evidence] = {}
        self._by_digest = {parent.digest: parent for parent in family.parents.values()}

    def plan(self, recipe: Recipe) -> Plan:
        """Check a recipe against the family; every problem of it shows here."""
        members = {"base": self.family.base, **self._sources(recipe)}
        wiring = wire(recipe.stack, members)
        layout = Layout(wiring.inputs, recipe.groups)
        terms, settings, method = recipe.terms(layout), recipe.settings_at(layout), METHODS[recipe.method]
        _check_terms(method, recipe, terms, settings, wiring)
        arithmetic = getattr(torch, recipe.arithmetic or "float32") if recipe.compat is not None else None
        rules = Rules(
            recipe.seed,
            recipe.divisor,
            recipe.election,
            recipe.zero_sign == "majority",
            recipe.rescale,
            arithmetic,
        )
        vocabulary = self._vocabulary(recipe, members)
        evidence = self._evidence(recipe, method, members)
        return Plan(recipe, method, rules, members, wiring, terms, settings, vocabulary, evidence)

    def _vocabulary(self, recipe: Recipe, members: Mapping[str, TensorSource]) -> VocabularyPlan | None:
        if recipe.vocabulary is None:
            return None
        key = repr(recipe.vocabulary) + repr(sorted((name, member.digest) for name, member in members.items()))
        if key not in self._vocabularies:
            given = recipe.vocabulary
            tokens = {token: TokenSource(**row.model_dump()) for token, row in given.tokens.items()}
            self._vocabularies[key] = plan_vocabulary(
                "base", members, given.source, pad_to_multiple_of=given.pad_to_multiple_of, tokens=tokens
            )
        return self._vocabularies[key]

    def _evidence(self, recipe: Recipe, method: Method, members: Mapping[str, TensorSource]) -> dict[str, Evidence]:
        """What the method must know of each parent; measured once, then read from where it is kept."""
        if method.evidence is None:
            return {}
        found = {}
        for source in recipe.parents:
            parent, data = members[source.name], recipe.data_of(source.name)
            assert data is not None
            if not isinstance(parent, Checkpoint):
                raise RecipeError(
                    f"{source.name}: {method.name} needs full weights. Merge the adapter into its base first."
                )
            path = data_file(data, self._relative_to)
            key = (method.evidence, parent.digest, str(path), str(data))
            if key not in self._measured:
                self._measured[key] = collect(
                    parent.folder,
                    parent.digest,
                    path,
                    method.evidence,
                    samples=data.samples,
                    max_length=data.max_length,
                    labels=data.labels,
                    field=data.field,
                )
            found[source.name] = self._measured[key]
        return found

    def specs(self, plan: Plan | Recipe) -> dict[str, TensorSpec]:
        """Shape and dtype of every merged tensor, in the order in which `tensors` yields them."""
        plan = plan if isinstance(plan, Plan) else self.plan(plan)
        dtype: torch.dtype = getattr(torch, plan.recipe.dtype)
        return {name: TensorSpec(_shape(plan, name), dtype) for name in plan.wiring.inputs}

    def tensors(self, plan: Plan | Recipe) -> Iterator[tuple[str, Tensor]]:
        """Merge, yielding a fresh tensor for each name. Problems of the recipe show before the first tensor."""
        plan = plan if isinstance(plan, Plan) else self.plan(plan)
        return self._stream(plan)

    def _stream(self, plan: Plan) -> Iterator[tuple[str, Tensor]]:
        dtype: torch.dtype = getattr(torch, plan.recipe.dtype)
        rules = plan.rules._replace(tie_sign=self._majority(plan))
        for name, origin, terms in self._terms(plan):
            merged = self.kernel.merge(plan.method, name, origin, terms, dtype, rules, plan.settings[name])
            del origin, terms
            yield name, merged
            del merged

    def _terms(self, plan: Plan) -> Iterator[tuple[str, Tensor, list[ParentTerm]]]:
        """Name, base and parents of each merged tensor.

        Nobody holds on to them when asking for the next, or the memory of three tensors' inputs is taken, not of two.
        """
        order = plan.recipe.canonical_parents()
        for name, tensors in self._inputs(plan):
            numbers = plan.terms[name]
            terms = [self._term(plan, s, numbers[s.name], name, tensors) for s in order if s.name in tensors]
            yield name, tensors["base"] if "base" in tensors else tensors[next(iter(tensors))], terms
            del tensors, terms

    def _majority(self, plan: Plan) -> int | None:
        """The sign that most entries of the whole model elect, where one threshold trims the whole model.

        It decides elections that tie there, as in the TIES authors' code; it is known after a first pass alone.
        """
        elects = plan.method.trims and plan.method.combine == "ties" and plan.recipe.trim_scope == "model"
        if not elects or not plan.rules.majority or plan.rules.arithmetic is not None:
            return None
        total = 0
        for name, origin, terms in self._terms(plan):
            total += self.kernel.elections(plan.method, name, origin, terms, plan.rules, plan.settings[name])
            del origin, terms
        return (total > 0) - (total < 0)

    def _inputs(self, plan: Plan) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each merged tensor's inputs by member; where files are not mapped, the next are read meanwhile."""
        names = list(plan.wiring.inputs)
        if self.family.mapped:
            for name in names:
                yield name, self._read(plan, name)
            return
        with ThreadPoolExecutor(1, "read-ahead") as reader:
            coming = reader.submit(self._read, plan, names[0])
            for name, following in zip(names, [*names[1:], None], strict=True):
                tensors = coming.result()
                if following is not None:
                    coming = reader.submit(self._read, plan, following)
                yield name, tensors
                del tensors

    def _read(self, plan: Plan, name: str) -> dict[str, Tensor]:
        inputs = plan.wiring.inputs[name]
        tensors = {member: self._tensor(plan.members[member], at) for member, at in inputs.items()}
        if plan.vocabulary is not None and has_vocabulary(name):
            tensors = plan.vocabulary.align(tensors)
        return tensors

    def _sources(self, recipe: Recipe) -> dict[str, TensorSource]:
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

    def _term(self, plan: Plan, source: Source, numbers: Terms, name: str, tensors: Mapping[str, Tensor]) -> ParentTerm:
        method = plan.method
        floor, ceiling, factor = KEEP_ALL, KEEP_NONE, 1.0
        prunes = numbers.density < 1.0 or (method.prunes == "small_and_large" and numbers.gamma > 0.0)
        if method.trims and prunes and numbers.weight != 0.0 and plan.rules.arithmetic is None:
            floor, ceiling = self._thresholds(plan, source, name, tensors, numbers)
            if plan.settings[name].get("prune_rescale") and numbers.density > 0.0:
                factor = 1.0 / numbers.density
        return ParentTerm(
            tensors[source.name],
            source.digest,
            0.0 if floor == KEEP_NONE else numbers.weight,
            numbers.drop,
            floor,
            ceiling,
            numbers.epsilon if method.prunes == "by_rank" else 0.0,
            factor,
            _measured(plan, source.name, name, self.device),
            numbers.density,
            numbers.gamma,
        )

    def _thresholds(
        self, plan: Plan, source: Source, name: str, tensors: Mapping[str, Tensor], numbers: Terms
    ) -> tuple[Threshold, Threshold]:
        gamma = numbers.gamma if plan.method.prunes == "small_and_large" else 0.0
        if plan.recipe.trim_scope == "tensor":
            return self._index(plan, source, name, tensors).band(numbers.density, gamma)
        key = (source.digest, _wiring_key(plan))
        if key not in self._indices:
            names = [each for each, inputs in plan.wiring.inputs.items() if source.name in inputs]
            parts = [self._index(plan, source, each, None) for each in names]
            self._indices[key] = MagnitudeIndex.union(parts)
        # The TIES authors keep what reaches the magnitude of the (k+1)-th largest entry: 201 of 1000 at 20 %.
        return self._indices[key].band(numbers.density, gamma, more=1)

    def _index(self, plan: Plan, source: Source, name: str, tensors: Mapping[str, Tensor] | None) -> MagnitudeIndex:
        inputs = plan.wiring.inputs[name]
        key = (source.digest, inputs[source.name], inputs["base"], name, _vocabulary_key(plan, name))
        if key not in self._indices:
            tensors = self._read(plan, name) if tensors is None else tensors
            delta = task_vector(tensors[source.name], tensors["base"])
            self._indices[key] = MagnitudeIndex.build(delta, trim_key(source.digest, name))
        return self._indices[key]

    def _tensor(self, checkpoint: TensorSource, name: str) -> Tensor:
        """A source tensor on the device; off the CPU it stays resident once read."""
        if self.device.type == "cpu":
            return checkpoint.tensor(name)
        key = (checkpoint.digest, name)
        if key not in self._resident:
            self._resident[key] = checkpoint.tensor(name).to(self.device)
        return self._resident[key]


def _shape(plan: Plan, name: str) -> tuple[int, ...]:
    shape = plan.wiring.shapes[name]
    return (plan.vocabulary.size, *shape[1:]) if plan.vocabulary is not None and has_vocabulary(name) else shape


def _measured(plan: Plan, parent: str, name: str, device: torch.device) -> Measured | None:
    known = plan.evidence.get(parent)
    own = plan.wiring.inputs[name][parent]
    if known is None or own not in known:
        return None
    return Measured(known[own].to(device), known.norm, own in known.input_first)


def _wiring_key(plan: Plan) -> str:
    return f"{plan.recipe.stack} {plan.recipe.vocabulary}"


def _vocabulary_key(plan: Plan, name: str) -> str:
    return str(plan.recipe.vocabulary) if plan.vocabulary is not None and has_vocabulary(name) else ""


def _check_terms(
    method: Method,
    recipe: Recipe,
    terms: Mapping[str, Mapping[str, Terms]],
    settings: Mapping[str, Mapping[str, float | bool]],
    wiring: Wiring,
) -> None:
    fewest, most = method.parents
    for name, by_parent in terms.items():
        inputs = wiring.inputs[name]
        present = {parent: numbers for parent, numbers in by_parent.items() if parent in inputs}
        if method.name == "passthrough" and len(present) != 1:
            raise RecipeError(f"passthrough takes one parent for each layer, {name} has {len(present)}. See stack.")
        if present and recipe.stack is not None and not fewest <= len(present) <= (most or len(present)):
            raise RecipeError(f"stack: {method.name} needs {fewest} parents at {name}, the stack gives {len(present)}.")
        sparse = any(t.density < 1 or t.drop > 0 or t.gamma > 0 for t in present.values())
        if (method.uses_base or sparse) and "base" not in inputs:
            raise RecipeError(
                f"{method.name} needs the base at {name}, where the stack leaves it out. Add it to stack."
            )
        if (method.combine == "mean" and method.name != "passthrough") or method.name == "karcher":
            _check_weights(method.name, name, present, bool(settings[name].get("normalize", True)))


def _check_weights(method: str, name: str, present: Mapping[str, Terms], normalized: bool) -> None:
    weights = [numbers.weight for numbers in present.values()]
    # Relative, because 0.1 + 0.2 - 0.3 is not 0.0; exact summation, because the order of parents must not matter.
    if weights and normalized and abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
        raise RecipeError(f"{method}: the weights for {name} sum to 0, so there is no average. Change one of them.")
    if not normalized and any(t.density < 1 or t.drop > 0 for t in present.values()):
        raise RecipeError(f"{method}: drop needs normalize: true, since a plain sum of weights has no base to drop to.")
