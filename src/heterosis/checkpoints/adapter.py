"""A LoRA adapter and its base, read as if the two had been merged into a full checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heterosis.checkpoints.adapter_config import Key, LoraSettings, check_origin, parse_key, read_settings
from heterosis.checkpoints.reader import INPUT_EMBEDDINGS, has_vocabulary
from heterosis.checkpoints.tensors import TensorSource, TensorSpec, content_digest, is_finite, total_bytes
from heterosis.checkpoints.weights import Files, Weights
from heterosis.errors import CheckpointError

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

# Layers of these models may be transformers' Conv1D, which stores [in, out]; a square weight does not show it.
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


def add_low_rank(
    weight: Tensor, a: Tensor, b: Tensor, scaling: float, transposed: bool = False, magnitude: Tensor | None = None
) -> Tensor:
    """W + scaling · B A, in float32. weight [out, in] ([in, out] if `transposed`), a [r, in], b [out, r] -> as weight.

    LoRA (Hu et al. 2022), eq. 3. With `magnitude` [out], DoRA (Liu et al. 2024), eq. 5: each output's weights are then
    scaled to that L2 norm. Order of operations, as in PEFT: product, transposition, scaling, sum; then norm, factor,
    product.
    """
    update = b @ a
    update = (update.T.contiguous() if transposed else update).mul_(scaling).add_(weight)
    if magnitude is None:
        return update
    norm = torch.linalg.norm(update, dim=0 if transposed else 1, keepdim=True)
    return update.mul_(magnitude.reshape(norm.shape) / norm)


class Change(NamedTuple):
    """What an adapter does to one tensor; strings name tensors of the adapter's file."""

    full: str | None = None
    """Takes the place of the base's tensor."""

    a: str | None = None
    b: str | None = None
    scaling: float = 1.0
    transposed: bool = False
    magnitude: str | None = None
    bias: str | None = None
    """Bias of the adapter's B, added with the same scaling."""


class Adapter:
    """A LoRA adapter in PEFT's format on an open base, with the face of a `Checkpoint`.

    Tensors that the adapter changes are float32; the others are the base's own. A weight that the adapter stores in
    full (`modules_to_save`, resized embeddings, trained biases) takes the base's place before any low-rank update.
    The same bits come with every call.
    """

    def __init__(
        self,
        folder: Path,
        name: str | None,
        base: TensorSource,
        *,
        mapped: bool = True,
        allow_pickle: bool = False,
        owns_base: bool = False,
    ) -> None:
        """`owns_base`: close the base together with the adapter."""
        self.folder = folder
        self.name = name or folder.name
        self._base = base
        self._owns_base = owns_base
        self._settings = read_settings(folder, self.name)
        check_origin(folder, self.name, base.config.get("model_type"))
        self._weights = Weights(folder, _files(folder, self.name, allow_pickle), self.name, mapped)
        try:
            self._changes = _changes(self.name, self._settings, self._weights, base)
        except CheckpointError:
            self._weights.close()
            raise
        self.specs: dict[str, TensorSpec] = dict(base.specs)
        for tensor_name, change in self._changes.items():
            full = self._weights.specs[change.full].shape if change.full is not None else None
            self.specs[tensor_name] = TensorSpec(full or base.specs[tensor_name].shape, torch.float32)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's configuration, with the vocabulary's size where the adapter stores other embeddings."""
        sizes = [s.shape[0] for n, s in self.specs.items() if n.endswith(INPUT_EMBEDDINGS) and s != self._base.specs[n]]
        given = "vocab_size" in self._base.config
        return self._base.config | ({"vocab_size": sizes[0]} if sizes and given else {})

    @property
    def tied(self) -> bool:
        """Whether the output head is the input embedding."""
        return self._base.tied

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        return total_bytes(self.specs)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the merged model: the base's where the adapter leaves it alone, else float32."""
        change = self._changes.get(name)
        if change is None:
            return self._base.tensor(name)
        read = self._weights.tensor
        tensor = (self._base.tensor(name) if change.full is None else read(change.full)).float()
        if change.bias is not None:
            tensor = read(change.bias).float().mul(change.scaling).add_(tensor)
        if change.a is not None and change.b is not None:
            magnitude = None if change.magnitude is None else read(change.magnitude).float()
            a, b = read(change.a).float(), read(change.b).float()
            tensor = add_low_rank(tensor, a, b, change.scaling, change.transposed, magnitude)
            if not is_finite(tensor):
                raise CheckpointError(f"{self.name}: {name} is not finite with the adapter on it. Drop this parent.")
        return tensor

    @cached_property
    def digest(self) -> str:
        """Digest of the base's content, the adapter's content, and what the adapter does with it."""
        total = hashlib.sha256(f"adapter {self._base.digest}\n".encode())
        total.update(f"{content_digest(self._weights.specs, self._weights.digests())}\n".encode())
        for name, change in sorted(self._changes.items()):
            total.update(f"{name} {tuple(change)!r}\n".encode())
        return total.hexdigest()

    def close(self) -> None:
        """Close the adapter's files, and the base where it is the adapter's own."""
        self._weights.close()
        if self._owns_base:
            self._base.close()


