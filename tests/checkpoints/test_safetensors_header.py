import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from heterosis.checkpoints.safetensors_header import Entry, read_header
from heterosis.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)
TENSORS = st.dictionaries(
    NAMES, st.tuples(st.lists(st.integers(0, 3), max_size=4), st.sampled_from(DTYPES)), min_size=1, max_size=5
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: object = (2,), dtype: object = "F32", offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path, "math")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("math: model.safetensors is not a readable safetensors file (")
    assert message.endswith("). Download or save it again.")
    return message


@given(TENSORS, st.dictionaries(NAMES, st.text(max_size=5), max_size=2))
def test_a_valid_file_is_described_as_the_library_describes_it(tmp_path_factory, content, metadata) -> None:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in content.items()}
    path = write(tmp_path_factory.getbasetemp(), save(tensors, metadata or None))
    entries = read_header(path, "math")
    with safe_open(path, framework="pt") as reader:
        assert entries.keys() == set(reader.keys())
        for name, entry in entries.items():
            view = reader.get_slice(name)
            assert (list(entry.shape), entry.code) == (view.get_shape(), view.get_dtype())
            assert entry.end - entry.begin == tensors[name].nbytes


def test_places_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    header = {"b": tensor(offsets=[0, 8]), "a": tensor([], "F64", [8, 16]), "empty": tensor([0, 5], offsets=[8, 8])}
    content = pack(header, bytes(16))
    start = len(content) - 16
    assert read_header(write(tmp_path, content), "math") == {
        "b": Entry((2,), "F32", start, start + 8),
        "a": Entry((), "F64", start + 8, start + 16),
        "empty": Entry((0, 5), "F32", start + 8, start + 8),
    }


