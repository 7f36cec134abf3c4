import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.checkpoints import Checkpoint, Family, open_family
from heterosis.checkpoints.layout import storage_order
from heterosis.checkpoints.vocabulary import vocabulary
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


def test_the_base_may_be_a_parent_too(tiny_family) -> None:
    base = tiny_family() / "base"
    family = open_family(base, {"itself": base, "a": tiny_family() / "a"})
    assert family.parents["itself"].digest == family.base.digest
    family.close()


@pytest.mark.parametrize("mapped", [True, False])
def test_a_family_is_mapped_or_streamed_as_asked(tiny_family, mapped: bool) -> None:
    folder = tiny_family()
    family = open_family(folder / "base", {"a": folder / "a"}, mapped=mapped)
    assert family.mapped == mapped
    assert torch.equal(family.parents["a"].tensor(UP), load_file(folder / "a" / "model.safetensors")[UP])
    family.close()


def resize(folder: Path, rows: int) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.ones(rows, 32)

    rewrite(folder, change)
    edit_tokenizer(folder, lambda content: content["model"]["vocab"].update(w7=8, w8=7))


@pytest.mark.parametrize("rows", [60, 64, 70])
@pytest.mark.parametrize("vocabulary", ["base", "union", "math"])
def test_vocabularies_may_differ_where_they_get_aligned(family: Path, rows: int, vocabulary: str) -> None:
    resize(family / "a", rows)
    refusal(family)
    opened = open_family(family / "base", {"math": family / "a"}, vocabulary=vocabulary)
    assert opened.parents["math"].specs["lm_head.weight"].shape == (rows, 32)
    opened.close()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lm_head.weight", [64, 31]), ("lm_head.weight", [64]), (UP, [47, 32]), ("model.norm.weight", [31])],
)
def test_alignment_is_of_rows_of_the_vocabulary_only(family: Path, name: str, shape: list[int]) -> None:
    rewrite(family / "a", lambda tensors: tensors.update({name: torch.ones(shape)}))
    with pytest.raises(CheckpointError, match=f"^math: {name} is ") as caught:
        open_family(family / "base", {"math": family / "a"}, vocabulary="union")
    assert str(shape) in str(caught.value)


def build(folder: Path, **settings: object) -> Path:
    """A random Llama over the tiny family's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(**(sizes | heads | settings))).save_pretrained(folder)
    return folder


def test_a_stack_takes_layers_from_models_of_different_depth(tiny_family, tmp_path: Path) -> None:
    base, deep, flat = tiny_family() / "base", build(tmp_path / "deep", num_hidden_layers=5), tmp_path / "flat"
    build(flat, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"^deep: has model.layers.3"):
        open_family(base, {"deep": deep})
    family = open_family(base, {"deep": deep, "flat": flat}, stacked=True)
    assert "model.layers.4.mlp.up_proj.weight" in family.parents["deep"].specs
    family.close()


@pytest.mark.parametrize(
    "settings",
    [{"rms_norm_eps": 1e-3}, {"num_key_value_heads": 4}, {"intermediate_size": 64}, {"tie_word_embeddings": True}],
    ids=str,
)
def test_models_of_a_stack_must_agree_in_all_but_depth(
    tiny_family, tmp_path: Path, settings: dict[str, object]
) -> None:
    other = build(tmp_path / "other", num_hidden_layers=5, **settings)
    with pytest.raises(CheckpointError, match=r"^other: "):
        open_family(tiny_family() / "base", {"other": other}, stacked=True)


def test_a_parent_of_another_width_has_another_base(tiny_family, tmp_path: Path) -> None:
    other = build(tmp_path / "other", hidden_size=16)
    with pytest.raises(CheckpointError) as caught:
        open_family(tiny_family() / "base", {"math": other})
    message = str(caught.value)
    assert message.startswith(
        "math: config.json has hidden_size 16, the base has 32, so it is no fine-tune of this base"
    )
    assert "[64, 16]" in message
    assert "[64, 32]" in message
    assert "\n" not in message


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("vocabulary", ["error", "union"])
def test_a_parent_of_another_architecture_has_another_base(
    tiny_family, tmp_path: Path, stacked: bool, vocabulary
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=8))
    model.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match=r"^math: .*model_type|^math: tie_word_embeddings"):
        open_family(tiny_family() / "base", {"math": tmp_path / "gpt2"}, stacked=stacked, vocabulary=vocabulary)


def test_buffers_may_be_missing_from_some_members(family: Path) -> None:
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    names = open_family(family / "base", {"a": family / "a"}).names
    for member in ("a", "base"):
        rewrite(family / member, lambda tensors: tensors.update(buffers))
        assert open_family(family / "base", {"a": family / "a"}).names == names


def test_a_family_that_does_not_fit_leaves_no_file_open(family: Path) -> None:
    rewrite(family / "a", lambda tensors: tensors.pop(UP))
    with pytest.raises(CheckpointError) as caught:  # its traceback keeps all that was opened alive
        open_family(family / "base", {"math": family / "a"}, mapped=False)
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.exists()]
    assert not [handle for handle in handles if handle.resolve().is_relative_to(family)]
    assert caught.value
