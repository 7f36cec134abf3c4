"""The recipe: the complete description of one merge, and what lineage records, users share and engines build.

A recipe and its sources reproduce the merged weights bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from heterosis.checkpoints.layout import Layout
from heterosis.errors import RecipeError
from heterosis.files import write_text
from heterosis.merge.methods import METHODS, Divisor

Depthwise = float | tuple[float, ...]
NEUTRAL = {"weight": 1.0, "density": 1.0, "drop": 0.0}


class Frozen(BaseModel):
    """A value: immutable, unknown keys refused, no NaN or Inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Source(Frozen):
    """A checkpoint that goes into a merge."""

    name: str
    """Label under which this recipe's parameters speak of it."""
    model: str
    """Local folder or hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    digest: str
    """Content digest of the weights: what identifies the source, wherever it lies."""


class Parameters(Frozen):
    """Parameters of one parent in one group: one number, or one per layer.

    Tensors outside the layers take the first value (input embeddings) or the last (final norm, head).
    """

    weight: Depthwise = 1.0
    """λ, the factor on the task vector (on the weights themselves for `linear`)."""
    density: Depthwise = 1.0
    """d, the fraction of entries kept by magnitude, in [0, 1]."""
    drop: Depthwise = 0.0
    """p, the probability with which an entry is dropped, in [0, 1)."""

    @field_validator("density", "drop")
    @classmethod
    def _in_unit_interval(cls, value: Depthwise) -> Depthwise:
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(0.0 <= number <= 1.0 for number in numbers):
            raise ValueError("must lie in [0, 1]")
        return value

    @field_validator("drop")
    @classmethod
    def _below_one(cls, value: Depthwise) -> Depthwise:
        if 1.0 in (value if isinstance(value, tuple) else (value,)):
            raise ValueError("must be below 1 (rescaling by 1/(1-p)); use weight 0 to leave a parent out")
        return value


class Terms(NamedTuple):
    """The numbers for one parent and one tensor."""

    weight: float
    density: float
    drop: float


class Recipe(Frozen):
    """One merge, completely described."""

    heterosis: Literal[1] = 1
    """Version of this format."""
    method: str
    """A key of METHODS."""
    base: Source
    """The checkpoint that all parents were fine-tuned from."""
    parents: tuple[Source, ...]
    """The fine-tunes."""
    groups: dict[str, str]
    """Group name -> regular expression on tensor names; the first that matches decides."""
    parameters: dict[str, dict[str, Parameters]]
    """Parent name -> group name -> parameters. What is left out has weight 1, density 1, drop 0."""
    seed: int = 0
    """Seed of the DARE masks."""
    trim_scope: Literal["tensor", "model"] = "tensor"
    """Whether the kept fraction is taken per tensor, or over the whole task vector (the TIES paper)."""
    divisor: Divisor = "count"
    """What the sum of agreeing updates is divided by: their count (the TIES paper), their |λ|, or nothing."""
    rescale: Literal["inverse_keep", "none"] | float = "inverse_keep"
    """Factor on what DARE leaves: 1/(1-p), none (DropOnly), or a number (DAREx)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Dtype of the merged weights; arithmetic is float32 with one rounding at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; one of {', '.join(METHODS)}")
        names = [parent.name for parent in self.parents]
        if not names or len(set(names)) != len(names):
            raise ValueError("parents must be a list of distinct names, at least one")
        for parent, by_group in self.parameters.items():
            if parent not in names:
                raise ValueError(f"parameters speak of {parent!r}, which is not a parent ({', '.join(names)})")
            if unknown := sorted(set(by_group) - set(self.groups)):
                raise ValueError(f"parameters.{parent} speaks of group {unknown[0]!r}, which groups does not define")
        return self

    def canonical_parents(self) -> tuple[Source, ...]:
        """Parents by content, so that the order in which a user lists them changes nothing, not even a rounding."""

        def content(parent: Source) -> tuple[str, str]:
            return parent.digest, json.dumps(_explicit(self.parameters.get(parent.name, {}), self.groups))

        return tuple(sorted(self.parents, key=content))

    def terms(self, layout: Layout) -> dict[str, dict[str, Terms]]:
        """Tensor name -> parent name -> numbers."""
        for parent, by_group in self.parameters.items():
            for group, parameters in by_group.items():
                _check_lengths(parent, group, parameters, layout.layers)
        return {
            tensor: {parent.name: self._terms(parent.name, tensor, layout) for parent in self.parents}
            for tensor in layout.places
        }

    def _terms(self, parent: str, tensor: str, layout: Layout) -> Terms:
        place = layout.places[tensor]
        given = self.parameters.get(parent, {}).get(place.group, Parameters())
        depth = place.depth(layout.layers)
        return Terms(*(_at(getattr(given, gene), depth) for gene in Terms._fields))

    @property
    def digest(self) -> str:
        """Identity of the merge: equal for equal merges, whatever the parents are called or where they lie."""
        content = self.model_dump(mode="json", exclude={"base", "parents", "parameters"})
        content["base"] = self.base.digest
        content["groups"] = list(self.groups.items())  # their order decides
        content["parents"] = [
            {"digest": parent.digest, **_explicit(self.parameters.get(parent.name, {}), self.groups)}
            for parent in self.canonical_parents()
        ]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as the file that `from_yaml` reads."""
        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write the recipe, whole or not at all."""
        write_text(path, self.to_yaml())

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe; RecipeError names the file and the first fault."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}).") from error
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
            # PyYAML lets Python's own errors through where a value does not fit its tag: `seed: 2020-99-99`.
            raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: Any, where: str) -> Recipe:
        """Validate parsed content; `where` names it in errors."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"{where}: {place or 'recipe'}: {first['msg'].removeprefix('Value error, ')}") from None


def _at(value: Depthwise, depth: int) -> float:
    return value[depth] if isinstance(value, tuple) else value


def _check_lengths(parent: str, group: str, parameters: Parameters, layers: int) -> None:
    for gene in Terms._fields:
        value = getattr(parameters, gene)
        if isinstance(value, tuple) and len(value) != layers:
            raise RecipeError(
                f"parameters.{parent}.{group}.{gene} has {len(value)} values, the model has {layers} layers. "
                "Give one number, or one per layer."
            )


def _explicit(by_group: Mapping[str, Parameters], groups: Mapping[str, str]) -> dict[str, Any]:
    return {group: by_group.get(group, Parameters()).model_dump(mode="json") for group in groups}
