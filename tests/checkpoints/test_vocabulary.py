"""Tokenizers that are really built and saved, over embeddings small enough to work out by hand."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from heterosis.checkpoints import Checkpoint
from heterosis.checkpoints.vocabulary import TokenSource, VocabularyPlan, plan_vocabulary, vocabulary
from heterosis.errors import CheckpointError

EMBEDDING = "model.embed_tokens.weight"
MakeMember = Callable[..., Checkpoint]


def words(*names: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, numbered as given behind `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(("<unk>", *names))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)


def pairs() -> PreTrainedTokenizerFast:
    """A BPE tokenizer of a, b, c, d that joins ab, cd and abcd, and pads with a token that it adds at id 8."""
    names = ("<unk>", "a", "b", "c", "d", "ab", "cd", "abcd")
    merges = [("a", "b"), ("c", "d"), ("ab", "cd")]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)
    made.add_special_tokens({"pad_token": "<pad>"})
    return made


@pytest.fixture
def member(tmp_path: Path) -> Iterator[MakeMember]:
    """Saves and opens a model that is one embedding [rows, width]; None for a folder without a tokenizer."""
    opened: list[Checkpoint] = []

    def make(name: str, tokenizer: Any, embedding: Tensor, *added: str, vocab_size: int | None = None) -> Checkpoint:
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file({EMBEDDING: embedding}, folder / "model.safetensors", {"format": "pt"})
        config = {"model_type": "llama", "vocab_size": len(embedding) if vocab_size is None else vocab_size}
        (folder / "config.json").write_text(json.dumps(config))
        if tokenizer is not None:
            tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
            tokenizer.save_pretrained(folder)
        opened.append(Checkpoint(folder, name))
        return opened[-1]

    yield make
    for checkpoint in opened:
        checkpoint.close()


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def noise(rows: int, seed: int, width: int = 4) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def embeddings(members: dict[str, Checkpoint]) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(EMBEDDING) for name, checkpoint in members.items()}


def aligned(plan: VocabularyPlan, members: dict[str, Checkpoint]) -> dict[str, list[float]]:
    """Rows of width one, as numbers."""
    return {name: rows[:, 0].tolist() for name, rows in plan.align(embeddings(members)).items()}


@pytest.fixture
def three(member: MakeMember) -> dict[str, Checkpoint]:
    """The base knows x y z; a has them in another order and adds <a>; b lacks y, knows w and adds <a> and <b>."""
    return {
        "base": member("base", words("x", "y", "z"), column(0, 1, 2, 3)),
        "a": member("a", words("z", "y", "x"), column(10, 13, 12, 11, 14), "<a>"),
        "b": member("b", words("x", "z", "w"), column(20, 21, 23, 24, 25, 26), "<a>", "<b>"),
    }


def test_a_union_is_the_bases_vocabulary_then_ordinary_tokens_then_added_ones(three) -> None:
    plan = plan_vocabulary("base", three, "union")
    assert list(plan.vocab) == ["<unk>", "x", "y", "z", "w", "<a>", "<b>"]
    assert list(plan.vocab.values()) == list(range(plan.size))
    assert plan.rows["b"].tolist() == [0, 1, -1, 2, 3, 4, 5]


def test_a_row_that_a_member_lacks_comes_from_its_only_owner_or_the_base_or_is_the_average(three) -> None:
    assert aligned(plan_vocabulary("base", three, "union"), three) == {
        #        <unk>   x    y    z    w   <a>  <b>
        "base": [00.0, 1.0, 2.0, 3.0, 24.0, 19.5, 26.0],
        "a": [10.0, 11.0, 12.0, 13.0, 24.0, 14.0, 26.0],
        "b": [20.0, 21.0, 2.0, 23.0, 24.0, 25.0, 26.0],
    }


def test_without_a_preference_for_the_base_its_row_is_averaged_like_any_other(three) -> None:
    plan = plan_vocabulary("base", three, "union", prefer_base=False)
    assert aligned(plan, three)["b"][plan.vocab["y"]] == (2 + 12) / 2


def test_only_the_members_that_take_part_give_rows(three) -> None:
    plan = plan_vocabulary("base", three, "union")
    parents = {name: three[name] for name in ("a", "b")}
    assert aligned(plan, parents) == {
        "a": [10.0, 11.0, 12.0, 13.0, 24.0, 14.0, 26.0],
        "b": [20.0, 21.0, 12.0, 23.0, 24.0, 25.0, 26.0],
    }
    assert aligned(plan, {"a": three["a"]})["a"][-1] == 0.0, "a token that no member has"
    assert plan.align({}) == {}


@pytest.mark.parametrize(
    ("source", "tokens"), [("base", ["<unk>", "x", "y", "z"]), ("a", ["<unk>", "z", "y", "x", "<a>"])]
)
def test_a_source_that_is_one_model_gives_its_vocabulary_as_it_is(three, source: str, tokens: list[str]) -> None:
    plan = plan_vocabulary("base", three, source)
    assert list(plan.vocab) == tokens
    assert torch.equal(plan.align(embeddings(three))[source], three[source].tensor(EMBEDDING))


def test_padding_rows_are_the_mean_of_the_real_ones(three) -> None:
    plan = plan_vocabulary("base", three, "base", pad_to_multiple_of=3)
    assert plan.size == 6
    assert aligned(plan, three)["a"] == [10.0, 11.0, 12.0, 13.0, 11.5, 11.5]
    assert plan_vocabulary("base", three, "base", pad_to_multiple_of=2).size == 4, "a multiple already"


def test_tokens_say_where_their_rows_come_from(three) -> None:
    tokens = {
        "<a>": TokenSource("model", "b"),
        "w": TokenSource("zero"),
        "x": TokenSource("model", "a", force=True),
        "z": TokenSource("model", "a"),
        "new": TokenSource("model_token", "b", token="z"),
        "other": TokenSource("model_token", "a", token_id=4, force=True),
    }
    plan = plan_vocabulary("base", three, "union", tokens=tokens)
    assert list(plan.vocab)[-2:] == ["new", "other"]
    assert aligned(plan, three) == {
        #        <unk>   x    y    z    w    <a>  <b>   new  other
        "base": [00.0, 11.0, 2.0, 3.0, 0.0, 25.0, 26.0, 23.0, 14.0],
        "a": [10.0, 11.0, 12.0, 13.0, 0.0, 14.0, 26.0, 23.0, 14.0],
        "b": [20.0, 11.0, 2.0, 23.0, 24.0, 25.0, 26.0, 23.0, 14.0],
    }


def test_a_forced_token_replaces_rows_even_where_all_vocabularies_are_one(member: MakeMember) -> None:
    members = {name: member(name, words("x"), column(i, i + 1)) for i, name in enumerate(("base", "a"))}
    plan = plan_vocabulary("base", members, "base", tokens={"x": TokenSource("zero", force=True)})
    assert aligned(plan, members) == {"base": [0.0, 0.0], "a": [1.0, 0.0]}


def test_equal_tokenizers_leave_every_tensor_as_it_is(open_tiny) -> None:
    members = open_tiny("bfloat16").members
    tensors = embeddings(members)
    for source in ("base", "union", "b"):
        plan = plan_vocabulary("base", members, source)
        assert plan.vocab == vocabulary(members["base"].folder)
        for name, rows in plan.align(tensors).items():
            assert rows is tensors[name]


NAMES = st.permutations("pqrstuv").flatmap(lambda names: st.integers(1, 7).map(lambda n: tuple(names[:n])))


@given(st.tuples(NAMES, NAMES), st.sampled_from(["union", "base", "b"]))
def test_members_keep_their_rows_and_their_order_changes_none(tmp_path_factory, names, source: str) -> None:
    """Two parents, whose average is the same in either order."""
    folder = tmp_path_factory.mktemp("order")
    members = {}
    for seed, (name, tokens) in enumerate(zip(("base", "a", "b"), (("p", "q"), *names), strict=True)):
        members[name] = _bare_member(folder / name, words(*tokens), noise(len(tokens) + 1, seed))
    tensors, plan = embeddings(members), plan_vocabulary("base", members, source)
    ours = plan.align(tensors)
    turned = {name: members[name] for name in ("b", "a", "base")}
    other = plan_vocabulary("base", turned, source)
    theirs = other.align(embeddings(turned))
    assert set(other.vocab) == set(plan.vocab)
    for name, checkpoint in members.items():
        own = vocabulary(checkpoint.folder)
        for token, row in plan.vocab.items():
            assert torch.equal(ours[name][row], theirs[name][other.vocab[token]])
            if token in own:
                assert torch.equal(ours[name][row], tensors[name][own[token]])


def _bare_member(folder: Path, tokenizer: Any, embedding: Tensor) -> Checkpoint:
    folder.mkdir()
    save_file({EMBEDDING: embedding}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(embedding)}))
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder)


@pytest.mark.parametrize("source", ["union", "base", "a"])
def test_the_written_tokenizer_loads_with_the_vocabulary_of_the_plan(three, tmp_path: Path, source: str) -> None:
    plan = plan_vocabulary("base", three, source, tokens={"<new>": TokenSource("zero")}, pad_to_multiple_of=8)
    plan.write_tokenizer(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.get_vocab() == vocabulary(tmp_path / "out") == plan.vocab
    assert loaded("x <new> z")["input_ids"] == [plan.vocab[token] for token in ("x", "<new>", "z")]


def test_planning_leaves_the_members_own_vocabularies_alone(three) -> None:
    """A token that is added to the base's tokenizer gives the base no row for it."""
    before = [vocabulary(checkpoint.folder) for checkpoint in three.values()]
    plan = plan_vocabulary("base", three, "base", tokens={"<new>": TokenSource("model_token", "base", token="z")})
    assert plan.rows["base"].tolist() == [0, 1, 2, 3, -1]
    assert [vocabulary(checkpoint.folder) for checkpoint in three.values()] == before


