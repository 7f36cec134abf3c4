"""The recipe: the complete description of one merge, and what lineage records, users share and engines build.

A recipe and its sources reproduce the merged weights bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from heterosis.checkpoints.layout import Layout
from heterosis.errors import RecipeError
from heterosis.files import parse_yaml, write_text
from heterosis.merge.consensus import Divisor, Election
from heterosis.merge.methods import METHODS, Method, depth_factor
from heterosis.recipe.parts import (
    LARGEST,
    DataSource,
    Dtype,
    Frozen,
    Parameters,
    SettingValue,
    Source,
    Terms,
    Vocabulary,
)


class Recipe(Frozen):
    """One merge, completely described."""

    heterosis: Literal[1] = 1
    """Version of this format."""
    method: str
    """A key of METHODS."""
    base: Source
    """The checkpoint that all parents were fine-tuned from; its configuration and tokenizer are the merge's."""
    parents: tuple[Source, ...]
    """The models to merge."""
    groups: dict[str, str] = Field(default={"all": ".*"})
    """Group name -> regular expression on tensor names; the first that matches decides."""
    parameters: dict[str, dict[str, Parameters]] = Field(default={})
    """Parent name -> group name -> parameters. What is left out has weight 1, density 1, drop 0."""
    settings: dict[str, dict[str, SettingValue]] = Field(default={})
    """Group name -> the method's own settings (scale, t, select_topk, …), one number or one per layer."""
    seed: int = 0
    """Seed of the DARE masks."""
    trim_scope: Literal["tensor", "model"] = "tensor"
    """Whether the kept fraction is taken per tensor, or over the whole task vector (the TIES paper)."""
    election: Election = "weighted"
    """Which votes elect the sign: λ_k δ_k, δ_k (the TIES authors, PEFT), or their signs alone (PEFT's frequency)."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign where the votes cancel exactly: the tensor's majority (the TIES authors), or + (mergekit, PEFT)."""
    divisor: Divisor = "count"
    """What the sum of agreeing updates is divided by: their count (the TIES paper), their |λ|, their λ, or nothing."""
    rescale: Literal["inverse_keep", "none", "l1"] | float = "inverse_keep"
    """Factor on what DARE leaves: 1/(1-p), none (DropOnly), a number (DAREx); l1 with compat: mergekit alone."""
    compat: Literal["mergekit"] | None = None
    """mergekit: mergekit's choices and arithmetic in place of the papers' (its random masks excepted)."""
    arithmetic: Dtype | None = None
    """With compat: mergekit, the dtype in which it computes (its `dtype`); float32 otherwise."""
    stack: dict[str, tuple[int | None, ...]] | None = None
    """Member (`base` or a parent) -> its layer that goes into each layer of the merge, null where it takes no part.
    Tensors before the layers follow the first layer, tensors behind them the last. Left out: layer by layer."""
    vocabulary: Vocabulary | None = None
    """How different tokenizers are aligned. Left out: all must have one vocabulary."""
    data: DataSource | dict[str, DataSource] | None = None
    """Texts for methods that measure their parents (fisher, regmean): one file for all, or each parent's own."""
    chat_template: str | None = None
    """Chat template of the merge (Jinja text, or `auto`: the commonest among its models); the base's when left out."""
    dtype: Dtype = "bfloat16"
    """Dtype of the merged weights; arithmetic is float32 with one rounding at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; one of {', '.join(METHODS)}")
        names = [parent.name for parent in self.parents]
        if not names or len(set(names)) != len(names):
            raise ValueError("parents must be a list of distinct names, at least one")
        if bad := [name for name in names if name == "base" or not name.isprintable()]:
            raise ValueError(
                f"{bad[0]!r} cannot name a parent: base is the base's own name, and names must be printable"
            )
        if self.chat_template is not None and self.chat_template != "auto" and "{" not in self.chat_template:
            raise ValueError(f"chat_template {self.chat_template[:40]!r} is no template; give the Jinja text, or auto")
        for parent, by_group in self.parameters.items():
            if parent not in names:
                raise ValueError(f"parameters speak of {parent!r}, which is not a parent ({', '.join(names)})")
            if unknown := sorted(set(by_group) - set(self.groups)):
                raise ValueError(f"parameters.{parent} speaks of group {unknown[0]!r}, which groups does not define")
        self._check_method(METHODS[self.method])
        self._check_stack([*names, "base"])
        return self

    def _check_method(self, method: Method) -> None:
        fewest, most = method.parents
        if len(self.parents) < fewest or (most is not None and len(self.parents) > most):
            raise ValueError(f"{method.name} takes {method.wanted_parents} parents, not {len(self.parents)}")
        for group, given in self.settings.items():
            if group not in self.groups:
                raise ValueError(f"settings speak of group {group!r}, which groups does not define")
            for name, value in given.items():
                if name not in method.settings:
                    known = ", ".join(method.settings) or "none"
                    raise ValueError(f"settings.{group}.{name}: {method.name} has no such setting; known: {known}")
                numbers = value if isinstance(value, tuple) else (value,)
                if any(abs(number) > LARGEST for number in numbers):
                    raise ValueError(f"settings.{group}.{name} must lie within ±{LARGEST:g}")
                if name == "max_iter" and not all(1 <= number <= 10_000 for number in numbers):
                    raise ValueError(f"settings.{group}.max_iter must lie between 1 and 10,000")
                if isinstance(method.settings[name], bool) != isinstance(value, bool):
                    kind = "true or false" if isinstance(method.settings[name], bool) else "a number"
                    raise ValueError(f"settings.{group}.{name} must be {kind}")
        if (method.evidence is not None) != (self.data is not None):
            raise ValueError(
                f"{method.name} measures its parents: name the texts under data"
                if self.data is None
                else f"{method.name} reads no data; remove it"
            )
        if isinstance(self.data, dict) and set(self.data) != {parent.name for parent in self.parents}:
            raise ValueError("data must name every parent once, and nothing else")
        if method.evidence is not None and self.vocabulary is not None:
            raise ValueError(f"{method.name} measures models as they are, so their vocabularies cannot be aligned too")
        if self.compat is None and (self.rescale == "l1" or self.arithmetic is not None):
            raise ValueError("rescale: l1 and arithmetic are for compat: mergekit alone")

    def _check_stack(self, members: list[str]) -> None:
        if self.stack is None:
            return
        if unknown := sorted(set(self.stack) - set(members)):
            raise ValueError(f"stack speaks of {unknown[0]!r}; members are {', '.join(members)}")
        lengths = {len(layers) for layers in self.stack.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError("stack: every member needs a list of the same length, at least one layer")
        if any(layer is not None and layer < 0 for layers in self.stack.values() for layer in layers):
            raise ValueError("stack: layers count from 0")
        for i, layer in enumerate(zip(*self.stack.values(), strict=True)):
            if all(at is None for at in layer):
                raise ValueError(f"stack: layer {i} of the merge comes from nobody")

    def canonical_parents(self) -> tuple[Source, ...]:
        """Parents by content, so that the order in which a user lists them changes nothing, not even a rounding.

        With compat: mergekit as they are listed, since mergekit sums them in that order.
        """
        if self.compat is not None:
            return self.parents

        def content(parent: Source) -> tuple[str, str]:
            return parent.digest, json.dumps(self._content(parent))

        return tuple(sorted(self.parents, key=content))

    def data_of(self, parent: str) -> DataSource | None:
        """The texts on which a parent is measured."""
        return self.data[parent] if isinstance(self.data, dict) else self.data

    def layers_of(self, member: str, layers: int) -> tuple[int | None, ...]:
        """The layer of `member` that goes into each of the merge's `layers` layers."""
        if self.stack is None:
            return tuple(range(layers))
        return self.stack.get(member, (None,) * layers)

    def terms(self, layout: Layout) -> dict[str, dict[str, Terms]]:
        """Tensor name -> parent name -> numbers."""
        for parent, by_group in self.parameters.items():
            for group, parameters in by_group.items():
                for gene in Terms._fields:
                    where = f"parameters.{parent}.{group}.{gene}"
                    _check_length(where, getattr(parameters, gene), layout.layers)
        return {
            tensor: {parent.name: self._terms(parent.name, tensor, layout) for parent in self.parents}
            for tensor in layout.places
        }

    def _terms(self, parent: str, tensor: str, layout: Layout) -> Terms:
        place = layout.places[tensor]
        given = self.parameters.get(parent, {}).get(place.group, Parameters())
        depth = place.depth(layout.layers)
        return Terms(*(_at(getattr(given, gene), depth) for gene in Terms._fields))

    def settings_at(self, layout: Layout) -> dict[str, dict[str, float | bool]]:
        """Tensor name -> the method's settings there, with `scale` holding the whole factor on its updates."""
        method = METHODS[self.method]
        for group, given in self.settings.items():
            for name, value in given.items():
                _check_length(f"settings.{group}.{name}", value, layout.layers)
        found = {}
        for tensor, place in layout.places.items():
            depth = place.depth(layout.layers)
            here = {name: _at(value, depth) for name, value in self.settings.get(place.group, {}).items()}
            values: dict[str, float | bool] = {**method.settings, **here}
            if "scale" in values:
                values["scale"] = depth_factor(values, depth, layout.layers)
            found[tensor] = values
        return found

    @property
    def digest(self) -> str:
        """Identity of the merge: equal for equal merges, whatever the parents are called or where they lie."""
        # What is left at its default is left out, so that a new key does not change the identity of older recipes.
        named = {"base", "parents", "parameters", "groups", "stack", "vocabulary", "data", "chat_template"}
        content = self.model_dump(mode="json", exclude=named, exclude_defaults=True)
        content |= {"heterosis": self.heterosis, "dtype": self.dtype, "seed": self.seed}
        content["base"] = self.base.digest
        content["groups"] = list(self.groups.items())  # their order decides
        content["parents"] = [self._content(parent) for parent in self.canonical_parents()]
        if self.stack is not None:
            content["stack"] = self.stack.get("base")
        if self.vocabulary is not None:
            content["vocabulary"] = self._vocabulary_content(self.vocabulary)
        if self.data is not None:
            content["data"] = [_data_content(self.data_of(parent.name)) for parent in self.canonical_parents()]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _content(self, parent: Source) -> dict[str, Any]:
        """What one parent brings to the merge, free of its name."""
        by_group = self.parameters.get(parent.name, {})
        numbers = {
            group: by_group.get(group, Parameters()).model_dump(mode="json", exclude_defaults=True)
            for group in self.groups
        }
        content: dict[str, Any] = {"digest": parent.digest, "parameters": numbers}
        if self.stack is not None:
            content["stack"] = self.stack.get(parent.name)
        return content

    def _vocabulary_content(self, vocabulary: Vocabulary) -> dict[str, Any]:
        digests = {source.name: source.digest for source in self.parents}
        content = vocabulary.model_dump(mode="json")
        content["source"] = digests.get(vocabulary.source, vocabulary.source)
        for row in content["tokens"].values():
            row["member"] = digests.get(row["member"], row["member"])
        return content

    def to_yaml(self) -> str:
        """The recipe as the file that `from_yaml` reads."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content = {"heterosis": self.heterosis, **content, "seed": self.seed, "dtype": self.dtype}
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write the recipe, whole or not at all."""
        write_text(path, self.to_yaml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe; RecipeError names the file and the first fault."""
        return cls.parse(read_yaml(path), str(path))

    @classmethod
    def parse(cls, content: Any, where: str) -> Recipe:
        """Validate parsed content; `where` names it in errors."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"] if not _names_a_type(part))
            raise RecipeError(f"{where}: {place or 'recipe'}: {first['msg'].removeprefix('Value error, ')}") from None


def read_yaml(path: Path) -> Any:
    """Parsed YAML of a file that describes a merge; RecipeError where it cannot be read or is not YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}).") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML lets Python's own errors through where a value does not fit its tag: `seed: 2020-99-99`.
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error


def _names_a_type(part: int | str) -> bool:
    """Whether a step of a fault's place is pydantic's choice among types, which is not in the user's file."""
    return isinstance(part, str) and (part in ("float", "int", "bool", "str", "DataSource") or "[" in part)


def _data_content(data: DataSource | None) -> dict[str, Any]:
    assert data is not None
    return data.model_dump(exclude={"path"} if data.digest else set())


def _at(value: Any, depth: int) -> Any:
    return value[depth] if isinstance(value, tuple) else value


def _check_length(where: str, value: Any, layers: int) -> None:
    if isinstance(value, tuple) and len(value) != layers:
        raise RecipeError(
            f"{where} has {len(value)} values, the merge has {layers} layers. Give one number, or one per layer."
        )
