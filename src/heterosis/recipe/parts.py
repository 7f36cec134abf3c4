"""The parts of a recipe: where models come from, the numbers of each parent, vocabularies and texts."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Sums and products of a few such numbers still fit into float64; what does not fit into float32 shows in the merge.
LARGEST = 1e100
Depthwise = float | tuple[float, ...]
SettingValue = bool | float | tuple[float, ...]
Dtype = Literal["float32", "float16", "bfloat16"]
NEUTRAL = {"weight": 1.0, "density": 1.0, "drop": 0.0, "gamma": 0.0, "epsilon": 0.0}


class Frozen(BaseModel):
    """A value: immutable, unknown keys refused, no NaN or Inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Source(Frozen):
    """A checkpoint that goes into a merge."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """Label under which this recipe's parameters speak of it."""
    model: Annotated[str, Field(min_length=1)]
    """Local folder or hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    adapter: str | None = None
    """LoRA adapter (folder or hub id) on `model`, for one whose base is not this recipe's."""
    adapter_revision: str | None = None
    """Commit, tag or branch of an adapter's hub id."""
    digest: str = ""
    """Content digest of the weights: what identifies the source, wherever it lies. A recipe written by hand may leave
    it out; it then takes the weights that it finds, and what is written says which they were."""


class TokenRow(Frozen):
    """Where the embedding of one token comes from, in a merge of vocabularies."""

    kind: Literal["model", "zero", "model_token"] = "model"
    """The same token of a model, zeros, or another token of a model."""
    member: str | None = None
    """`base` or a parent's name."""
    token: str | None = None
    """The other token, as text."""
    token_id: int | None = None
    """The other token, by number."""
    force: bool = False
    """Also for models that have the token."""


class Vocabulary(Frozen):
    """How models with different tokenizers are brought to one vocabulary."""

    source: str
    """Whose tokens the merge has: `base`, `union`, or a parent's name."""
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Rows of the embeddings are filled up to a multiple of this, with their mean."""
    tokens: dict[str, TokenRow] = {}
    """Tokens whose rows are chosen by hand; those that no tokenizer has are added."""


class DataSource(Frozen):
    """Texts on which Fisher information or Gram matrices are measured."""

    path: str
    """A .txt or .jsonl file, relative to the recipe."""
    digest: str | None = None
    """SHA-256 of its bytes; compared when given."""
    samples: Annotated[int, Field(ge=1)] = 64
    """Use the first so many texts."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Cut texts to so many tokens."""
    field: str = "text"
    """Key of the text in a .jsonl file."""
    labels: Literal["model", "data"] = "model"
    """Whose next tokens the Fisher information is taken over: drawn from the model (the definition), or the text's."""


class Parameters(Frozen):
    """Parameters of one parent in one group: one number, or one per layer.

    Tensors outside the layers take the first value (input embeddings) or the last (final norm, head).
    """

    weight: Depthwise = 1.0
    """λ, the factor on the task vector (on the weights themselves for `linear`)."""
    density: Depthwise = 1.0
    """d, the fraction of entries kept by magnitude, in [0, 1]."""
    drop: Depthwise = 0.0
    """p, the probability with which an entry is dropped, in [0, 1). Every method takes it."""
    gamma: Depthwise = 0.0
    """Fraction of the largest entries that Breadcrumbs leaves out, in [0, 1]."""
    epsilon: Depthwise = 0.0
    """Half the window of DELLA's drop rates: from p - epsilon (largest entry) to p + epsilon (smallest)."""

    @field_validator("density", "drop", "gamma", "epsilon")
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

    @field_validator("weight")
    @classmethod
    def _in_single_precision(cls, value: Depthwise) -> Depthwise:
        if any(abs(number) > LARGEST for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"must lie within ±{LARGEST:g}")
        return value

    @model_validator(mode="after")
    def _window_inside(self) -> Parameters:
        for p, epsilon in _pairs(self.drop, self.epsilon):
            if epsilon > 0.0 and not epsilon <= p < 1.0 - epsilon:
                raise ValueError(f"drop {p:g} with epsilon {epsilon:g} leaves [0, 1); lower epsilon")
        return self


class Terms(NamedTuple):
    """The numbers for one parent and one tensor."""

    weight: float
    density: float
    drop: float
    gamma: float
    epsilon: float


def _pairs(one: Depthwise, two: Depthwise) -> list[tuple[float, float]]:
    """Two profiles layer by layer, as far as both go."""
    longest = max(len(value) if isinstance(value, tuple) else 1 for value in (one, two))
    sides = [value if isinstance(value, tuple) else (value,) * longest for value in (one, two)]
    return list(zip(*sides, strict=False))