BROKEN = {
    "empty file": (b"", "0 bytes long"),
    "seven bytes": (bytes(7), "7 bytes long"),
    "no header": (bytes(8), "not JSON"),
    "header beyond the file": ((50).to_bytes(8, "little") + b"{}", "the file has 10"),
    "header of 100 MB and more": ((100_000_001).to_bytes(8, "little") + b"{}", "more than the 100000000 allowed"),
    "header of 2^64 bytes": (b"\xff" * 8 + b"{}", "18446744073709551615 bytes"),
    "no JSON": (pack(b"{"), "not JSON"),
    "no UTF-8": (pack(b'{"\xff": 1}'), "not JSON"),
    "a list": (pack([]), "not an object"),
    "null": (pack(None), "not an object"),
    "nesting bomb": (pack(b"[" * 1_000_000), "not JSON"),
    "nested objects": (pack(b'{"a":' * 1_000_000), "not JSON"),
    "huge integer": (pack(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'), "JSON"),
    "twice the same tensor": (pack(b'{"a": 1, "a": 2}'), "a key stands twice"),
    "twice the same field": (pack(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "a key stands twice"),
    "metadata of numbers": (pack({"__metadata__": {"format": 1}}), "__metadata__"),
    "metadata as text": (pack({"__metadata__": "pt"}), "__metadata__"),
    "line break in a name": (pack({"a\nb": tensor()}, bytes(8)), "not plain text"),
    "lone surrogate in a name": (pack({"a\ud800": tensor()}, bytes(8)), "not plain text"),
    "very long name": (pack({"a" * 2000: tensor()}, bytes(8)), "not plain text"),
    "tensor as a number": (pack({"a": 1}), "a is not described"),
    "field missing": (pack({"a": {"dtype": "F32", "shape": []}}, bytes(4)), "a is not described"),
    "field too many": (pack({"a": tensor() | {"strides": [1]}}, bytes(8)), "a is not described"),
    "unknown dtype": (pack({"a": tensor(dtype="F33")}, bytes(8)), "unknown dtype"),
    "dtype as a number": (pack({"a": tensor(dtype=32)}, bytes(8)), "unknown dtype"),
    "dtype as a list": (pack({"a": tensor(dtype=["F32"])}, bytes(8)), "unknown dtype"),
    "shape as a number": (pack({"a": tensor(2)}, bytes(8)), "a shape"),
    "negative size": (pack({"a": tensor([-2])}, bytes(8)), "a shape"),
    "two negative sizes": (pack({"a": tensor([-1, -2])}, bytes(8)), "a shape"),
    "size with a fraction": (pack({"a": tensor([2.0])}, bytes(8)), "a shape"),
    "size true": (pack({"a": tensor([True, 2])}, bytes(8)), "a shape"),
    "size not a number": (
        pack(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', bytes(8)),
        "a shape",
    ),
    "size of 2^63": (pack({"a": tensor([2**63])}, bytes(8)), "a shape"),
    "65 dimensions": (pack({"a": tensor([1] * 64 + [2])}, bytes(8)), "a shape"),
    "overflow to 2 entries": (pack({"a": tensor([2**33, 2**31 + 1])}, bytes(8)), "too large"),
    "overflow hidden by zero": (pack({"a": tensor([0, 2**62, 2**62], offsets=[0, 0])}), "too large"),
    "shape that needs more bytes": (pack({"a": tensor([3])}, bytes(8)), "does not fill"),
    "shape that needs fewer bytes": (pack({"a": tensor([1])}, bytes(8)), "does not fill"),
    "half a byte": (pack({"a": tensor([3], "F4", [0, 1])}, bytes(1)), "does not fill"),
    "one offset": (pack({"a": tensor(offsets=[0])}, bytes(8)), "data_offsets"),
    "negative offset": (pack({"a": tensor(offsets=[-8, 0])}, bytes(8)), "data_offsets"),
    "offsets the wrong way round": (pack({"a": tensor(offsets=[8, 0])}, bytes(8)), "data_offsets"),
    "offset of 2^64": (pack({"a": tensor(offsets=[2**64, 2**64 + 8])}, bytes(8)), "data_offsets"),
    "data beyond the file": (pack({"a": tensor()}, bytes(7)), "the file has"),
    "hole before": (pack({"a": tensor(offsets=[8, 16])}, bytes(16)), "leaves a hole"),
    "hole between": (pack({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)), "b leaves a hole"),
    "overlap": (pack({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)), "b overlaps"),
    "the same bytes twice": (pack({"a": tensor(), "b": tensor()}, bytes(8)), "b overlaps"),
    "trailing bytes": (pack({"a": tensor()}, bytes(9)), "1 bytes follow"),
    "data without a tensor": (pack({}, bytes(1)), "1 bytes follow"),
}


@pytest.mark.parametrize(("content", "fault"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_fault(tmp_path: Path, content: bytes, fault: str) -> None:
    assert fault in refusal(write(tmp_path, content))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    refusal(tmp_path / "model.safetensors")


def agrees_or_refuses(path: Path) -> None:
    """What is read here must be readable for the library too, and alike."""
    try:
        entries = read_header(path, "math")
    except CheckpointError:
        refusal(path)
        return
    with safe_open(path, framework="pt") as reader:
        assert entries.keys() == set(reader.keys())
        for name, entry in entries.items():
            assert list(entry.shape) == reader.get_slice(name).get_shape()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_line(tmp_path_factory, content: bytes) -> None:
    agrees_or_refuses(write(tmp_path_factory.getbasetemp(), content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(JSON | st.dictionaries(NAMES, st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON})))
def test_random_headers_are_refused_in_one_line(tmp_path_factory, header) -> None:
    agrees_or_refuses(write(tmp_path_factory.getbasetemp(), pack(header, bytes(8))))


VALID = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.ones(())}, {"format": "pt"})


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_valid_files_with_changed_bytes_are_read_alike_or_refused(tmp_path_factory, changes) -> None:
    content = bytearray(VALID)
    for at, byte in changes:
        content[at] = byte
    agrees_or_refuses(write(tmp_path_factory.getbasetemp(), bytes(content)))


@given(st.integers(0, len(VALID) - 1), st.integers(0, 12), st.binary(max_size=12))
def test_valid_files_with_a_piece_replaced_are_read_alike_or_refused(tmp_path_factory, at, cut, piece) -> None:
    agrees_or_refuses(write(tmp_path_factory.getbasetemp(), VALID[:at] + piece + VALID[at + cut :]))
