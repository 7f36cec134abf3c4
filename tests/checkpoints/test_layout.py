import pytest

from heterosis.checkpoints import DEFAULT_GROUPS, Layout
from heterosis.checkpoints.layout import NAMED_GROUPS, storage_order
from heterosis.errors import RecipeError

LLAMA = [
    "lm_head.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in (10, 2, 0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")),
]


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("model.embed_tokens.weight", "embeddings", None),
        ("model.layers.3.self_attn.q_proj.weight", "body", 3),
        ("model.layers.3.input_layernorm.weight", "body", 3),
        ("model.norm.weight", "head", None),
        ("lm_head.weight", "head", None),
        ("transformer.wte.weight", "embeddings", None),
        ("transformer.wpe.weight", "embeddings", None),
        ("transformer.h.11.attn.c_attn.weight", "body", 11),
        ("h.11.attn.c_attn.weight", "body", 11),
        ("transformer.ln_f.weight", "head", None),
        ("gpt_neox.embed_in.weight", "embeddings", None),
        ("gpt_neox.layers.5.attention.dense.weight", "body", 5),
        ("gpt_neox.final_layer_norm.bias", "head", None),
        ("embed_out.weight", "head", None),
        ("model.decoder.embed_positions.weight", "embeddings", None),
        ("model.decoder.layers.0.fc1.weight", "body", 0),
        ("model.decoder.final_layer_norm.weight", "head", None),
    ],
)
def test_names_of_many_families_find_their_place(name: str, group: str, layer: int | None) -> None:
    place = Layout([name], DEFAULT_GROUPS).places[name]
    assert (place.group, place.layer) == (group, layer)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("transformer.h.1.attn.c_attn.weight", "attention"),
        ("model.layers.3.mlp.up_proj.weight", "mlp"),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", "mlp"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("transformer.h.1.ln_2.weight", "norms"),
    ],
)
def test_named_groups_tell_the_parts_of_a_layer_apart(name: str, group: str) -> None:
    assert Layout([name], NAMED_GROUPS).places[name].group == group


def test_the_first_matching_group_wins() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert Layout([name], {"all": ".*", "mlp": "mlp"}).places[name].group == "all"
    assert Layout([name], {"mlp": "mlp", "all": ".*"}).places[name].group == "mlp"


def test_tensors_outside_the_layers_take_the_value_of_their_end() -> None:
    layout = Layout(LLAMA, DEFAULT_GROUPS)
    assert layout.layers == 11
    depths = {name: layout.places[name].depth(layout.layers) for name in LLAMA}
    assert depths["model.embed_tokens.weight"] == 0
    assert depths["model.norm.weight"] == depths["lm_head.weight"] == 10
    assert depths["model.layers.2.mlp.up_proj.weight"] == 2


def test_a_layout_says_which_groups_hold_what() -> None:
    layout = Layout(LLAMA, {**DEFAULT_GROUPS, "nothing": "x"})
    assert layout.used_groups() == ["head", "embeddings", "body"]
    assert layout.has_layers("body")
    assert not layout.has_layers("head")
    assert not layout.has_layers("nothing")


def test_storage_order_is_the_order_of_a_forward_pass() -> None:
    order = storage_order(LLAMA)
    assert order[0] == "model.embed_tokens.weight"
    assert order[-2:] == ["lm_head.weight", "model.norm.weight"]
    assert [name.split(".")[2] for name in order[1:-2]] == ["0", "0", "1", "1", "2", "2", "10", "10"]
    assert storage_order(reversed(order)) == order


def test_a_name_that_no_group_matches_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^groups: no pattern matches lm_head\.weight.*\.\*$"):
        Layout(LLAMA, {"body": "layers"})


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*"])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"^groups: .* is not a regular expression") as caught:
        Layout(LLAMA, {"body": pattern})
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)
