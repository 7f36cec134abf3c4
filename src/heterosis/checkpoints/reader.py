"""Reading a checkpoint: a Hugging Face folder whose weights are one or many safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from heterosis.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
OUTPUT_HEADS = frozenset({"lm_head.weight", "embed_out.weight", "output.weight"})
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorSpec(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row-major, whatever device it is on."""
    array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def content_digest(specs: Mapping[str, TensorSpec], digests: Mapping[str, str]) -> str:
    """Digest of a whole set of weights: names, dtypes, shapes and bytes, however they are split into files."""
    total = hashlib.sha256()
    for name in sorted(specs):
        spec = specs[name]
        line = f"{name} {str(spec.dtype).removeprefix('torch.')} {list(spec.shape)} {digests[name]}\n"
        total.update(line.encode())
    return total.hexdigest()


class Checkpoint:
    """One model folder, opened for reading. Tensors stay on disk (memory-mapped) until asked for.

    When the configuration ties the output head to the input embedding, a stored `lm_head.weight` is an alias and is
    left out, so tied checkpoints compare equal whether or not a tool wrote the alias.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.name
        self.config = _read_json(folder / "config.json", self.name)
        self._files = ExitStack()
        self._readers: dict[str, Any] = {}
        self.specs: dict[str, TensorSpec] = {}
        for file, expected in _weight_files(folder, self.name).items():
            self._open(folder / file, expected)
        self._leave_out_alias()

    def _open(self, path: Path, expected: Iterable[str] | None) -> None:
        try:
            reader = self._files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.name}: {path.name} is not a readable safetensors file ({error}). Download or save it again."
            ) from error
        stored = set(reader.keys())
        missing = sorted(set(expected) - stored) if expected is not None else []
        if missing:
            raise CheckpointError(
                f"{self.name}: the index places {missing[0]} in {path.name}, but it is not there. Save it again."
            )
        for tensor_name in sorted(stored if expected is None else expected):
            view = reader.get_slice(tensor_name)
            dtype = FLOAT_DTYPES.get(view.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{self.name}: {tensor_name} is stored as {view.get_dtype()}; merging needs F64, F32, F16 or BF16. "
                    "Dequantise this model first."
                )
            self.specs[tensor_name] = TensorSpec(tuple(view.get_shape()), dtype)
            self._readers[tensor_name] = reader

    def _leave_out_alias(self) -> None:
        alias = "lm_head.weight"
        if not self.tied or alias not in self.specs:
            return
        embedding = next((n for n in self.specs if n.endswith(INPUT_EMBEDDINGS)), None)
        if embedding is None:
            return  # then it is no alias, but the only copy
        if not torch.equal(self.tensor(alias), self.tensor(embedding)):
            raise CheckpointError(
                f"{self.name}: config.json ties {alias} to {embedding}, but the two differ. "
                "Set tie_word_embeddings: false in its config.json, or save the model again."
            )
        del self.specs[alias], self._readers[alias]

    @property
    def tied(self) -> bool:
        """Whether the output head is the input embedding.

        Older configurations (GPT-2, Gemma) do not say, and store no head when it is.
        """
        said = self.config.get("tie_word_embeddings")
        return OUTPUT_HEADS.isdisjoint(self.specs) if said is None else bool(said)

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        return sum(spec.numel * spec.dtype.itemsize for spec in self.specs.values())

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored, on the CPU."""
        tensor: Tensor = self._readers[name].get_tensor(name)
        return tensor

    @cached_property
    def digest(self) -> str:
        """Content digest. Reads every byte once, and refuses weights that are not finite on the way."""
        digests = {}
        for name in self.specs:
            tensor = self.tensor(name)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{self.name}: {name} holds NaN or Inf. Use a sound checkpoint of this model.")
            digests[name] = tensor_digest(tensor)
        return content_digest(self.specs, digests)

    def close(self) -> None:
        """Close the files."""
        self._readers.clear()
        self._files.close()


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no {path.name} in {path.parent}. Give a Hugging Face model folder.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{name}: {path.name} cannot be read ({error}). Download or save it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: {path.name} must hold an object, not a {type(content).__name__}.")
    return content


def _weight_files(folder: Path, name: str) -> dict[str, list[str] | None]:
    """File name -> the tensors that belong to it (None: all it holds)."""
    if (folder / SINGLE_NAME).is_file():  # as transformers: a single file goes before an index
        return {SINGLE_NAME: None}
    if (folder / INDEX_NAME).is_file():
        return _indexed_files(folder, name)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise CheckpointError(
            f"{name}: only pickle weights in {folder}; pickles can run code. Convert them to safetensors first."
        )
    raise CheckpointError(f"{name}: no {SINGLE_NAME} and no {INDEX_NAME} in {folder}.")


def _indexed_files(folder: Path, name: str) -> dict[str, list[str] | None]:
    weight_map = _read_json(folder / INDEX_NAME, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{name}: {INDEX_NAME} has no weight_map. Save the model again.")
    files: dict[str, list[str] | None] = {}
    for tensor_name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{name}: {INDEX_NAME} places {tensor_name} in {file!r}; a shard must be a .safetensors file "
                "in the model's own folder."
            )
        if not (folder / file).is_file():
            raise CheckpointError(f"{name}: shard {file} is missing from {folder}. Download it again.")
        tensors = files.setdefault(file, [])
        assert tensors is not None
        tensors.append(tensor_name)
    return files
