"""What an engine is: it holds a live model, turns into whatever a recipe describes, and answers requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from heterosis.errors import CheckpointError
from heterosis.recipe import Recipe

Tokens = tuple[int, ...]
# No count in a configuration reaches this.
MOST = 1 << 40


class Continuation(NamedTuple):
    """How likely is `target` after `context`? Both as token ids, neither empty."""

    context: Tokens
    target: Tokens


class Likelihood(NamedTuple):
    """Answer to a Continuation."""

    logprob: float
    """Natural logarithm of the probability of the whole target."""
    greedy: bool
    """Whether greedy decoding would have produced the target."""


class Generation(NamedTuple):
    """Continue `prompt` until a stop string or `max_tokens`."""

    prompt: Tokens
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def cut(text: str, stop: Sequence[str]) -> str:
    """What comes before the first stop string."""
    for word in stop:
        text = text.split(word)[0]
    return text


class Applied(NamedTuple):
    """What an engine says of the recipe that it has just become."""

    weights_digest: str
    """Content digest of the merged weights, as `Checkpoint.digest` of an export of the same recipe."""
    merge_seconds: float
    """Time spent merging; the rest of `apply` is swapping and proving."""


class Engine(Protocol):
    """A live model. `apply` checks itself: it raises CanaryError rather than leave a wrong model answering."""

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens, prompt and answer together."""
        ...

    def apply(self, recipe: Recipe) -> Applied:
        """Become the merge that the recipe describes."""
        ...

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Log-likelihoods, in the order of the requests."""
        ...

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Generated texts, in the order of the requests."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name, versions and settings, for the record."""
        ...

    def kill(self) -> None:
        """Stop the processes at once, from any thread; a call under way then raises EngineError."""
        ...

    def close(self) -> None:
        """Let go of the model and its processes. Of a dead engine too."""
        ...


class Sources(NamedTuple):
    """Local folders of a family: all that an engine needs to merge on its own."""

    base: Path
    parents: dict[str, Path]


class Probe(NamedTuple):
    """A canary's question: log-probabilities of `targets` as the token after `prompt`."""

    prompt: Tokens
    targets: Tokens


def compute_dtype(merged: str, on_cpu: bool) -> str:
    """What an engine computes in: the dtype of the merged weights, unless the processor is slow at it.

    A CPU without bf16 instructions computes bf16 matrices five to ten times slower than float32; the weights are the
    same either way, rounded to the merged dtype.
    """
    if not on_cpu or merged == "float32":
        return merged
    able = torch.cpu.get_capabilities()
    native = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
    return merged if merged == "bfloat16" and native else "float32"


def context_length(config: Mapping[str, Any], wanted: int | None) -> int:
    """Longest sequence a model takes, or the shorter one that the user wants."""
    own = count_in(config, "max_position_embeddings", "n_positions", "max_seq_len") or 2048
    return min(own, wanted) if wanted else own


def count_in(config: Mapping[str, Any], *keys: str) -> int | None:
    """What a model's configuration has under the first of the keys that it has; CheckpointError if it is no count."""
    key = next((key for key in keys if config.get(key) not in (None, 0)), None)
    if key is None:
        return None
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not 0 < value < MOST:
        raise CheckpointError(f"base: config.json has {key} {str(value)[:40]!r}, which is no count. Download it again.")
    return int(value)
