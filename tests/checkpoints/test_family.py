import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.checkpoints import Checkpoint, Family, open_family
from heterosis.checkpoints.family import vocabulary
from heterosis.checkpoints.layout import storage_order
from heterosis.errors import CheckpointError

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def family(tiny_family, tmp_path: Path) -> Path:
    """A copy of base and parent `a` that a test may spoil."""
    for member in ("base", "a"):
        shutil.copytree(tiny_family() / member, tmp_path / member)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_tokenizer(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_family(folder / "base", {"math": folder / "a"})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_family_lists_its_members_and_its_tensors_in_storage_order(open_tiny) -> None:
    family = open_tiny()
    assert list(family.members) == ["base", "a", "b", "c"]
    assert family.names == storage_order(family.base.specs)
    assert family.names[0] == "model.embed_tokens.weight"


@pytest.mark.parametrize("member", ["a", "base"])
def test_members_may_differ_in_dtype_and_in_files(tiny_family, member: str) -> None:
    kinds = {"base": ("float32", False), "a": ("float32", False)} | {member: ("bfloat16", True)}
    base, parent = (tiny_family(kinds[m][0], sharded=kinds[m][1]) / m for m in ("base", "a"))
    assert open_family(base, {"a": parent}).names


def test_a_family_without_parents_is_refused(tiny_family) -> None:
    with pytest.raises(CheckpointError, match=r"^parents: none given"):
        Family(Checkpoint(tiny_family() / "base"), {})


def test_a_missing_tensor_is_named_with_its_nearest_namesake(family: Path) -> None:
    renamed = "model.layers.1.mlp.up_project.weight"
    rewrite(family / "a", lambda tensors: tensors.update({renamed: tensors.pop(UP)}))
    message = refusal(family)
    assert message.startswith(f"math: has no {UP} (nearest name there: {renamed}); 1 missing and 1 extra")


def test_an_extra_tensor_is_named(family: Path) -> None:
    rewrite(family / "a", lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    assert refusal(family).startswith("math: has model.extra, which the base lacks; 0 missing and 1 extra")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(family: Path) -> None:
    rewrite(family / "a", lambda tensors: tensors.update({UP: tensors[UP][:-1].clone()}))
    assert refusal(family).startswith(f"math: {UP} is [47, 32], the base has [48, 32].")


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_members_do_not_mix(tiny_family, tied: bool) -> None:
    base, parent = tiny_family(tied=tied) / "base", tiny_family(tied=not tied) / "a"
    with pytest.raises(CheckpointError, match=f"^math: tie_word_embeddings is {not tied} there and {tied} in the base"):
        open_family(base, {"math": parent})


def test_a_base_whose_configuration_does_not_speak_of_ties_fits_parents_that_do(tiny_family, tmp_path: Path) -> None:
    """GPT-2 and Gemma as published, and fine-tunes of them saved by a newer transformers."""
    folder = tiny_family(tied=True)
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    assert config.pop("tie_word_embeddings")
    (base / "config.json").write_text(json.dumps(config))
    assert open_family(base, {"math": folder / "a"}).names


def test_tokenizers_that_number_a_token_differently_are_refused(family: Path) -> None:
    edit_tokenizer(family / "a", lambda content: content["model"]["vocab"].update(w7=8, w8=7))
    message = refusal(family)
    assert message.startswith("math: its tokenizer gives 'w7' the id 8, the base's gives 7")


def test_a_tokenizer_that_lacks_a_token_is_refused(family: Path) -> None:
    edit_tokenizer(family / "a", lambda content: content["model"]["vocab"].pop("w9"))
    assert "'w9'" in refusal(family)


def test_a_parent_may_add_tokens_behind_the_bases_or_have_no_tokenizer(family: Path) -> None:
    edit_tokenizer(family / "a", lambda content: content["added_tokens"].append({"id": 64, "content": "<pad>"}))
    open_family(family / "base", {"math": family / "a"}).close()
    (family / "a" / "tokenizer.json").unlink()
    open_family(family / "base", {"math": family / "a"}).close()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{", "[]", "{}", '{"model": null}', '{"model": {"vocab": [[]]}}'], ids=range(6)
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(family: Path, content: str) -> None:
    (family / "a" / "tokenizer.json").write_text(content)
    assert str(family / "a" / "tokenizer.json") in refusal(family)


def test_a_vocabulary_is_read_from_maps_from_lists_and_from_added_tokens(tmp_path: Path) -> None:
    assert vocabulary(tmp_path) is None
    added = [{"id": 2, "content": "<pad>"}]
    for vocab in ({"a": 0, "b": 1}, [["a", -0.5], ["b", -1.5]]):
        content = {"model": {"vocab": vocab}, "added_tokens": added}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        assert vocabulary(tmp_path) == {"a": 0, "b": 1, "<pad>": 2}


def test_a_fault_is_reported_under_the_name_of_the_parent_that_has_it(family: Path, tiny_family) -> None:
    (family / "a" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^code: no config.json"):
        open_family(family / "base", {"math": tiny_family() / "b", "code": family / "a"})
