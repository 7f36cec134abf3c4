"""The shape of a mergekit configuration, as a user of mergekit writes it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from heterosis.errors import RecipeError
from heterosis.recipe import read_yaml


class Reference(NamedTuple):
    """A model as mergekit names it: `path@revision+adapter@revision`."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @classmethod
    def parse(cls, value: Any) -> Reference:
        """From text, or from the mapping that mergekit writes itself."""
        if isinstance(value, Reference):
            return value
        if isinstance(value, dict):
            return cls(*_part(value.get("model")), *(_part(value["lora"]) if value.get("lora") else (None, None)))
        if not isinstance(value, str) or not value.strip() or value.count("+") > 1:
            raise ValueError(f"{value!r} names no model; write path, path@revision or path+adapter")
        model, _, adapter = value.partition("+")
        return cls(*_part(model), *(_part(adapter) if adapter else (None, None)))

    def __str__(self) -> str:
        text = self.model + (f"@{self.revision}" if self.revision else "")
        if self.adapter:
            text += f"+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")
        return text


def _part(value: Any) -> tuple[str, str | None]:
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return value["path"], value.get("revision")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} names no model")
    path, _, revision = value.strip().partition("@")
    return path, revision or None


class Node(BaseModel):
    """A part of the file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(Node):
    """A value for the tensors whose name contains `filter`."""

    value: Any
    filter: str | None = None


Parameters = dict[str, Any]


class InputModel(Node):
    """A whole model."""

    model: Any
    parameters: Parameters | None = None

    @field_validator("model")
    @classmethod
    def _reference(cls, value: Any) -> Reference:
        return Reference.parse(value)


class InputSlice(InputModel):
    """A range of a model's layers, the last not included."""

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _forward(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"{list(value)} is no range of layers; the first must be below the last")
        return value


class Slice(Node):
    """Layers of the merge, from one range of each source."""

    sources: tuple[InputSlice, ...] = Field(min_length=1)
    base_model: Any = None
    residual_weight: float | None = None
    parameters: Parameters | None = None

    @field_validator("base_model")
    @classmethod
    def _reference(cls, value: Any) -> Reference | None:
        return None if value is None else Reference.parse(value)

    @model_validator(mode="after")
    def _even(self) -> Slice:
        if len({source.layer_range[1] - source.layer_range[0] for source in self.sources}) != 1:
            raise ValueError("all sources of a slice must have the same number of layers")
        if self.residual_weight is not None:
            raise ValueError("residual_weight has no counterpart here; remove it")
        return self


class Module(Node):
    """One module of a model with several."""

    slices: tuple[Slice, ...] | None = None
    models: tuple[InputModel, ...] | None = None
    parameters: Parameters | None = None


class TokenConfig(Node):
    """Where the row of one token comes from."""

    source: Any = None
    force: bool = False


class TokenizerConfig(Node):
    """The tokenizer of the merge."""

    source: Any = "union"
    tokens: dict[str, TokenConfig] | None = None
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=65536)


class MergekitConfig(Node):
    """A mergekit configuration. Keys of one's own (anchors) are passed over, as mergekit does."""

    model_config = ConfigDict(frozen=True, extra="allow")

    merge_method: str
    modules: dict[str, Module] | None = None
    slices: tuple[Slice, ...] | None = None
    models: tuple[InputModel, ...] | None = None
    base_model: Any = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: TokenizerConfig | None = None
    chat_template: str | None = None
    parameters: Parameters | None = None
    name: str | None = None

    @field_validator("base_model")
    @classmethod
    def _reference(cls, value: Any) -> Reference | None:
        return None if value is None else Reference.parse(value)

    @model_validator(mode="after")
    def _one_form(self) -> MergekitConfig:
        given = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"exactly one of models, slices and modules must be given, not {given or 'none'}")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("tokenizer_source and tokenizer exclude each other; drop one")
        if self.modules is not None and len(self.modules) > 1:
            raise ValueError(f"modules: models of several modules ({', '.join(self.modules)}) cannot be merged here")
        return self

    @property
    def body(self) -> Module:
        """Models or slices, wherever they are written."""
        if self.modules is not None:
            return next(iter(self.modules.values()))
        return Module(slices=self.slices, models=self.models)


def is_mergekit(content: Any) -> bool:
    """Whether parsed YAML is a mergekit configuration rather than a recipe."""
    return isinstance(content, dict) and "merge_method" in content


def parse(content: Any, where: str) -> MergekitConfig:
    """Validate parsed YAML; RecipeError names the file and the first fault."""
    for key in content if isinstance(content, dict) else ():
        near = difflib.get_close_matches(str(key), MergekitConfig.model_fields, 1, cutoff=0.75)
        if key not in MergekitConfig.model_fields and near:
            raise RecipeError(f"{where}: {key}: unknown key; did you mean {near[0]}?")
    try:
        return MergekitConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"{where}: {place or 'configuration'}: {first['msg'].removeprefix('Value error, ')}"
        ) from None


def load(path: Path) -> MergekitConfig:
    """Read a mergekit YAML file."""
    return parse(read_yaml(path), str(path))
