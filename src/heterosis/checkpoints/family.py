"""A base and its fine-tunes, opened together and checked to fit each other."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heterosis.checkpoints.layout import storage_order
from heterosis.checkpoints.reader import Checkpoint
from heterosis.errors import CheckpointError


class Family:
    """The base and its parents: same tensor names, same shapes, one vocabulary."""

    def __init__(self, base: Checkpoint, parents: Mapping[str, Checkpoint]) -> None:
        if not parents:
            raise CheckpointError("parents: none given. Name at least one fine-tune of the base.")
        self.base = base
        self.parents = dict(parents)
        for name, parent in self.parents.items():
            _check_tensors(base, parent, name)
            _check_config(base, parent, name)
            _check_vocabulary(base, parent, name)
        self.names = storage_order(base.specs)

    @property
    def members(self) -> dict[str, Checkpoint]:
        """Base and parents by name."""
        return {"base": self.base, **self.parents}

    def close(self) -> None:
        """Close every file."""
        for member in self.members.values():
            member.close()


def open_family(base: Path, parents: Mapping[str, Path]) -> Family:
    """Open and check a family. Errors name the tensor, both shapes and the remedy."""
    return Family(Checkpoint(base, "base"), {name: Checkpoint(path, name) for name, path in parents.items()})


# What changes a forward pass although every tensor fits.
FORWARD_KEYS = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "layer_norm_eps",
    "sliding_window",
    "partial_rotary_factor",
    "rope_scaling",
)


def _check_config(base: Checkpoint, parent: Checkpoint, name: str) -> None:
    """A merge runs under the base's configuration, so a parent must not need another."""
    pairs = [
        (key, base.config[key], parent.config[key])
        for key in FORWARD_KEYS
        if key in base.config and key in parent.config
    ]
    pairs.append(("rope_theta", _rope_theta(base), _rope_theta(parent)))
    for key, ours, theirs in pairs:
        if ours != theirs:
            raise CheckpointError(
                f"{name}: config.json has {key} {theirs}, the base has {ours}. A merge runs under the base's "
                "configuration, where this parent would be another model: drop it."
            )


def _rope_theta(model: Checkpoint) -> object:
    parameters = model.config.get("rope_parameters")
    nested = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return model.config.get("rope_theta", nested)


def _check_tensors(base: Checkpoint, parent: Checkpoint, name: str) -> None:
    if base.tied != parent.tied:
        raise CheckpointError(
            f"{name}: tie_word_embeddings is {parent.tied} there and {base.tied} in the base. "
            "Drop this parent, or save both with the same setting."
        )
    missing, extra = sorted(set(base.specs) - set(parent.specs)), sorted(set(parent.specs) - set(base.specs))
    if missing or extra:
        what = f"has no {missing[0]}" if missing else f"has {extra[0]}, which the base lacks"
        near = difflib.get_close_matches(missing[0], extra, 1) if missing else []
        hint = f" (nearest name there: {near[0]})" if near else ""
        raise CheckpointError(
            f"{name}: {what}{hint}; {len(missing)} missing and {len(extra)} extra tensors in all. "
            "Is it a full fine-tune of this base? Drop it, or give the right base."
        )
    for tensor_name, spec in base.specs.items():
        other = parent.specs[tensor_name].shape
        if other != spec.shape:
            raise CheckpointError(
                f"{name}: {tensor_name} is {list(other)}, the base has {list(spec.shape)}. "
                "Drop this parent, or resize its vocabulary to the base's."
            )


def _check_vocabulary(base: Checkpoint, parent: Checkpoint, name: str) -> None:
    ours, theirs = vocabulary(base.folder), vocabulary(parent.folder)
    if ours is None or theirs is None or ours == theirs:
        return
    moved = next((token for token in ours if theirs.get(token) != ours[token]), None)
    if moved is None:
        return  # the parent only adds tokens behind the base's; shapes were checked already
    raise CheckpointError(
        f"{name}: its tokenizer gives {moved!r} the id {theirs.get(moved)}, the base's gives {ours[moved]}. "
        "Rows of the embeddings mean different tokens: drop this parent."
    )


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id as tokenizer.json has it; None where there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        return {**dict(pairs), **added}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a tokenizer file ({error!r}). Download or save it again.") from error
