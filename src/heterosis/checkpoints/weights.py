"""Files of weights: which files of a folder hold them, and three ways to read one.

A safetensors file is memory-mapped, or read tensor by tensor so that a process with little address space can go
through a large model. A pickle is read only where the caller allows it, and then by torch's restricted loader.
"""

from __future__ import annotations

import json
import os
import re
import weakref
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from heterosis.checkpoints.pages import fresh_tensor
from heterosis.checkpoints.safetensors_header import MAX_NAME, Entry, read_header
from heterosis.checkpoints.tensors import FLOAT_DTYPES, TensorSpec, is_finite, raw_bytes, tensor_digest
from heterosis.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_INDEX_NAME = "pytorch_model.bin.index.json"
PICKLE_NAME = "pytorch_model.bin"

# What old checkpoints store although transformers computes it: rotary frequencies and causal masks.
BUFFER = re.compile(r"\.(rotary_emb\.inv_freq|(attn|attention)\.masked_bias)$")
MASK = re.compile(r"\.(attn|attention)\.bias$")

Files = Mapping[str, Iterable[str] | None]


class Stored(NamedTuple):
    """A tensor as its file describes it; `code` is the safetensors name of its dtype."""

    shape: tuple[int, ...]
    code: str


class WeightFile(Protocol):
    """One open file."""

    @property
    def stored(self) -> Mapping[str, Stored]: ...

    def tensor(self, name: str) -> Tensor: ...

    def close(self) -> None: ...


class MappedFile:
    """A safetensors file in the address space; tensors are views of it."""

    def __init__(self, path: Path, owner: str) -> None:
        self.stored = _described(read_header(path, owner))
        self._files = ExitStack()
        try:
            self._reader: Any = self._files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{owner}: {path.name} is not a readable safetensors file ({error}). Download or save it again."
            ) from error

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._reader.get_tensor(name)
        return tensor

    def close(self) -> None:
        self._reader = None
        self._files.close()