@pytest.mark.parametrize(
    ("size", "tokens"),
    [(8, ["<unk>", "a", "b", "c", "d", "ab", "cd", "abcd"]), (7, ["<unk>", "a", "b", "c", "d", "ab", "cd"])],
    ids=["an added token", "a token of the model and its merge"],
)
def test_tokens_beyond_the_models_rows_are_stripped(member: MakeMember, tmp_path: Path, size: int, tokens) -> None:
    """The embedding may have more rows than vocab_size: those are padding too."""
    members = {"base": member("base", pairs(), noise(12, 0), vocab_size=size), "a": member("a", pairs(), noise(9, 1))}
    plan = plan_vocabulary("base", members, "base")
    assert list(plan.vocab) == tokens
    assert plan.special_ids == {}, "the padding token is gone, and with it the role"
    plan.write_tokenizer(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == plan.vocab
    assert plan.align(embeddings(members))["base"].shape == (size, 4)


def test_a_union_keeps_the_role_of_a_token_for_which_the_base_has_no_row(member: MakeMember) -> None:
    members = {"base": member("base", pairs(), noise(8, 0)), "a": member("a", pairs(), noise(9, 1))}
    plan = plan_vocabulary("base", members, "union")
    assert plan.special_ids == {"pad_token_id": 8}
    rows = plan.align(embeddings(members))
    assert torch.equal(rows["base"][8], rows["a"][8])


def test_a_member_without_a_tokenizer_has_the_bases_if_it_has_as_many_rows(member: MakeMember) -> None:
    base = member("base", words("x", "y"), noise(3, 0))
    members = {"base": base, "a": member("a", None, noise(3, 1))}
    assert plan_vocabulary("base", members, "a").rows["a"].tolist() == [0, 1, 2]
    assert "a: no tokenizer" in refusal({"base": base, "a": member("a", None, noise(4, 1))}, "base")
    assert "base: no tokenizer" in refusal({"base": member("base", None, noise(3, 1))}, "base")


def test_averages_are_taken_in_float32_and_rounded_once(member: MakeMember) -> None:
    """In bf16, 256 + 1 + 1 would stay 256, and a third of it would be 85.5."""
    members = {"base": member("base", words(), torch.zeros(1, 1, dtype=torch.bfloat16))}
    for name, value in zip("abc", (256.0, 1.0, 1.0), strict=True):
        members[name] = member(name, words("x"), torch.tensor([[0.0], [value]], dtype=torch.bfloat16))
    rows = plan_vocabulary("base", members, "union").align(embeddings(members))["base"]
    assert rows.dtype == torch.bfloat16
    assert rows[1].item() == torch.tensor(258 / 3).bfloat16().item()


def test_dtypes_are_promoted_to_one_that_holds_all(member: MakeMember) -> None:
    members = {
        "base": member("base", words("x"), noise(2, 0).half()),
        "a": member("a", words("x"), noise(2, 1).bfloat16()),
    }
    rows = plan_vocabulary("base", members, "base").align(embeddings(members))
    assert {tensor.dtype for tensor in rows.values()} == {torch.float32}
    assert torch.equal(rows["a"].bfloat16(), members["a"].tensor(EMBEDDING))


def test_tensors_of_any_rank_are_aligned_by_their_first_dimension(three) -> None:
    plan = plan_vocabulary("base", three, "union", pad_to_multiple_of=8)
    bias = {name: checkpoint.tensor(EMBEDDING)[:, 0] for name, checkpoint in three.items()}
    cube = {name: tensor[:, None, None].expand(-1, 2, 3) for name, tensor in bias.items()}
    flat, deep = plan.align(bias), plan.align(cube)
    for name, tensor in plan.align(embeddings(three)).items():
        assert torch.equal(flat[name], tensor[:, 0])
        assert torch.equal(deep[name], tensor[:, :, None].expand(-1, 2, 3))


def test_ids_without_a_token_count_as_padding(member: MakeMember) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1, "y": 4}, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False)
    members = {"base": member("base", made, column(1, 2, 7, 7, 3)), "a": member("a", words("x"), column(4, 5))}
    assert aligned(plan_vocabulary("base", members, "base", pad_to_multiple_of=6), members) == {
        #        <unk>  x  gap  gap   y   padding
        "base": [1.0, 2.0, 2.0, 2.0, 3.0, 2.0],
        "a": [4.0, 5.0, 4.0, 4.0, 3.0, 4.0],
    }


