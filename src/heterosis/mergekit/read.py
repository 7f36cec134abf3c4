"""A mergekit configuration as a recipe that gives what mergekit would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from heterosis.checkpoints import Family, ModelRef, TensorSource, open_family, resolve
from heterosis.checkpoints.family import config_differences
from heterosis.checkpoints.source import is_hub_snapshot
from heterosis.errors import RecipeError
from heterosis.merge import METHODS
from heterosis.mergekit.profiles import Profiles, depth_of, site
from heterosis.mergekit.schema import InputSlice, MergekitConfig, Reference, Slice
from heterosis.mergekit.terms import CONTRACTS, Contract, numbers_at, settings_at
from heterosis.recipe import Recipe, Source
from heterosis.wiring import wire

# Stands for the merge as a whole among the owners of parameters.
WHOLE = ""
DTYPES = ("float32", "float16", "bfloat16")


class Opened(NamedTuple):
    """A configuration with its models opened, and what of it plays no part."""

    recipe: Recipe
    family: Family
    notes: tuple[str, ...]


def open_mergekit(config: MergekitConfig, relative_to: Path | None = None, **options: Any) -> Opened:
    """Open the models that a configuration names and translate it. Options are those of `open_family`."""
    contract = CONTRACTS.get(config.merge_method)
    if contract is None:
        raise RecipeError(f"merge_method {config.merge_method!r} is unknown; one of {', '.join(CONTRACTS)}.")
    cast = _Cast(config, contract)
    folders = {ref: _folder(ref, relative_to) for ref in (cast.donor, *cast.parents.values())}
    family = open_family(
        folders[cast.donor][0],
        {name: folders[ref][0] for name, ref in cast.parents.items()},
        adapters={name: at for name, ref in cast.parents.items() if (at := folders[ref][1]) is not None},
        vocabulary="error" if cast.tokenizer is None else "union",
        stacked=config.body.slices is not None,
        strict=False,
        **options,
    )
    if folders[cast.donor][1] is not None:
        raise RecipeError(f"base_model {cast.donor}: a model with an adapter cannot be the base. Merge the two first.")
    members: dict[str, TensorSource] = {"base": family.base, **family.parents}
    recipe = _recipe(config, contract, cast, members)
    sources = {"base": recipe.base, **{parent.name: parent for parent in recipe.parents}}
    placed = {name: _placed(source, *folders[cast.reference(name)]) for name, source in sources.items()}
    parents = tuple(placed[parent.name] for parent in recipe.parents)
    recipe = recipe.model_copy(update={"base": placed["base"], "parents": parents})
    return Opened(recipe, family, tuple(_notes(config, contract) + _config_notes(family)))


def _placed(source: Source, folder: Path, adapter: Path | None) -> Source:
    """The source by its full path, or by the commit of the hub's that was taken."""
    found: dict[str, Any] = {"model": str(folder)}
    if is_hub_snapshot(folder):
        found = {"revision": folder.name}
    if adapter is not None:
        found |= {"adapter_revision": adapter.name} if is_hub_snapshot(adapter) else {"adapter": str(adapter)}
    return source.model_copy(update=found)


def _folder(ref: Reference, relative_to: Path | None) -> tuple[Path, Path | None]:
    adapter = resolve(ModelRef(ref.adapter, ref.adapter_revision), relative_to) if ref.adapter else None
    return resolve(ModelRef(ref.model, ref.revision), relative_to), adapter


class _Cast:
    """Who plays which part: the donor of configuration and tokenizer, and the parents by name."""

    def __init__(self, config: MergekitConfig, contract: Contract) -> None:
        self.base: Reference | None = config.base_model
        of_slices = {each.base_model for each in config.body.slices or ()}
        if self.base is None and len(of_slices) == 1:
            self.base = of_slices.pop()
        self.slices = config.body.slices
        sources = list(config.body.models or ()) + [s for each in self.slices or () for s in each.sources]
        mentioned = list(dict.fromkeys(source.model for source in sources))
        for each in self.slices or ():
            if each.base_model is not None and each.base_model != self.base:
                raise RecipeError(
                    f"slices: base_model {each.base_model} differs from the whole's; give one base_model."
                )
        if contract.needs_base and self.base is None:
            raise RecipeError(f"merge_method {config.merge_method} needs a base_model. Add it.")
        self.donor: Reference = self.base or mentioned[0]
        self.takes_base_as_parent = not contract.sets_base_apart and self.base is not None
        if config.body.models is not None and self.base is not None and self.base not in mentioned:
            mentioned.append(self.base)  # as mergekit: a base that is named but not listed joins in, last
        refs = [ref for ref in mentioned if self.takes_base_as_parent or ref != self.base]
        if not refs:
            raise RecipeError("models: only the base is named. Name a model to merge with it.")
        self.parents = {_name(i, refs): ref for i, ref in enumerate(refs)}
        self.names = {ref: name for name, ref in self.parents.items()}
        source = config.tokenizer.source if config.tokenizer is not None else config.tokenizer_source
        self.tokenizer: str | None = None
        if source is not None:
            self.tokenizer = source if source in ("base", "union") else self.named("tokenizer source", source)

    def named(self, what: str, value: Any) -> str:
        """The name of the model that a value of the file names."""
        try:
            return self.member(Reference.parse(value))
        except ValueError as error:
            raise RecipeError(f"{what}: {error}.") from None

    def reference(self, name: str) -> Reference:
        """The model behind a name of the recipe."""
        return self.donor if name == "base" else self.parents[name]

    def member(self, ref: Reference) -> str:
        """The name of a model in the recipe."""
        if ref == self.donor and ref not in self.names:
            return "base"
        if ref not in self.names:
            raise RecipeError(f"{ref}: not one of the models that are merged.")
        return self.names[ref]


