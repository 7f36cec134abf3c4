import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from heterosis.checkpoints import Checkpoint, TensorSpec, content_digest, tensor_digest, write_checkpoint

TENSORS: dict[str, Tensor] = {
    "matrix": torch.arange(12.0).reshape(3, 4).t(),
    "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
    "brain": torch.tensor([[3.0]], dtype=torch.bfloat16),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "größe": torch.ones(1),
}
SPECS = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("shard_bytes", [10**9, 60, 1])
def test_what_is_written_reads_back_bit_for_bit(tmp_path: Path, shard_bytes: int) -> None:
    write_checkpoint(tmp_path, SPECS, TENSORS.items(), shard_bytes)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.specs == SPECS
    for name, tensor in TENSORS.items():
        assert tensor_digest(checkpoint.tensor(name)) == tensor_digest(tensor)
    expected = content_digest(SPECS, {name: tensor_digest(tensor) for name, tensor in TENSORS.items()})
    assert checkpoint.digest == expected


def test_shards_keep_to_their_size_unless_one_tensor_exceeds_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SPECS, TENSORS.items(), shard_bytes=12)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert set(index["weight_map"].values()) == set(files)
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.dtype.itemsize for t in TENSORS.values())
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for file in files:
        held = load_file(tmp_path / file)
        assert len(held) == 1 or sum(t.numel() * t.dtype.itemsize for t in held.values()) <= 12


def test_files_carry_the_metadata_that_loaders_ask_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SPECS, TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt"}
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_checkpoint(tmp_path, SPECS, TENSORS.items())
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def spoiled() -> list[list[tuple[str, Tensor]]]:
    items = list(TENSORS.items())
    return [
        [items[1], items[0], *items[2:]],
        [("matrix", torch.zeros(3, 4)), *items[1:]],
        [("matrix", TENSORS["matrix"].double()), *items[1:]],
        [*items, ("more", torch.ones(1))],
    ]


@pytest.mark.parametrize("stream", spoiled(), ids=["order", "shape", "dtype", "one too many"])
def test_a_stream_that_does_not_fit_its_specs_is_a_programming_error(tmp_path: Path, stream) -> None:
    with pytest.raises(AssertionError):
        write_checkpoint(tmp_path, SPECS, stream)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_transformers_loads_what_is_written(tiny_family, tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    from transformers import AutoModelForCausalLM

    source = Checkpoint(tiny_family("bfloat16", tied=tied) / "a")
    write_checkpoint(tmp_path, source.specs, ((n, source.tensor(n)) for n in source.specs), shard_bytes)
    shutil.copy(source.folder / "config.json", tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, parameter in model.named_parameters():
        assert tensor_digest(parameter) == tensor_digest(source.tensor(name))