def refusal(members: dict[str, Checkpoint], source: str, base: str = "base", **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        plan_vocabulary(base, members, source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (TokenSource("model", "nobody"), "'<t>' comes from 'nobody'; give one of the models (base, a, b)"),
        (TokenSource("model"), "'<t>' comes from None"),
        (TokenSource("model", "b"), "'<t>' is to come from b, which has no token '<t>'"),
        (TokenSource("model_token", "a"), "'<t>' needs either token or token_id of a"),
        (TokenSource("model_token", "a", token="x", token_id=1), "'<t>' needs either token or token_id of a"),
        (TokenSource("model_token", "a", token="w"), "'<t>' is to come from a, which has no token 'w'"),
        (TokenSource("model_token", "a", token_id=5), "'<t>' is to come from a, which has no row 5 among its 5"),
        (TokenSource("model_token", "a", token_id=-1), "which has no row -1 among its 5"),
    ],
)
def test_a_token_that_cannot_come_from_its_source_is_refused(three, wanted: TokenSource, message: str) -> None:
    assert message in refusal(three, "union", tokens={"<t>": wanted})


def test_a_request_that_names_what_does_not_exist_is_refused(three) -> None:
    assert refusal(three, "c").startswith("tokenizer source 'c': give base, union or one of the models (base, a, b)")
    assert refusal(three, "base", base="c").startswith("base c: not among the models")
    assert refusal(three, "base", pad_to_multiple_of=0).startswith("pad_to_multiple_of: 0 is not positive")
    assert refusal(three, "base", tokens={"": TokenSource("zero")}).startswith("tokens: the empty text")


