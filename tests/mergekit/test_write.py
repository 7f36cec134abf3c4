"""Recipes in mergekit's terms: what its YAML holds, and which differences it owns up to."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from heterosis.mergekit import to_mergekit
from heterosis.recipe import Recipe

LAYERS = 3
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(LAYERS)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
INSIDE = [name for name in NAMES if ".layers." in name]
DEPTHWISE = {"embeddings": r"embed_tokens", "head": r"^(lm_head|model\.norm)\.", "body": ".*"}


def recipe(method: str, parameters: dict[str, Any], **rest: Any) -> Recipe:
    content = {
        "method": method,
        "base": {"name": "base", "model": "owner/base", "digest": "0"},
        "parents": [
            {"name": "x", "model": "owner/x", "revision": "v2", "digest": "1"},
            {"name": "y", "model": "models/y", "digest": "2"},
        ],
        "groups": {"all": ".*"},
        "parameters": parameters,
    }
    return Recipe.parse(content | rest, "test")


def both(**numbers: Any) -> dict[str, Any]:
    return {"x": {"all": numbers}, "y": {"all": numbers}}


def differing(found: list[str]) -> set[str]:
    """Differences by the word that tells them apart."""
    words = {
        "masks": "other random masks",
        "trimming": "instead of trimming",
        "divisor": "sum of agreeing weights",
        "ties": "cancel exactly",
        "scope": "whole task vector",
        "rescale": "no rescale",
        "norm": "L1 norm",
        "equals": "magnitudes are equal",
    }
    named = {key for key, word in words.items() for difference in found if word in difference}
    assert len(named) == len(found)
    return named


def test_a_weighted_average_has_no_base_and_is_normalised() -> None:
    found = to_mergekit(recipe("linear", {"x": {"all": {"weight": 2.0}}, "y": {"all": {"weight": 1.0}}}), NAMES)
    assert found.content == {
        "merge_method": "linear",
        "models": [
            {"model": "owner/x@v2", "parameters": {"weight": 2.0}},
            {"model": "models/y", "parameters": {"weight": 1.0}},
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert found.differences == []


def test_task_arithmetic_is_a_plain_sum_over_the_base() -> None:
    found = to_mergekit(recipe("task_arithmetic", both(weight=0.4), dtype="float16"), NAMES)
    assert found.content["base_model"] == "owner/base"
    assert found.content["models"][0]["parameters"] == {"weight": 0.4}
    assert "parameters" not in found.content  # mergekit's own defaults
    assert found.content["out_dtype"] == "float16"
    assert found.differences == []


def test_ties_gives_density_and_names_the_divisor_and_the_sign_of_zero() -> None:
    found = to_mergekit(recipe("ties", both(weight=0.5, density=0.3)), NAMES)
    assert found.content["models"][1]["parameters"] == {"weight": 0.5, "density": 0.3}
    assert found.content["parameters"] == {"normalize": True, "rescale": False}
    assert differing(found.differences) == {"divisor", "ties", "equals"}


@pytest.mark.parametrize(
    ("rest", "normalize", "named"),
    [
        ({"divisor": "signed_weight"}, True, {"ties", "equals"}),
        ({"divisor": "weight"}, True, {"divisor", "ties", "equals"}),
        ({"divisor": "none", "zero_sign": "positive"}, False, {"equals"}),
        ({"divisor": "none", "trim_scope": "model"}, False, {"ties", "scope", "equals"}),
    ],
)
def test_divisor_and_scope_of_ties(rest: dict[str, Any], normalize: bool, named: set[str]) -> None:
    found = to_mergekit(recipe("ties", both(density=0.3), **rest), NAMES)
    assert found.content["parameters"] == {"normalize": normalize, "rescale": False}
    assert differing(found.differences) == named


def test_dare_linear_keeps_what_is_not_dropped() -> None:
    found = to_mergekit(recipe("dare_linear", both(weight=0.5, drop=0.75)), NAMES)
    assert found.content["models"][0]["parameters"] == {"weight": 0.5, "density": 0.25}
    assert found.content["parameters"] == {"rescale": True}
    assert differing(found.differences) == {"masks", "norm"}


def test_dare_without_drops_is_the_same_merge() -> None:
    assert to_mergekit(recipe("dare_linear", both(weight=0.5)), NAMES).differences == []


def test_dare_ties_multiplies_density_and_keep_rate() -> None:
    found = to_mergekit(recipe("dare_ties", both(density=0.5, drop=0.5), rescale=1.5), NAMES)
    assert found.content["models"][0]["parameters"]["density"] == 0.25
    assert differing(found.differences) == {"masks", "trimming", "divisor", "ties", "rescale"}


def test_values_per_layer_are_a_gradient() -> None:
    numbers = both(weight=(0.1, 0.2, 0.3), density=(1.0, 0.5, 0.2), drop=0.5)
    found = to_mergekit(recipe("dare_ties", numbers), INSIDE)
    assert found.content["models"][0]["parameters"] == {"weight": [0.1, 0.2, 0.3], "density": [0.5, 0.25, 0.1]}


def test_tensors_outside_the_layers_get_the_value_of_their_own_end() -> None:
    """mergekit would give the head the first value of a plain list."""
    found = to_mergekit(recipe("task_arithmetic", both(weight=(0.1, 0.2, 0.3))), NAMES)
    entries = {entry["filter"]: entry["value"] for entry in found.content["models"][0]["parameters"]["weight"]}
    assert entries["model.embed_tokens.weight"] == 0.1
    assert entries["lm_head.weight"] == entries["model.norm.weight"] == 0.3
    assert entries[".mlp.up_proj.weight"] == [0.1, 0.2, 0.3]


def test_a_drop_per_layer_makes_density_a_gradient() -> None:
    found = to_mergekit(recipe("dare_linear", both(drop=(0.0, 0.5, 0.75))), INSIDE)
    assert found.content["models"][0]["parameters"] == {"weight": 1.0, "density": [1.0, 0.5, 0.25]}


def test_groups_become_filters_and_depth_a_gradient_within_them() -> None:
    by_group = {"embeddings": {"weight": 0.9}, "head": {"weight": (0.1, 0.2, 0.8)}, "body": {"weight": (0.1, 0.2, 0.3)}}
    found = to_mergekit(recipe("task_arithmetic", {"x": by_group}, groups=DEPTHWISE), NAMES)
    assert found.content["models"][0]["parameters"]["weight"] == [
        {"filter": "model.embed_tokens.weight", "value": 0.9},
        {"filter": ".self_attn.q_proj.weight", "value": [0.1, 0.2, 0.3]},
        {"filter": ".mlp.up_proj.weight", "value": [0.1, 0.2, 0.3]},
        {"filter": ".input_layernorm.weight", "value": [0.1, 0.2, 0.3]},
        {"filter": "model.norm.weight", "value": 0.8},
        {"filter": "lm_head.weight", "value": 0.8},
    ]


def test_every_tensor_is_selected_by_the_filter_of_its_own_group() -> None:
    groups = {"attention": "self_attn", "rest": ".*"}
    numbers = {"attention": {"weight": 0.1}, "rest": {"weight": 0.2}}
    found = to_mergekit(recipe("task_arithmetic", {"x": numbers}, groups=groups), NAMES)
    entries = found.content["models"][0]["parameters"]["weight"]
    for name in NAMES:
        first = next(entry for entry in entries if entry["filter"] in name)
        assert first["value"] == (0.1 if "self_attn" in name else 0.2), name


def test_what_a_recipe_leaves_out_is_neutral() -> None:
    found = to_mergekit(recipe("ties", {"x": {"all": {"weight": 0.5}}}), NAMES)
    assert found.content["models"][1]["parameters"] == {"weight": 1.0, "density": 1.0}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_the_file_says_first_in_what_it_differs(method: str) -> None:
    found = to_mergekit(recipe(method, both(weight=0.5, density=0.5, drop=0.5)), NAMES)
    text = found.to_yaml()
    assert yaml.safe_load(text) == found.content
    said = [line.removeprefix("# - ") for line in text.splitlines() if line.startswith("# - ")]
    assert said == found.differences
    assert ("NOT the same merge" in text) == bool(found.differences)


def test_groups_that_tell_layers_apart_are_a_difference() -> None:
    groups = {"early": r"layers\.[01]\.", "rest": ".*"}
    numbers = {"x": {"early": {"weight": 0.1}, "rest": {"weight": 0.9}}}
    found = to_mergekit(recipe("task_arithmetic", numbers, groups=groups), NAMES)
    assert found.differences == ["mergekit's filters do not tell layers apart, as these groups do"]


def test_models_that_come_late_in_a_stack_are_a_difference() -> None:
    stack = {"x": [0, 1, 2], "y": [None, None, 2]}
    found = to_mergekit(recipe("linear", {}, stack=stack), NAMES)
    assert found.differences == ["behind the layers mergekit takes no more models than its first slice has"]