def _files(folder: Path, name: str, allow_pickle: bool) -> Files:
    if (folder / WEIGHTS_NAME).is_file():
        return {WEIGHTS_NAME: None}
    if not (folder / PICKLE_NAME).is_file():
        raise CheckpointError(f"{name}: no {WEIGHTS_NAME} in {folder}. Save the adapter again.")
    if not allow_pickle:
        raise CheckpointError(
            f"{name}: {PICKLE_NAME} is a pickle; pickles can run code. Save the adapter as safetensors, or allow "
            "pickles: then torch's restricted loader reads it."
        )
    return {PICKLE_NAME: None}


def _changes(name: str, settings: LoraSettings, weights: Weights, base: TensorSource) -> dict[str, Change]:
    """Tensor of the base -> what is done to it; every stored tensor must have its place."""
    low: dict[str, dict[str, str]] = {}
    changes: dict[str, Change] = {}
    aliases = []
    for stored in sorted(weights.specs):
        key = parse_key(stored)
        if key.part:
            parts = low.setdefault(key.module, {})
            part = key.part.replace("embedding_", "") + (".bias" if key.leaf == "bias" else "")
            if part in parts:
                raise CheckpointError(
                    f"{name}: {parts[part]} and {stored} are the same weight. Save one adapter a file."
                )
            parts[part] = stored
        elif _is_alias(key, base):
            aliases.append(stored)
        else:
            target = _target(name, stored, key, base)
            _check_full(name, stored, target, weights, base)
            if target in changes:
                raise CheckpointError(_twice_message(name, changes[target].full, stored))
            changes[target] = Change(full=stored)
    if not low and not changes:
        raise CheckpointError(f"{name}: the adapter's file holds no weights. Save the adapter again.")
    _check_ties(name, aliases, settings, changes, weights, base)
    for module, parts in low.items():
        _add_low(name, module, parts, settings, weights, base, changes)
    return changes


def _is_alias(key: Key, base: TensorSource) -> bool:
    return base.tied and key == Key("lm_head", "", "weight") and "lm_head.weight" not in base.specs


def _target(name: str, stored: str, key: Key, base: TensorSource) -> str:
    """The base's tensor that a stored one belongs to. A base saved without its head lacks the first part of names."""
    wanted = f"{key.module}.{key.leaf}"
    for candidate in (wanted, wanted.partition(".")[2]):
        if candidate in base.specs:
            return candidate
    if base.tied and wanted == "lm_head.weight":
        raise CheckpointError(_tied_message(name, stored))
    raise CheckpointError(
        f"{name}: {stored} belongs to {wanted}, which the base lacks. Give the base that the adapter was trained on."
    )


def _twice_message(name: str, first: str | None, second: str) -> str:
    return f"{name}: {first} and {second} belong to the same weight. Save one adapter to a file."


def _tied_message(name: str, stored: str) -> str:
    return (
        f"{name}: {stored} changes embeddings that the base ties to its output head, and not the two alike. "
        "Untie the base (tie_word_embeddings: false), or give the adapter merged into a full model."
    )


def _check_full(name: str, stored: str, target: str, weights: Weights, base: TensorSource) -> None:
    ours, theirs = weights.specs[stored].shape, base.specs[target].shape
    resized = has_vocabulary(target) and ours[1:] == theirs[1:] and len(ours) == len(theirs)
    if ours != theirs and not resized:
        raise CheckpointError(
            f"{name}: {stored} is {list(ours)}, the base's {target} is {list(theirs)}. "
            "Give the base that the adapter was trained on."
        )


