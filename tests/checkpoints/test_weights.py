import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heterosis.checkpoints import Checkpoint, tensor_digest, weights
from heterosis.errors import CheckpointError

NORM = "model.norm.weight"


@pytest.fixture
def copy(tiny_family, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny base that a test may spoil."""

    def copied(**variant: bool) -> Path:
        return Path(shutil.copytree(tiny_family(**variant) / "base", tmp_path / "model"))

    return copied


@pytest.fixture
def pickled(copy) -> Callable[..., Path]:
    """The same with its weights pickled, in one file or in two with an index."""

    def made(sharded: bool = False, legacy: bool = False) -> Path:
        folder = copy()
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        new = not legacy
        if not sharded:
            torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
            return folder
        names = list(tensors)
        files = {"one.bin": names[::2], "two.bin": names[1::2]}
        for file, held in files.items():
            torch.save({name: tensors[name] for name in held}, folder / file, _use_new_zipfile_serialization=new)
        weight_map = {name: file for file, held in files.items() for name in held}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return made


def refusal(folder: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint(folder, "math", **options).digest
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("math: ")
    return message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_is_the_same_whether_mapped_or_not(tiny_family, dtype: str, sharded: bool) -> None:
    folder = tiny_family(dtype, sharded=sharded) / "a"
    mapped, streamed = Checkpoint(folder), Checkpoint(folder, mapped=False)
    assert (mapped.mapped, streamed.mapped) == (True, False)
    assert streamed.specs == mapped.specs
    assert streamed.digest == mapped.digest
    for name in mapped.specs:
        assert tensor_digest(streamed.tensor(name)) == tensor_digest(mapped.tensor(name))
    streamed.close()


def test_scalars_and_empty_tensors_are_streamed(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    streamed = Checkpoint(tmp_path, mapped=False)
    for name, tensor in tensors.items():
        assert streamed.tensor(name).shape == tensor.shape
        assert tensor_digest(streamed.tensor(name)) == tensor_digest(tensor)


def test_a_streamed_checkpoint_maps_no_file(tiny_family) -> None:
    folder = tiny_family(sharded=True) / "a"
    streamed = Checkpoint(folder, mapped=False)
    _ = streamed.digest
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_streamed_tensors_are_memory_of_their_own(tiny_family) -> None:
    streamed = Checkpoint(tiny_family() / "a", mapped=False)
    first = streamed.tensor(NORM)
    first += 1
    assert not torch.equal(first, streamed.tensor(NORM))


def test_a_process_with_less_address_space_than_the_model_can_read_it(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:  # 4 GiB of zeros that take no room on the disk
        size, count = 2**26, 64
        entry = {"dtype": "BF16", "shape": [size // 2]}
        header = {f"{i}": entry | {"data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size * count)
    (tmp_path / "config.json").write_text("{}")
    script = """
import resource, sys, torch
from pathlib import Path
from heterosis.checkpoints import Checkpoint
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
model = Checkpoint(Path(sys.argv[1]), mapped=False)
print(sum(len(model.tensor(name)) for name in list(model.specs)[:12]))
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(12 * 2**25)], done.stderr


def test_a_file_that_shrinks_while_it_is_open_is_refused(copy) -> None:
    folder = copy()
    streamed = Checkpoint(folder, "math", mapped=False)
    os.truncate(folder / "model.safetensors", 8000)
    with pytest.raises(CheckpointError, match=r"^math: model.safetensors ends within .*; it was changed meanwhile"):
        _ = streamed.digest


def test_reads_that_come_in_pieces_are_put_together(tiny_family, monkeypatch) -> None:
    expected = Checkpoint(tiny_family() / "a").digest
    whole = os.preadv
    monkeypatch.setattr(weights.os, "preadv", lambda handle, parts, at: whole(handle, [parts[0][:1000]], at))
    assert Checkpoint(tiny_family() / "a", mapped=False).digest == expected


@pytest.mark.parametrize("mapped", [True, False])
def test_a_refused_checkpoint_leaves_no_file_open(copy, mapped: bool) -> None:
    folder = copy(sharded=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    last = list(dict.fromkeys(index["weight_map"].values()))[-1]
    (folder / last).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:  # its traceback keeps all that was opened alive
        Checkpoint(folder, mapped=mapped)
    assert caught.value
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.exists()]
    assert not [handle for handle in handles if handle.resolve().is_relative_to(folder)]


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(copy, mapped: bool, value: float, dtype: torch.dtype) -> None:
    folder = copy()
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM] = tensors[NORM].to(dtype).index_fill(0, torch.tensor([31]), value)
    save_file(tensors, folder / "model.safetensors")
    assert f"{NORM} holds NaN or Inf" in refusal(folder, mapped=mapped)


