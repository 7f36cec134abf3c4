"""Tensors at rest: what is known of one without reading it, its bytes, and the digests that name its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorSpec(NamedTuple):
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


class TensorSource(Protocol):
    """A model that gives its tensors one by one: a full checkpoint, or a base with an adapter on it."""

    folder: Path
    name: str
    specs: dict[str, TensorSpec]

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def tied(self) -> bool: ...

    @property
    def bytes(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def tensor(self, name: str) -> Tensor: ...

    def close(self) -> None: ...


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row-major, whatever device it is on. Without a copy where they lie that way in memory."""
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


def total_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Size of a whole set of weights."""
    return sum(spec.numel * spec.dtype.itemsize for spec in specs.values())


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf. Reduces without an intermediate as large as the tensor."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # a NaN anywhere makes both NaN
    return bool(torch.isfinite(low) & torch.isfinite(high))