def _name(i: int, refs: Sequence[Reference]) -> str:
    """The last part of a model's path, numbered where that is ambiguous."""
    stems = [Path((each.adapter or each.model).rstrip("/")).name or "model" for each in refs]
    return stems[i] if stems.count(stems[i]) == 1 and stems[i] != "base" else f"{stems[i]}-{i + 1}"


def _recipe(config: MergekitConfig, contract: Contract, cast: _Cast, members: Mapping[str, TensorSource]) -> Recipe:
    slices = cast.slices or (_whole(config, cast, members),)
    stack = _stack(slices, cast, contract, members)
    groups, found = _parameters(config, contract, cast, slices, stack, members)
    settings = found.pop(WHOLE, {})
    arithmetic = _dtype(config.dtype, "dtype") or _promoted(members)
    content = {
        "method": config.merge_method,
        "base": _source("base", cast.donor, members["base"]),
        "parents": [_source(name, ref, members[name]) for name, ref in cast.parents.items()],
        "groups": groups,
        "parameters": found,
        "settings": settings,
        **contract.rules(config),
        "compat": "mergekit",
        "arithmetic": arithmetic,
        "dtype": _dtype(config.out_dtype, "out_dtype") or ("float32" if contract.widens else arithmetic),
        "stack": None if cast.slices is None or _is_plain(stack, members) else stack,
        "vocabulary": _vocabulary(config, cast),
        "chat_template": config.chat_template,
    }
    return Recipe.parse(content, "mergekit configuration")


def _parameters(
    config: MergekitConfig,
    contract: Contract,
    cast: _Cast,
    slices: Sequence[Slice],
    stack: Mapping[str, tuple[int | None, ...]],
    members: Mapping[str, TensorSource],
) -> tuple[dict[str, str], dict[str, dict[str, dict[str, Any]]]]:
    """Groups, and parent (or WHOLE) -> group -> values: mergekit's rules evaluated tensor by tensor."""
    depths = [(i, k, each) for each in slices for i, k in _positions(each)]
    profiles = Profiles(len(depths))
    left_out = _left_out_behind(slices, cast)
    around_base = {"around_base": True} if "around_base" in METHODS[contract.name].settings and "base" in stack else {}
    for name, inputs in wire(stack, members).inputs.items():
        where = site(name)
        i, count, part = depths[where.layer if where.layer is not None else 0 if where.at_input else -1]
        t = 0.0 if where.layer is None else i / (count - 1) if count > 1 else 1.0
        shared = (part.parameters, config.body.parameters, config.parameters)
        sources = {cast.member(source.model): source for source in part.sources}
        for member, theirs in inputs.items():
            if member == "base":
                continue
            levels = (sources[member].parameters, *shared)
            numbers = numbers_at(contract, levels, shared, (theirs, name), t)
            if where.layer is None and not where.at_input and member in left_out:
                numbers |= {"weight": 0.0}
            profiles.add(where, member, numbers)
            shared_or_own = levels if contract.name == "passthrough" else shared
            profiles.add(where, WHOLE, settings_at(contract, shared_or_own, name, t) | around_base)
    return profiles.groups()


def _left_out_behind(slices: Sequence[Slice], cast: _Cast) -> set[str]:
    """Parents that mergekit forgets behind the layers: it pairs the last slice's models with the first's number."""
    return {cast.member(source.model) for source in slices[-1].sources[len(slices[0].sources) :]}


def _positions(part: Slice) -> list[tuple[int, int]]:
    first, last = part.sources[0].layer_range
    return [(i, last - first) for i in range(last - first)]


def _whole(config: MergekitConfig, cast: _Cast, members: Mapping[str, TensorSource]) -> Slice:
    """`models:` is one slice over all layers of every model."""
    sources = [
        InputSlice(model=m.model, parameters=m.parameters, layer_range=(0, depth_of(members[cast.member(m.model)])))
        for m in config.body.models or ()
    ]
    if cast.base is not None and cast.base not in [source.model for source in sources]:
        sources.append(InputSlice(model=cast.base, layer_range=(0, depth_of(members["base"]))))
    return Slice(sources=tuple(sources))