def _check_ties(
    name: str,
    heads: Sequence[str],
    settings: LoraSettings,
    changes: Mapping[str, Change],
    weights: Weights,
    base: TensorSource,
) -> None:
    """Embeddings stored for a tied base are the head's too: a stored head must be equal to them, and one that PEFT
    trains as a copy (`modules_to_save`) must come with it, because else its head keeps the base's weights.
    """
    embedding = next((n for n in base.specs if n.endswith(INPUT_EMBEDDINGS)), None)
    if not base.tied or embedding is None:
        return
    full = changes.get(embedding, Change()).full
    if full is not None and not heads:
        module = parse_key(full).module
        if any(module == each or module.endswith(f".{each}") for each in settings.modules_to_save):
            raise CheckpointError(_tied_message(name, full))
    for stored in heads:
        head = weights.tensor(stored)
        tensor = base.tensor(embedding) if full is None else weights.tensor(full)
        if head.shape != tensor.shape or not torch.equal(head.float(), tensor.float()):
            raise CheckpointError(_tied_message(name, stored))


def _add_low(
    name: str,
    module: str,
    parts: Mapping[str, str],
    settings: LoraSettings,
    weights: Weights,
    base: TensorSource,
    changes: dict[str, Change],
) -> None:
    needed = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if settings.dora else set())
    stray = parts.keys() - needed - {"lora_B.bias"}
    if missing := sorted(needed - parts.keys()) or sorted(stray):
        fault = "has no" if needed - parts.keys() else "has"
        raise CheckpointError(
            f"{name}: {module} {fault} {missing[0]}, against adapter_config.json. Save the adapter again."
        )
    stored_a, stored_b = parts["lora_A"], parts["lora_B"]
    target = _target(name, stored_a, Key(module, "lora_A", "weight"), base)
    if base.tied and has_vocabulary(target):
        raise CheckpointError(_tied_message(name, stored_a))
    change = changes.get(target, Change())
    shape = base.specs[target].shape if change.full is None else weights.specs[change.full].shape
    a, b = weights.specs[stored_a].shape, weights.specs[stored_b].shape
    rank = settings.rank_of(module)
    straight, turned = (b[:1] + a[1:]) == shape, (a[1:] + b[:1]) == shape
    embedding = parse_key(stored_a).part == "lora_embedding_A"  # always stored [in, out]
    fits = len(a) == len(b) == 2 and (a[0], b[1]) == (rank, rank) and (turned if embedding else straight or turned)
    if not fits:
        raise CheckpointError(
            f"{name}: {stored_a} is {list(a)} and its B is {list(b)}, which with rank {rank} does not fit {target}, "
            f"{list(shape)}. Give the base that the adapter was trained on."
        )
    conv1d = base.config.get("model_type") in CONV1D_MODELS and module.rpartition(".")[2] in CONV1D_LAYERS
    transposed = turned and (embedding or not straight or settings.fan_in_fan_out or conv1d)
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None and torch.Size(weights.specs[magnitude].shape).numel() != b[0]:
        raise CheckpointError(f"{name}: {magnitude} does not have one entry for each of {b[0]} outputs. Save it again.")
    scaling = settings.scaling_of(module)
    changes[target] = change._replace(
        a=stored_a, b=stored_b, scaling=scaling, transposed=transposed, magnitude=magnitude
    )
    if "lora_B.bias" in parts:
        _add_bias(name, parts["lora_B.bias"], module, scaling, weights, base, changes)


def _add_bias(
    name: str,
    stored: str,
    module: str,
    scaling: float,
    weights: Weights,
    base: TensorSource,
    changes: dict[str, Change],
) -> None:
    target = _target(name, stored, Key(module, "lora_B", "bias"), base)
    if weights.specs[stored].shape != base.specs[target].shape:
        raise CheckpointError(
            f"{name}: {stored} is {list(weights.specs[stored].shape)}, the base's {target} is "
            f"{list(base.specs[target].shape)}. Give the base that the adapter was trained on."
        )
    changes[target] = changes.get(target, Change())._replace(bias=stored, scaling=scaling)
