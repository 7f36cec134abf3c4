"""A base and its fine-tunes, opened together and checked to fit each other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from heterosis.checkpoints.adapter import Adapter
from heterosis.checkpoints.adapter_config import ADAPTER_CONFIG
from heterosis.checkpoints.layout import storage_order
from heterosis.checkpoints.reader import Checkpoint, has_vocabulary
from heterosis.checkpoints.tensors import TensorSource
from heterosis.checkpoints.vocabulary import vocabulary as vocabulary_of
from heterosis.errors import CheckpointError


class Family:
    """The base and its parents: same tensor names, same shapes, one vocabulary.

    Buffers that a member stores although the model computes them (rotary frequencies, causal masks) are no weights:
    no member has them here. The base may be a parent too.
    """

    def __init__(
        self,
        base: Checkpoint,
        parents: Mapping[str, TensorSource],
        *,
        vocabulary: str = "error",
        stacked: bool = False,
        strict: bool = True,
    ) -> None:
        """`strict`: refuse parents whose configuration differs from the base's; see `config_differences`.

        `vocabulary` other than "error": tokenizers and rows of vocabulary tensors may differ, for they get aligned.

        `stacked`: layers are picked from members one by one, so members may have different numbers of layers.
        """
        if not parents:
            raise CheckpointError("parents: none given. Name at least one fine-tune of the base.")
        self.base = base
        self.parents = dict(parents)
        for name, parent in self.parents.items():
            _check_tensors(base, parent, name, vocabulary != "error", stacked)
            if strict:
                _check_config(base, parent, name)
            if vocabulary == "error":
                _check_vocabulary(base, parent, name)
        self.names = storage_order(base.specs)

    @property
    def members(self) -> dict[str, TensorSource]:
        """Base and parents by name."""
        return {"base": self.base, **self.parents}

    @property
    def mapped(self) -> bool:
        """Whether tensors are views of mapped files."""
        return self.base.mapped

    def close(self) -> None:
        """Close every file."""
        for member in (self.base, *self.parents.values()):
            member.close()


def open_family(
    base: Path,
    parents: Mapping[str, Path],
    *,
    adapters: Mapping[str, Path] | None = None,
    vocabulary: str = "error",
    stacked: bool = False,
    strict: bool = True,
    mapped: bool = True,
    allow_pickle: bool = False,
) -> Family:
    """Open and check a family. Errors name the tensor, both shapes and the remedy.

    A parent's folder holds a full model, or a LoRA adapter on the base. `adapters`: parent -> folder of an adapter on
    that parent's own folder. The other options are those of `Family` and `Checkpoint`.
    """
    with ExitStack() as opened:

        def checkpoint(folder: Path, name: str) -> Checkpoint:
            model = Checkpoint(folder, name, mapped=mapped, allow_pickle=allow_pickle)
            opened.callback(model.close)
            return model

        def adapter(folder: Path, name: str, on: TensorSource) -> Adapter:
            model = Adapter(folder, name, on, mapped=mapped, allow_pickle=allow_pickle, owns_base=on is not origin)
            opened.callback(model.close)
            return model

        origin = checkpoint(base, "base")
        members: dict[str, TensorSource] = {}
        for name, folder in parents.items():
            above = None if adapters is None else adapters.get(name)
            if (folder / ADAPTER_CONFIG).is_file():
                members[name] = adapter(folder, name, origin)
            elif above is not None and folder == base:
                members[name] = origin
            else:
                members[name] = checkpoint(folder, name)
            if above is not None:
                members[name] = adapter(above, name, members[name])
        family = Family(origin, members, vocabulary=vocabulary, stacked=stacked, strict=strict)
        opened.pop_all()
    return family


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
# What tells that a parent is a fine-tune of some other base.
KIND_KEYS = ("model_type", "hidden_size")


def config_differences(base: TensorSource, parent: TensorSource) -> list[tuple[str, object, object]]:
    """Keys that change a forward pass although every tensor fits, with the base's value and the parent's."""
    pairs = [
        (key, base.config[key], parent.config[key])
        for key in FORWARD_KEYS
        if key in base.config and key in parent.config
    ]
    pairs.append(("rope_theta", _rope_theta(base), _rope_theta(parent)))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _check_config(base: Checkpoint, parent: TensorSource, name: str) -> None:
    """A merge runs under the base's configuration, so a parent must not need another."""
    for key, ours, theirs in config_differences(base, parent):
        raise CheckpointError(
            f"{name}: config.json has {key} {theirs}, the base has {ours}. A merge runs under the base's "
            "configuration, where this parent would be another model: drop it."
        )


