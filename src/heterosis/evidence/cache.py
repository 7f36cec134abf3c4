"""Evidence on disk: one safetensors file per content, whole or not there, checked when it is opened."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from heterosis.checkpoints import TensorSpec, content_digest, tensor_digest
from heterosis.errors import InputError

Kind = Literal["fisher", "gram"]


class Evidence(Mapping[str, Tensor]):
    """Tensor name in the checkpoint -> what was measured of it, float32, read from disk when asked for.

    `fisher`: diagonal Fisher information, shaped as the tensor; every tensor that is trained has one. `gram`: Xᵀ X per
    token over the inputs of a linear layer, [in, in]; embeddings (and heads tied to them), norms and biases have none.
    """

    kind: Kind
    norm: float
    """L2 norm over all tensors together: what `fisher_mean` takes as one of its `norms`."""
    input_first: frozenset[str]
    """Linear layers whose weight is stored as [in, out], as GPT-2's Conv1D (`regmean` must be told)."""
    digest: str
    """Content digest of all tensors."""

    def __init__(self, path: Path) -> None:
        """ValueError if the file is not what was once written."""
        self._reader = _open(path)
        self._names = tuple(self._reader.keys())
        said = json.loads((self._reader.metadata() or {}).get("evidence", "{}"))
        self.kind = said.get("kind")
        self.norm = said.get("norm")
        self.input_first = frozenset(said.get("input_first", ()))
        self.digest = said.get("digest")
        if _digest(self) != self.digest:
            raise ValueError(f"{path}: the tensors are not those that were written")

    def __getitem__(self, name: str) -> Tensor:
        """A tensor on the CPU."""
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._reader.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def cache_folder() -> Path:
    """Where evidence is kept unless the caller says otherwise: $XDG_CACHE_HOME/heterosis/evidence."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "heterosis" / "evidence"


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def find(path: Path) -> Evidence | None:
    """What is kept at `path`, or None if that is nothing or damaged."""
    try:
        return Evidence(path)
    except (OSError, ValueError, AttributeError, TypeError):  # whatever a damaged header decodes to
        return None


def keep(path: Path, kind: Kind, tensors: Mapping[str, Tensor], input_first: frozenset[str]) -> Evidence:
    """Write evidence: under a name of its own, to the disk, then renamed. Whoever writes last wins, with equal bytes.

    InputError if the folder does not take it.
    """
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in tensors.values()))
    said = {"kind": kind, "norm": norm, "input_first": sorted(input_first), "digest": _digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            save_file(dict(tensors), temporary, metadata={"evidence": json.dumps(said)})
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path.parent}: the evidence cannot be kept there ({error}). Make room, or set XDG_CACHE_HOME."
        ) from error
    return Evidence(path)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    specs, digests = {}, {}
    for name in tensors:
        tensor = tensors[name]
        specs[name], digests[name] = TensorSpec(tuple(tensor.shape), tensor.dtype), tensor_digest(tensor)
    return content_digest(specs, digests)