class StreamedFile:
    """A safetensors file that is never mapped: each tensor is read into memory of its own.

    Reads are positioned, so threads may share the file.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._entries = read_header(path, owner)
        self.stored = _described(self._entries)
        self._what = f"{owner}: {path.name}"
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._finalizer = weakref.finalize(self, os.close, self._handle)  # also where nobody calls close

    def tensor(self, name: str) -> Tensor:
        entry = self._entries[name]
        tensor = fresh_tensor(entry.shape, FLOAT_DTYPES[entry.code])
        rest, at = raw_bytes(tensor), entry.begin
        while len(rest):
            try:
                count = os.preadv(self._handle, [rest], at)
            except OSError as error:
                raise CheckpointError(
                    f"{self._what}: {name} cannot be read ({error.strerror}). Check the disk, or copy the model."
                ) from error
            if count == 0:
                raise CheckpointError(f"{self._what} ends within {name}; it was changed meanwhile. Start again.")
            rest, at = rest[count:], at + count
        return tensor

    def close(self) -> None:
        self._finalizer()


class PickleFile:
    """A file of torch.save that holds a dict of tensors and nothing else. Mapped where its format allows it."""

    def __init__(self, path: Path, owner: str) -> None:
        try:
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a hostile pickle can raise anything; the remedy is the same
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise CheckpointError(
                f"{owner}: {path.name} is not a pickle that torch reads with weights_only ({reason[0][:200]}). "
                "Convert it to safetensors."
            ) from error
        if not isinstance(content, dict) or not all(_is_plain(*item) for item in content.items()):
            raise CheckpointError(
                f"{owner}: {path.name} must map names to dense tensors, nothing else. Convert it to safetensors."
            )
        codes = {dtype: code for code, dtype in FLOAT_DTYPES.items()}
        self._tensors: dict[str, Tensor] = content
        self.stored: dict[str, Stored] = {
            name: Stored(tuple(tensor.shape), codes.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")))
            for name, tensor in content.items()
        }

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach().contiguous()

    def close(self) -> None:
        self._tensors = {}


def _is_plain(name: object, tensor: object) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and len(name) <= MAX_NAME
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        # A view with stride 0 may claim any size.
        and tensor.numel() * tensor.dtype.itemsize <= tensor.untyped_storage().nbytes()
    )


def _described(entries: Mapping[str, Entry]) -> dict[str, Stored]:
    return {name: Stored(entry.shape, entry.code) for name, entry in entries.items()}


class Weights:
    """The tensors of several files under one roof; buffers that are no weights are left out."""

    def __init__(self, folder: Path, files: Files, owner: str, mapped: bool = True) -> None:
        """`files`: file name -> the tensors that belong to it (None: all it holds). `owner` begins each error."""
        self.owner = owner
        self.mapped = mapped
        self.specs: dict[str, TensorSpec] = {}
        self._readers: dict[str, WeightFile] = {}
        self._files = ExitStack()
        try:
            for file, expected in files.items():
                self._open(folder / file, expected)
        except BaseException:
            self.close()
            raise

    def _reader(self, path: Path) -> WeightFile:
        if path.suffix != ".safetensors":
            return PickleFile(path, self.owner)
        return MappedFile(path, self.owner) if self.mapped else StreamedFile(path, self.owner)

    def _open(self, path: Path, expected: Iterable[str] | None) -> None:
        reader = self._reader(path)
        self._files.callback(reader.close)
        names = sorted(reader.stored if expected is None else expected)
        for name in names:
            if name not in reader.stored:
                raise CheckpointError(
                    f"{self.owner}: the index places {name} in {path.name}, but it is not there. Save it again."
                )
            shape, code = reader.stored[name]
            if _is_buffer(name, shape, code):
                continue
            if code not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{self.owner}: {name} is stored as {code}; merging needs F64, F32, F16 or BF16. "
                    "Dequantise this model first."
                )
            self.specs[name] = TensorSpec(shape, FLOAT_DTYPES[code])
            self._readers[name] = reader

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored, on the CPU. Where it is mapped, do not write to it."""
        return self._readers[name].tensor(name)

    def leave_out(self, name: str) -> None:
        """Treat a stored tensor as if it were not there."""
        del self.specs[name], self._readers[name]

    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor. Reads every byte once, and refuses weights that are not finite on the way."""
        # Reading and hashing release the interpreter. Two, because tensors that are not mapped are held meanwhile.
        with ThreadPoolExecutor(2, "digest") as pool:
            return dict(zip(self.specs, pool.map(self._checked_digest, list(self.specs)), strict=True))

    def _checked_digest(self, name: str) -> str:
        tensor = self.tensor(name)
        if not is_finite(tensor):
            raise CheckpointError(f"{self.owner}: {name} holds NaN or Inf. Use a sound checkpoint of this model.")
        return tensor_digest(tensor)

    def close(self) -> None:
        """Close the files."""
        self._readers.clear()
        self._files.close()


def _is_buffer(name: str, shape: tuple[int, ...], code: str) -> bool:
    if BUFFER.search(name):
        return True
    square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return bool(MASK.search(name)) and (code in ("BOOL", "bool", "U8", "uint8") or square)


def model_files(folder: Path, name: str, allow_pickle: bool = False) -> Files:
    """The files that hold a model's weights, and the tensors that belong to each."""
    if (folder / SINGLE_NAME).is_file():  # as transformers: a single file goes before an index
        return {SINGLE_NAME: None}
    if (folder / INDEX_NAME).is_file():
        return _indexed_files(folder, INDEX_NAME, ".safetensors", name)
    if allow_pickle and (folder / PICKLE_NAME).is_file():
        return {PICKLE_NAME: None}
    if allow_pickle and (folder / PICKLE_INDEX_NAME).is_file():
        return _indexed_files(folder, PICKLE_INDEX_NAME, ".bin", name)
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
    if pickled and not allow_pickle:
        raise CheckpointError(
            f"{name}: only pickle weights in {folder}; pickles can run code. Convert them to safetensors first, or "
            "allow pickles: then torch's restricted loader reads pytorch_model.bin, and nothing but tensors from it."
        )
    raise CheckpointError(f"{name}: no {SINGLE_NAME} and no {INDEX_NAME} in {folder}.")


def _indexed_files(folder: Path, index: str, suffix: str, name: str) -> Files:
    weight_map = read_json(folder / index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{name}: {index} has no weight_map. Save the model again.")
    files: dict[str, list[str]] = {}
    for tensor_name, file in weight_map.items():
        if not (isinstance(file, str) and file.isprintable() and Path(file).name == file and file.endswith(suffix)):
            raise CheckpointError(
                f"{name}: {index} places {tensor_name!r} in {file!r}; a shard must be a {suffix} file "
                "in the model's own folder."
            )
        if not (folder / file).is_file():
            raise CheckpointError(f"{name}: shard {file} is missing from {folder}. Download it again.")
        files.setdefault(file, []).append(tensor_name)
    return files


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no {path.name} in {path.parent}. Give a Hugging Face model folder.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{name}: {path.name} cannot be read ({error}). Download or save it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: {path.name} must hold an object, not a {type(content).__name__}.")
    return content