@pytest.mark.parametrize("mapped", [True, False])
def test_buffers_that_the_model_computes_are_left_out(copy, mapped: bool) -> None:
    folder = copy()
    without = Checkpoint(folder).digest
    tensors = load_file(folder / "model.safetensors") | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "h.1.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "h.2.attn.bias": torch.ones(1, 1, 8, 8),
        "h.0.attn.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(float("-inf")),
    }
    save_file(tensors, folder / "model.safetensors")
    assert Checkpoint(folder, mapped=mapped).digest == without


def test_a_bias_of_weights_is_no_buffer(copy) -> None:
    folder = copy()
    save_file(load_file(folder / "model.safetensors") | {"h.0.attn.bias": torch.ones(8)}, folder / "model.safetensors")
    assert "h.0.attn.bias" in Checkpoint(folder).specs


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_are_read_where_that_is_allowed(pickled, tiny_family, sharded: bool, legacy: bool) -> None:
    folder = pickled(sharded, legacy)
    assert "allow pickles" in refusal(folder)
    for mapped in (True, False):
        assert Checkpoint(folder, allow_pickle=True, mapped=mapped).digest == Checkpoint(tiny_family() / "base").digest


def test_safetensors_go_before_pickles(copy) -> None:
    folder = copy()
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert Checkpoint(folder, allow_pickle=True).specs


class Code:
    def __reduce__(self) -> object:
        return os.mkdir, ("hacked",)


def with_code() -> bytes:
    buffer = io.BytesIO()
    torch.save({NORM: Code()}, buffer)
    return buffer.getvalue()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BROKEN_PICKLES = {
    "empty": b"",
    "no pickle": b"hello",
    "code in a torch file": with_code(),
    "code in a plain pickle": pickle.dumps({NORM: Code()}),
    "truncated": saved({NORM: torch.ones(32)})[:-200],
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "a list": saved([torch.ones(1)]),
    "a tensor": saved(torch.ones(1)),
    "a nested dict": saved({"state_dict": {NORM: torch.ones(1)}}),
    "a number": saved({NORM: torch.ones(1), "step": 3}),
    "a name that is no text": saved({3: torch.ones(1)}),
    "a name with a line break": saved({"a\nb": torch.ones(1)}),
    "a sparse tensor": saved({NORM: torch.eye(3).to_sparse()}),
    "a tensor without data": saved({NORM: torch.ones(3, device="meta")}),
    "a tensor that claims more than it holds": saved({NORM: torch.ones(1).expand(2**40)}),
    "integers": saved({NORM: torch.ones(3, dtype=torch.int64)}),
    "NaN": saved({NORM: torch.tensor([float("nan")])}),
}


@pytest.mark.parametrize("content", BROKEN_PICKLES.values(), ids=BROKEN_PICKLES)
def test_a_pickle_of_anything_but_tensors_is_refused(copy, monkeypatch, content: bytes) -> None:
    folder = copy()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    monkeypatch.chdir(folder)
    message = refusal(folder, allow_pickle=True)
    assert not (folder / "hacked").exists()
    assert "pytorch_model.bin" in message or NORM in message


def test_a_pickle_without_its_data_is_refused(pickled) -> None:
    folder = pickled()
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/data/0")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    refusal(folder, allow_pickle=True)


@pytest.mark.parametrize(
    "place", ["../model/one.bin", "/etc/one.bin", "..", "", "one.safetensors", "a\nb.bin", 3, None]
)
def test_an_index_of_pickles_may_only_name_files_in_its_own_folder(pickled, place: object) -> None:
    folder = pickled(sharded=True)
    path = folder / "pytorch_model.bin.index.json"
    content = json.loads(path.read_text())
    content["weight_map"][NORM] = place
    path.write_text(json.dumps(content))
    message = refusal(folder, allow_pickle=True)
    assert NORM in message
    assert repr(place) in message


def test_views_in_a_pickle_are_read_row_by_row(copy, tiny_family) -> None:
    folder = copy()
    tensors = {
        name: t.t().contiguous().t() if t.ndim == 2 else t
        for name, t in load_file(folder / "model.safetensors").items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert Checkpoint(folder, allow_pickle=True).digest == Checkpoint(tiny_family() / "base").digest