def _stack(
    slices: Sequence[Slice], cast: _Cast, contract: Contract, members: Mapping[str, TensorSource]
) -> dict[str, tuple[int | None, ...]]:
    """Member -> its layer in each layer of the merge."""
    order: dict[str, list[int | None]] = {name: [] for name in ("base", *cast.parents)}
    for each in slices:
        for source in each.sources:
            depth = depth_of(members[cast.member(source.model)])
            if source.layer_range[1] > depth:
                wanted = list(source.layer_range)
                raise RecipeError(f"slices: {source.model} has {depth} layers, so there is no layer_range {wanted}.")
        first, last = each.sources[0].layer_range
        here: dict[str, InputSlice] = {}
        for source in each.sources:
            name = "base" if source.model == cast.base and contract.sets_base_apart else cast.member(source.model)
            if name in here:
                raise RecipeError(
                    f"slices: {source.model} appears twice in one slice; mergekit keeps only one of them."
                )
            here[name] = source
        if contract.needs_base and "base" not in here:
            raise RecipeError(f"slices: {contract.name} needs the base model among the sources of every slice.")
        for name, layers in order.items():
            begin = here[name].layer_range[0] if name in here else None
            layers += [None if begin is None else begin + i for i in range(last - first)]
    return {name: tuple(layers) for name, layers in order.items() if any(at is not None for at in layers)}


def _is_plain(stack: Mapping[str, tuple[int | None, ...]], members: Mapping[str, TensorSource]) -> bool:
    return set(stack) | {"base"} == set(members) and all(
        layers == tuple(range(depth_of(members[name]))) for name, layers in stack.items()
    )


def _source(name: str, ref: Reference, member: TensorSource) -> dict[str, Any]:
    found = {"name": name, "model": ref.model, "revision": ref.revision, "digest": member.digest}
    if ref.adapter is not None:
        found |= {"adapter": ref.adapter, "adapter_revision": ref.adapter_revision}
    return found


def _promoted(members: Mapping[str, TensorSource]) -> str:
    found = [spec.dtype for member in members.values() for spec in member.specs.values()]
    dtype = found[0]
    for each in found[1:]:
        dtype = torch.promote_types(dtype, each)
    return "float32" if dtype == torch.float64 else str(dtype).removeprefix("torch.")


def _dtype(name: str | None, key: str) -> str | None:
    if name is None:
        return None
    plain = name.removeprefix("torch.")
    if plain not in DTYPES:
        raise RecipeError(f"{key}: {name!r} is not supported; one of {', '.join(DTYPES)}.")
    return plain


def _vocabulary(config: MergekitConfig, cast: _Cast) -> dict[str, Any] | None:
    if cast.tokenizer is None:
        return None
    tokens = {}
    given = config.tokenizer
    for token, row in ((given.tokens or {}) if given is not None else {}).items():
        tokens[token] = _token_row(row.source, cast) | {"force": row.force}
    padding = given.pad_to_multiple_of if given is not None else None
    return {"source": cast.tokenizer, "pad_to_multiple_of": padding, "tokens": tokens}


def _token_row(source: Any, cast: _Cast) -> dict[str, Any]:
    if source is None:
        return {"kind": "model"}
    if isinstance(source, dict) and source.get("kind") in ("zero", "model_token"):
        row: dict[str, Any] = {"kind": source["kind"]}
        if source["kind"] == "model_token":
            row |= {"member": cast.named("tokens", source.get("model"))}
            row |= {key: source[key] for key in ("token", "token_id") if source.get(key) is not None}
        return row
    return {"kind": "model", "member": cast.named("tokens", source)}


def _config_notes(family: Family) -> list[str]:
    """Where models need another configuration than the one that the merge will have; mergekit does not look."""
    return [
        f"{name}: config.json has {key} {theirs}, the merge will have {ours}, under which this is another model"
        for name, parent in family.parents.items()
        for key, ours, theirs in config_differences(family.base, parent)
    ]


def _notes(config: MergekitConfig, contract: Contract) -> list[str]:
    """Parameters that the method does not read; mergekit passes them over without a word."""
    slices = config.body.slices or ()
    levels = [config.parameters, config.body.parameters, *(each.parameters for each in slices)]
    levels += [source.parameters for source in config.body.models or ()]
    levels += [source.parameters for each in slices for source in each.sources]
    named = dict.fromkeys(name for level in levels for name in level or {})
    keys = [f"{key}: no key of mergekit's; it changes nothing" for key in config.model_extra or {}]
    return keys + [
        f"parameters.{name}: {contract.name} does not read it, in mergekit neither; it changes nothing"
        for name in named
        if name not in contract.knows
    ]
