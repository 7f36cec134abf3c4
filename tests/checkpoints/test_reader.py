import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.checkpoints import Checkpoint, TensorSpec, content_digest, tensor_digest
from heterosis.errors import CheckpointError

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture
def copy(tiny_family, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny base that a test may spoil."""

    def copied(**variant: bool) -> Path:
        return Path(shutil.copytree(tiny_family(**variant) / "base", tmp_path / "model"))

    return copied


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def error(folder: Path) -> str:
    """The one line with which a folder is refused, on opening or on taking its digest."""
    with pytest.raises(CheckpointError) as caught:
        _ = Checkpoint(folder, "math").digest
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("math: ")
    return message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_holds_what_transformers_saved(tiny_family, dtype: str, sharded: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_family(dtype, sharded=sharded) / "a"
    assert (folder / "model.safetensors.index.json").exists() == sharded
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    checkpoint = Checkpoint(folder)
    saved = dict(model.named_parameters())
    assert checkpoint.specs.keys() == saved.keys()
    for name, parameter in saved.items():
        assert checkpoint.specs[name] == TensorSpec(tuple(parameter.shape), parameter.dtype)
        assert torch.equal(checkpoint.tensor(name), parameter)
    assert checkpoint.bytes == sum(p.numel() * p.dtype.itemsize for p in saved.values())
    checkpoint.close()


def test_a_checkpoint_is_called_after_its_folder_unless_named(tiny_family) -> None:
    assert Checkpoint(tiny_family() / "a").name == "a"
    assert Checkpoint(tiny_family() / "a", "math").name == "math"


@pytest.mark.parametrize("tied", [False, True])
def test_the_digest_does_not_depend_on_how_weights_are_split_into_files(tiny_family, tied: bool) -> None:
    one, many = (Checkpoint(tiny_family(tied=tied, sharded=sharded) / "a") for sharded in (False, True))
    assert one.digest == many.digest


def test_the_digest_follows_bytes_names_shapes_and_dtypes(tiny_family) -> None:
    digests = [Checkpoint(tiny_family(dtype) / m).digest for dtype in ("float32", "bfloat16") for m in ("base", "a")]
    assert len(set(digests)) == 4
    zeros = torch.zeros(2, 3)
    spec = TensorSpec((2, 3), torch.float32)
    same_bytes = [
        {"w": spec},
        {"v": spec},
        {"w": TensorSpec((3, 2), torch.float32)},
        {"w": TensorSpec((2, 6), torch.bfloat16)},
    ]
    assert len({content_digest(specs, dict.fromkeys(specs, tensor_digest(zeros))) for specs in same_bytes}) == 4


def test_a_tensor_digest_sees_row_major_bytes_only() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(matrix.t().contiguous().t()) == tensor_digest(matrix)
    assert tensor_digest(matrix.t()) != tensor_digest(matrix)
    assert tensor_digest(torch.tensor(-0.0)) != tensor_digest(torch.tensor(0.0))
    assert tensor_digest(torch.ones(3, requires_grad=True)) == tensor_digest(torch.ones(3))


def test_a_stored_alias_of_a_tied_head_is_left_out(copy) -> None:
    folder = copy(tied=True)
    without = Checkpoint(folder)
    assert without.tied
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    with_alias = Checkpoint(folder)
    assert HEAD not in with_alias.specs
    assert with_alias.digest == without.digest


@pytest.mark.parametrize("change", [lambda embedding: embedding + 1, lambda embedding: embedding[:-1].clone()])
def test_an_alias_that_differs_from_the_embedding_is_refused(copy, change) -> None:
    folder = copy(tied=True)
    rewrite(folder, lambda tensors: tensors.update({HEAD: change(tensors[EMBEDDING])}))
    message = error(folder)
    assert HEAD in message
    assert EMBEDDING in message


def test_a_head_that_is_the_only_copy_of_tied_weights_is_kept(copy) -> None:
    folder = copy(tied=True)
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
    assert HEAD in Checkpoint(folder).specs


def test_an_untied_head_is_a_tensor_of_its_own(tiny_family) -> None:
    checkpoint = Checkpoint(tiny_family(tied=False) / "base")
    assert not checkpoint.tied
    assert HEAD in checkpoint.specs


@pytest.mark.parametrize("tied", [False, True])
def test_a_configuration_that_does_not_say_is_tied_when_no_head_is_stored(copy, tied: bool) -> None:
    folder = copy(tied=tied)
    said = Checkpoint(folder).digest
    edit_json(folder / "config.json", lambda config: config.pop("tie_word_embeddings", None))
    silent = Checkpoint(folder)
    assert silent.tied == tied
    assert silent.digest == said


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(copy, keep: int) -> None:
    folder = copy()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is not a readable safetensors file" in error(folder)


def test_a_truncated_shard_is_refused_by_name(copy) -> None:
    folder = copy(sharded=True)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in error(folder)


@pytest.mark.parametrize(
    "place", ["../base/model.safetensors", "/etc/model.safetensors", "sub/x.safetensors", "..", "", "x.bin", 3, None]
)
def test_an_index_may_only_name_safetensors_in_its_own_folder(copy, place: object) -> None:
    folder = copy(sharded=True)
    edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update({NORM: place}))
    message = error(folder)
    assert NORM in message
    assert repr(place) in message


def test_a_missing_shard_is_refused_by_name(copy) -> None:
    folder = copy(sharded=True)
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    assert f"shard {shard.name} is missing" in error(folder)


def test_a_tensor_that_is_not_in_the_shard_that_the_index_names_is_refused(copy) -> None:
    folder = copy(sharded=True)
    edit_json(
        folder / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(extra=next(iter(index["weight_map"].values()))),
    )
    assert "extra" in error(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{", "\xff"])
def test_an_index_without_a_map_is_refused(copy, content: str) -> None:
    folder = copy(sharded=True)
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    assert "model.safetensors.index.json" in error(folder)


@pytest.mark.parametrize("content", ["[]", "{", "", "\xff", "null", "[" * 100_000], ids=range(6))
def test_a_configuration_that_cannot_be_read_is_refused(copy, content: str) -> None:
    folder = copy()
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in error(folder)


def test_a_folder_without_a_configuration_is_refused(copy) -> None:
    folder = copy()
    (folder / "config.json").unlink()
    assert "no config.json" in error(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_pickles_are_refused_unread(copy, name: str) -> None:
    folder = copy()
    (folder / "model.safetensors").rename(folder / name)
    assert "pickle" in error(folder)


def test_a_folder_without_weights_is_refused(copy) -> None:
    folder = copy()
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in error(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_the_digest(copy, value: float) -> None:
    folder = copy()
    rewrite(folder, lambda tensors: tensors[NORM].__setitem__(3, value))
    assert f"{NORM} holds NaN or Inf" in error(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_not_plain_floats_are_refused(copy, dtype: torch.dtype) -> None:
    folder = copy()
    rewrite(folder, lambda tensors: tensors.update({NORM: tensors[NORM].to(dtype)}))
    assert NORM in error(folder)
