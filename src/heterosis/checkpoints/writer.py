"""Writing a checkpoint: safetensors shards, streamed tensor by tensor, in place only when complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from torch import Tensor

from heterosis.checkpoints.tensors import FLOAT_DTYPES, TensorSpec, raw_bytes
from heterosis.checkpoints.weights import INDEX_NAME, SINGLE_NAME

DTYPE_CODES = {dtype: code for code, dtype in FLOAT_DTYPES.items()}
SHARD_BYTES = 5_000_000_000


def write_checkpoint(
    folder: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as they come, in shards of at most `shard_bytes`, with an index when there are several.

    `specs` gives shape and dtype of every tensor in the order in which `tensors` yields them, so headers are written
    first and never more than one tensor is held. The caller owns the atomicity of `folder`.
    """
    shards = _plan_shards(specs, shard_bytes)
    files = _shard_names(len(shards))
    stream = iter(tensors)
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("xb") as out:
            _write_header(out, shard)
            for expected, spec in shard.items():
                name, tensor = next(stream)
                assert (name, tuple(tensor.shape), tensor.dtype) == (expected, *spec), name
                out.write(raw_bytes(tensor))
                del tensor  # its memory is for the one after the next, which may be in the making
            out.flush()
            os.fsync(out.fileno())
    assert next(stream, None) is None, "more tensors than specs"
    if len(shards) > 1:
        _write_index(folder, dict(zip(files, shards, strict=True)))


def _plan_shards(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        size = spec.numel * spec.dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += size
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_header(out: IO[bytes], shard: Mapping[str, TensorSpec]) -> None:
    """The safetensors layout: length of the header, the header as JSON padded to 8 bytes, then raw tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in shard.items():
        end = offset + spec.numel * spec.dtype.itemsize
        header[name] = {"dtype": DTYPE_CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _write_index(folder: Path, shards: Mapping[str, Mapping[str, TensorSpec]]) -> None:
    total = sum(spec.numel * spec.dtype.itemsize for shard in shards.values() for spec in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
