"""The header of a safetensors file, read and checked before anything else touches the file.

The layout: 8 bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes, which must
fill the rest of the file without holes or overlaps. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from heterosis.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMENSIONS = 64  # beyond it torch refuses to reduce a tensor
MAX_NUMBER = 2**63 - 1
MAX_NAME = 1000
METADATA = "__metadata__"

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class Entry(NamedTuple):
    """Where a tensor lies: its bytes are `begin` to `end` of the file."""

    shape: tuple[int, ...]
    code: str
    begin: int
    end: int


class _FaultError(ValueError):
    """What is wrong with a header."""


def read_header(path: Path, name: str) -> dict[str, Entry]:
    """Tensor name -> its place in the file. CheckpointError names the model, the file, the fault and the remedy."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _FaultError(f"{len(prefix)} bytes long, shorter than a header")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise _FaultError(f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
            if 8 + length > size:
                raise _FaultError(f"its header claims {length} bytes, the file has {size}")
            text = file.read(length)
        return _parse(text, 8 + length, size)
    except (_FaultError, OSError) as error:
        raise CheckpointError(
            f"{name}: {path.name} is not a readable safetensors file ({error}). Download or save it again."
        ) from error


def _parse(text: bytes, start: int, size: int) -> dict[str, Entry]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except _FaultError:
        raise
    except (ValueError, RecursionError) as error:
        raise _FaultError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _FaultError("its header is not an object")
    _check_metadata(header.pop(METADATA, {}))
    entries = {tensor: _entry(tensor, content, start) for tensor, content in header.items()}
    _check_coverage(entries, start, size)
    return entries


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _FaultError("a key stands twice in its header")
    return content


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _FaultError(f"{METADATA} does not map text to text")


def _entry(tensor: str, content: object, start: int) -> Entry:
    # A name with a line break could forge lines of a digest or of a message.
    if not tensor.isprintable() or len(tensor) > MAX_NAME:
        raise _FaultError(f"the name {tensor[:80]!r} is not plain text of at most {MAX_NAME} characters")
    if not isinstance(content, dict) or content.keys() != {"dtype", "shape", "data_offsets"}:
        raise _FaultError(f"{tensor} is not described by dtype, shape and data_offsets")
    code, shape, offsets = content["dtype"], content["shape"], content["data_offsets"]
    if not isinstance(code, str) or code not in DTYPE_BITS:
        raise _FaultError(f"{tensor} has an unknown dtype")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _FaultError(f"{tensor} has a shape that is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _FaultError(f"{tensor} has data_offsets that are not a begin and an end")
    # A zero among the sizes would hide an overflow of the others, which torch multiplies for the strides.
    if math.prod(max(size, 1) for size in shape) * DTYPE_BITS[code] > MAX_NUMBER:
        raise _FaultError(f"{tensor} has a shape too large to address")
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[code] != 8 * (end - begin):
        raise _FaultError(f"{tensor} is {code} {shape}, which does not fill its {end - begin} bytes exactly")
    return Entry(tuple(shape), code, start + begin, start + end)


def _are_counts(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_NUMBER for n in numbers)


def _check_coverage(entries: dict[str, Entry], start: int, size: int) -> None:
    """The tensors' bytes must follow each other from the header to the end of the file."""
    at = start
    for tensor, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise _FaultError(
                f"{tensor} {'overlaps' if entry.begin < at else 'leaves a hole after'} what lies before it"
            )
        at = entry.end
    if at > size:
        raise _FaultError(f"its tensors need {at} bytes, the file has {size}")
    if at < size:
        raise _FaultError(f"{size - at} bytes follow its last tensor")