def _rope_theta(model: TensorSource) -> object:
    parameters = model.config.get("rope_parameters")
    nested = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return model.config.get("rope_theta", nested)


def _check_tensors(base: Checkpoint, parent: TensorSource, name: str, aligned: bool, stacked: bool) -> None:
    problem = None if stacked else _tensor_sets(base, parent)
    problem = problem or _shapes(base, parent, aligned)
    if problem is not None and (kind := _other_kind(base, parent)):
        raise CheckpointError(f"{name}: {kind}, so it is no fine-tune of this base; it {problem[0]}. {_OTHER_BASE}")
    if base.tied != parent.tied:
        raise CheckpointError(
            f"{name}: tie_word_embeddings is {parent.tied} there and {base.tied} in the base. "
            "Drop this parent, or save both with the same setting."
        )
    if problem is not None:
        raise CheckpointError(f"{name}: {problem[1]}")


_OTHER_BASE = "Drop it, or give the base that it was tuned from."


def _other_kind(base: Checkpoint, parent: TensorSource) -> str | None:
    for key in KIND_KEYS:
        ours, theirs = base.config.get(key), parent.config.get(key)
        if None not in (ours, theirs) and ours != theirs:
            return f"config.json has {key} {theirs}, the base has {ours}"
    return None


def _tensor_sets(base: Checkpoint, parent: TensorSource) -> tuple[str, str] | None:
    """(fault, fault with its remedy) where one has tensors that the other lacks."""
    missing, extra = sorted(set(base.specs) - set(parent.specs)), sorted(set(parent.specs) - set(base.specs))
    if not missing and not extra:
        return None
    what = f"has no {missing[0]}" if missing else f"has {extra[0]}, which the base lacks"
    near = difflib.get_close_matches(missing[0], extra, 1) if missing else []
    hint = f" (nearest name there: {near[0]})" if near else ""
    return what, (
        f"{what}{hint}; {len(missing)} missing and {len(extra)} extra tensors in all. "
        "Is it a full fine-tune of this base? Drop it, or give the right base."
    )


def _shapes(base: Checkpoint, parent: TensorSource, aligned: bool) -> tuple[str, str] | None:
    """(fault, fault with its remedy) at the first tensor of both whose shapes differ."""
    for tensor_name, spec in base.specs.items():
        if tensor_name not in parent.specs:
            continue
        ours, theirs = spec.shape, parent.specs[tensor_name].shape
        by_rows = has_vocabulary(tensor_name)
        if ours == theirs or (aligned and by_rows and len(ours) == len(theirs) and ours[1:] == theirs[1:]):
            continue
        fault = f"{tensor_name} is {list(theirs)}, the base has {list(ours)}"
        remedy = (
            ", or set vocabulary: base or union, which align the rows" if by_rows and ours[1:] == theirs[1:] else ""
        )
        shape = f"has {tensor_name} of shape {list(theirs)}, the base of {list(ours)}"
        return shape, f"{fault}. Drop this parent{remedy}."
    return None


def _check_vocabulary(base: Checkpoint, parent: TensorSource, name: str) -> None:
    ours, theirs = vocabulary_of(base.folder), vocabulary_of(parent.folder)
    if ours is None or theirs is None or ours == theirs:
        return
    moved = next((token for token in ours if theirs.get(token) != ours[token]), None)
    if moved is None:
        return  # the parent only adds tokens behind the base's; shapes were checked already
    raise CheckpointError(
        f"{name}: its tokenizer gives {moved!r} the id {theirs.get(moved)}, the base's gives {ours[moved]}. "
        "Rows of the embeddings mean different tokens: drop this parent, or set vocabulary: base or union."
    )