def test_a_source_that_lacks_the_tensor_is_refused_where_its_row_is_needed(three) -> None:
    plan = plan_vocabulary("base", three, "union", tokens={"w": TokenSource("model", "b")})
    tensors = embeddings(three)
    del tensors["b"]
    with pytest.raises(CheckpointError, match=r"^tokens: 'w' comes from b, which lacks a tensor"):
        plan.align(tensors)


def test_a_tensor_that_does_not_fit_the_tokenizer_or_the_others_is_refused(three) -> None:
    plan, tensors = plan_vocabulary("base", three, "union"), embeddings(three)
    for wrong in (tensors["a"][:-1], tensors["a"].expand(-1, 2)):
        with pytest.raises(CheckpointError, match=r"^a: a vocabulary tensor is \["):
            plan.align(tensors | {"a": wrong})


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "BPE"}}', ""])
def test_a_tokenizer_file_that_cannot_be_loaded_is_refused_by_name(three, content: str) -> None:
    (three["a"].folder / "tokenizer.json").write_text(content)
    assert refusal(three, "base").startswith("a: its tokenizer cannot be loaded (")


def test_code_that_comes_with_a_tokenizer_is_not_run(three) -> None:
    folder = three["a"].folder
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert refusal(three, "base").startswith("a: its tokenizer cannot be loaded (")


def test_only_a_bpe_tokenizer_can_lose_ordinary_tokens(member: MakeMember) -> None:
    members = {"base": member("base", words("x", "y"), noise(2, 0))}
    assert refusal(members, "base").startswith("base: its tokenizer has tokens from id 2 on")


def test_a_configuration_with_more_tokens_than_rows_is_refused(member: MakeMember) -> None:
    members = {"base": member("base", words("x"), noise(2, 0), vocab_size=3)}
    assert refusal(members, "base").startswith("base: config.json has vocab_size 3, its embedding has 2 rows")


def test_a_model_without_a_known_embedding_is_refused(three) -> None:
    del three["a"].specs[EMBEDDING]
    assert refusal(three, "base").startswith("a: no embedding is known by name")


def test_a_vocabulary_size_may_stand_in_the_configuration_of_the_text_model(member: MakeMember) -> None:
    base = member("base", words("x", "y"), noise(5, 0))
    base.config["text_config"] = {"vocab_size": 3}
    del base.config["vocab_size"]
    assert plan_vocabulary("base", {"base": base}, "union").size == 3


def test_a_file_that_is_no_tokenizer_has_no_vocabulary(tmp_path: Path) -> None:
    assert vocabulary(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"not a tokenizer file"):
        vocabulary(tmp_path)
