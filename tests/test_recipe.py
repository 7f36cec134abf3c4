import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from heterosis.checkpoints import Layout
from heterosis.errors import RecipeError
from heterosis.recipe import NEUTRAL, Parameters, Recipe, Terms

NAMES = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.w" for i in range(3)), "model.norm.weight"]


def content(**changes: Any) -> dict[str, Any]:
    """A valid recipe of two parents and two groups, as parsed from YAML."""
    return {
        "method": "dare_ties",
        "base": {"name": "base", "model": "models/base", "digest": "b" * 64},
        "parents": [
            {"name": "math", "model": "owner/math", "revision": "main", "digest": "1" * 64},
            {"name": "code", "model": "models/code", "digest": "2" * 64},
        ],
        "groups": {"ends": "embed|norm", "body": ".*"},
        "parameters": {
            "math": {"body": {"weight": [0.1, 0.2, 0.3], "density": 0.5, "drop": 0.25}},
            "code": {"ends": {"weight": -1.5}},
        },
        "seed": 7,
        **changes,
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid recipe with one value replaced; a path is keys joined by dots."""
    result = content()
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = result
    for key in keys:
        place = place[key]
    place[last] = value
    return result


def refusal(document: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(document, "merge.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("merge.yaml: ")
    return message


RECIPE = Recipe.parse(content(), "test")


def test_a_recipe_reads_back_from_its_own_yaml(tmp_path: Path) -> None:
    RECIPE.save(tmp_path / "merge.yaml")
    back = Recipe.load(tmp_path / "merge.yaml")
    assert back == RECIPE
    assert back.digest == RECIPE.digest
    assert list(back.groups) == list(RECIPE.groups)
    assert [path.name for path in tmp_path.iterdir()] == ["merge.yaml"]


NUMBERS = st.floats(-1e100, 1e100)
FRACTIONS = st.floats(0, 1, exclude_max=True)
TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1)


@given(
    weight=NUMBERS | st.lists(NUMBERS, min_size=1, max_size=4),
    density=FRACTIONS | st.lists(FRACTIONS, min_size=1, max_size=4),
    drop=FRACTIONS | st.lists(FRACTIONS, min_size=1, max_size=4),
    rescale=st.sampled_from(["inverse_keep", "none"]) | NUMBERS,
    seed=st.integers(),
    group=TEXT,
    pattern=TEXT,
)
def test_every_number_survives_the_file_bit_for_bit(weight, density, drop, rescale, seed, group, pattern) -> None:
    parameters = {"math": {group: {"weight": weight, "density": density, "drop": drop}}}
    recipe = Recipe.parse(content(groups={group: pattern}, parameters=parameters, rescale=rescale, seed=seed), "test")
    back = Recipe.parse(yaml.safe_load(recipe.to_yaml()), "test")
    assert back == recipe
    assert back.digest == recipe.digest


def test_whole_numbers_and_decimals_are_the_same_recipe() -> None:
    assert Recipe.parse(changed("parameters.math.body.density", 1), "test").digest == (
        Recipe.parse(changed("parameters.math.body.density", 1.0), "test").digest
    )


@pytest.mark.parametrize(
    "same",
    [
        changed("base.model", "elsewhere/base"),
        changed("base.name", "origin"),
        changed("parents.0.model", "/elsewhere/math"),
        changed("parents.0.revision", None),
        content(parents=content()["parents"][::-1]),
        content(parameters=dict(reversed(content()["parameters"].items()))),
        changed("parameters.code.body", NEUTRAL),
        changed("parameters.math.body", {"drop": 0.25, "density": 0.5, "weight": [0.1, 0.2, 0.3]}),
    ],
    ids=[
        "path of base",
        "name of base",
        "path",
        "revision",
        "order",
        "order of parameters",
        "defaults",
        "order of keys",
    ],
)
def test_the_digest_ignores_what_does_not_change_the_weights(same: dict) -> None:
    assert Recipe.parse(same, "test").digest == RECIPE.digest


def test_the_digest_ignores_what_parents_are_called() -> None:
    renamed = changed("parents.0.name", "a")
    renamed["parameters"]["a"] = renamed["parameters"].pop("math")
    swapped = changed("parents.0.name", "zzz")
    swapped["parameters"]["zzz"] = swapped["parameters"].pop("math")
    assert {Recipe.parse(each, "test").digest for each in (renamed, swapped)} == {RECIPE.digest}


def test_the_same_parent_twice_is_ordered_by_its_parameters_not_by_its_names() -> None:
    def twins(first: str, second: str) -> Recipe:
        parents = [{"name": name, "model": "m", "digest": "1" * 64} for name in (first, second)]
        parameters = {first: {"body": {"drop": 0.1}}, second: {"body": {"drop": 0.2}}}
        return Recipe.parse(content(parents=parents, parameters=parameters), "test")

    one, two = twins("a", "b"), twins("b", "a")
    assert one.digest == two.digest
    assert [p.name for p in one.canonical_parents()] == [p.name for p in two.canonical_parents()][::-1]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("method", "ties"),
        ("base.digest", "c" * 64),
        ("parents.0.digest", "3" * 64),
        ("groups.ends", "embed"),
        ("groups", {"body": ".*", "ends": "embed|norm"}),
        ("parameters.math.body.weight", [0.1, 0.2, 0.30000000000000004]),
        ("parameters.math.body.density", 0.25),
        ("parameters.math.body.drop", 0.5),
        ("parameters.math.ends", {"weight": 0.0}),
        ("parameters.code.ends.weight", 1.5),
        ("seed", 8),
        ("trim_scope", "model"),
        ("divisor", "weight"),
        ("rescale", "none"),
        ("rescale", 2.0),
        ("dtype", "float32"),
    ],
)
def test_the_digest_follows_everything_that_changes_the_weights(path: str, value: Any) -> None:
    assert Recipe.parse(changed(path, value), "test").digest != RECIPE.digest


def test_swapping_the_parameters_of_two_parents_is_another_merge() -> None:
    before = content()["parameters"]
    swapped = content(parameters={"math": before["code"], "code": before["math"]})
    assert Recipe.parse(swapped, "test").digest != RECIPE.digest


def test_a_digest_is_frozen() -> None:
    """The record of a study finds candidates by it."""
    assert RECIPE.digest[:16] == "4a518ea7c3ad2fa4"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("method", "alchemy", "method 'alchemy' is unknown; one of linear"),
        ("method", None, "method"),
        ("heterosis", 2, "heterosis"),
        ("dtype", "int8", "dtype"),
        ("trim_scope", "layer", "trim_scope"),
        ("divisor", "sum", "divisor"),
        ("rescale", "l1", "rescale"),
        ("rescale", float("inf"), "rescale"),
        ("seed", 1.5, "seed"),
        ("surprise", 1, "surprise"),
        ("base.surprise", 1, "base.surprise"),
        ("base.digest", None, "base.digest"),
        ("parents", [], "parents must be a list of distinct names, at least one"),
        ("parents.1.name", "math", "parents must be a list of distinct names"),
        ("parents.0.surprise", 1, "parents.0.surprise"),
        ("parents.1", "code", "parents.1"),
        ("groups", [".*"], "groups"),
        ("parameters.law", {}, "'law', which is not a parent (math, code)"),
        ("parameters.math.head", {}, "parameters.math speaks of group 'head'"),
        ("parameters.math.body.dense", 0.5, "parameters.math.body.dense"),
        ("parameters.math.body.weight", float("nan"), "parameters.math.body.weight"),
        ("parameters.math.body.weight", [0.1, float("-inf"), 0.3], "parameters.math.body.weight"),
        ("parameters.math.body.weight", "heavy", "parameters.math.body.weight"),
        ("parameters.math.body.density", 1.0001, "parameters.math.body.density: must lie in [0, 1]"),
        ("parameters.math.body.density", [0.5, -0.1, 0.5], "parameters.math.body.density: must lie in [0, 1]"),
        ("parameters.math.body.density", float("nan"), "parameters.math.body.density"),
        ("parameters.math.body.drop", -0.1, "parameters.math.body.drop: must lie in [0, 1]"),
        ("parameters.math.body.drop", 1.0, "parameters.math.body.drop: must be below 1"),
        ("parameters.math.body.drop", [0.0, 1.0, 0.0], "parameters.math.body.drop: must be below 1"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_the_place(path: str, value: Any, named: str) -> None:
    assert named in refusal(changed(path, value))


@pytest.mark.parametrize("document", [None, [], "text", 3, {}])
def test_what_is_no_recipe_at_all_is_refused(document: Any) -> None:
    refusal(document)


@pytest.mark.parametrize(
    "text", ["method: [", "a: b: c", "\t", "seed: 2020-99-99", "seed: " + "9" * 5000, "seed: 0b_", "a: !!bool maybe"]
)
def test_a_file_that_is_not_yaml_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(str(path))) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(RecipeError, match=re.escape(str(tmp_path / name))):
            Recipe.load(tmp_path / name)


def test_a_recipe_is_a_value() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RECIPE.seed = 1


def test_each_tensor_takes_the_numbers_of_its_group_and_depth() -> None:
    terms = RECIPE.terms(Layout(NAMES, RECIPE.groups))
    assert list(terms) == NAMES
    assert [terms[name]["math"].weight for name in NAMES] == [1.0, 0.1, 0.2, 0.3, 1.0]
    assert terms["model.layers.1.mlp.w"]["math"] == Terms(0.2, 0.5, 0.25, 0.0, 0.0)
    assert terms["model.layers.1.mlp.w"]["code"] == Terms(1.0, 1.0, 0.0, 0.0, 0.0)
    assert terms["model.norm.weight"]["code"] == Terms(-1.5, 1.0, 0.0, 0.0, 0.0)


def test_lists_give_their_first_value_to_the_embeddings_and_their_last_to_the_head() -> None:
    recipe = Recipe.parse(content(parameters={"math": {"ends": {"weight": [1, 2, 3]}}}), "test")
    terms = recipe.terms(Layout(NAMES, recipe.groups))
    assert terms["model.embed_tokens.weight"]["math"].weight == 1.0
    assert terms["model.norm.weight"]["math"].weight == 3.0


@pytest.mark.parametrize("gene", Terms._fields)
@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.1] * 4])
def test_a_list_of_another_length_than_the_layers_is_refused(gene: str, values: list[float]) -> None:
    document = content(parameters={"math": {"body": {gene: values, **({"drop": 0.5} if gene == "epsilon" else {})}}})
    recipe = Recipe.parse(document, "test")
    expected = f"parameters.math.body.{gene} has {len(values)} values, the merge has 3 layers"
    with pytest.raises(RecipeError, match=re.escape(expected)):
        recipe.terms(Layout(NAMES, recipe.groups))


def test_parameters_that_are_left_out_are_neutral() -> None:
    assert Parameters().model_dump() == NEUTRAL
    assert set(NEUTRAL) == set(Terms._fields)


STACKED = {"base": [0, 1, 2, 0], "math": [0, 1, None, None], "code": [None, None, 2, 0]}
MORE: dict[str, tuple[dict[str, Any], str]] = {
    "a setting of another method": (
        {"settings": {"body": {"t": 0.1}}},
        "settings.body.t: dare_ties has no such setting",
    ),
    "a setting of no group": ({"settings": {"tail": {"scale": 1.0}}}, "settings speak of group 'tail'"),
    "a switch for a number": ({"settings": {"body": {"scale": True}}}, "settings.body.scale must be a number"),
    "a window that leaves [0, 1)": (
        {"parameters": {"math": {"body": {"drop": 0.1, "epsilon": 0.2}}}},
        "drop 0.1 with epsilon 0.2 leaves [0, 1)",
    ),
    "more parents than the method takes": ({"method": "nearswap", "parameters": {}}, "nearswap takes 1 parents, not 2"),
    "data for a method that reads none": ({"data": {"path": "x.txt"}}, "dare_ties reads no data"),
    "no data for a method that measures": ({"method": "fisher", "parameters": {}}, "fisher measures its parents"),
    "data of one parent alone": (
        {"method": "fisher", "parameters": {}, "data": {"math": {"path": "x.txt"}}},
        "data must name every parent once",
    ),
    "data and vocabularies": (
        {"method": "regmean", "parameters": {}, "data": {"path": "x"}, "vocabulary": {"source": "union"}},
        "cannot be aligned too",
    ),
    "a stack of a stranger": ({"stack": STACKED | {"poet": [0, 0, 0, 0]}}, "stack speaks of 'poet'"),
    "a ragged stack": ({"stack": STACKED | {"code": [1]}}, "every member needs a list of the same length"),
    "a stack below the floor": ({"stack": STACKED | {"code": [-1, 0, 0, 0]}}, "layers count from 0"),
    "a parent called base": (
        {"parents": [{"name": "base", "model": "m", "digest": "1"}], "parameters": {}},
        "'base' cannot name a parent",
    ),
    "a layer from nobody": (
        {"stack": {"base": [0, None], "math": [0, None]}},
        "layer 1 of the merge comes from nobody",
    ),
    "a weight beyond float32": ({"parameters": {"math": {"body": {"weight": 1e300}}}}, "must lie within"),
    "a scale beyond float32": ({"settings": {"body": {"scale": 1e300}}}, "must lie within"),
    "a chat template by name": ({"chat_template": "chatml"}, "is no template"),
    "mergekit's rescaling without its rules": ({"rescale": "l1"}, "for compat: mergekit alone"),
    "mergekit's arithmetic without its rules": ({"arithmetic": "bfloat16"}, "for compat: mergekit alone"),
}


@pytest.mark.parametrize("name", MORE)
def test_what_does_not_go_together_is_refused(name: str) -> None:
    changes, message = MORE[name]
    assert message in refusal(content(**changes))


def test_stacks_vocabularies_and_data_belong_to_the_identity_of_a_merge() -> None:
    plain = content(method="linear", parameters={})
    measured = content(method="regmean", parameters={})
    recipes = [
        plain,
        plain | {"stack": STACKED},
        plain | {"stack": STACKED | {"math": [0, 1, None, 2]}},
        plain | {"vocabulary": {"source": "union"}},
        plain | {"vocabulary": {"source": "code"}},
        plain | {"compat": "mergekit"},
        plain | {"settings": {"body": {"normalize": False}}},
        measured | {"data": {"path": "x.txt", "digest": "1"}},
        measured | {"data": {"path": "x.txt", "digest": "2"}},
        measured | {"data": {name: {"path": "x.txt", "digest": name} for name in ("math", "code")}},
    ]
    assert len({Recipe.parse(each, "test").digest for each in recipes}) == len(recipes)
    moved = measured | {"data": {"path": "elsewhere.txt", "digest": "1"}}
    assert Recipe.parse(moved, "test").digest == Recipe.parse(recipes[7], "test").digest


def test_a_vocabulary_follows_its_parent_by_content_not_by_name() -> None:
    one = content(method="linear", parameters={}, vocabulary={"source": "code"})
    two = json.loads(json.dumps(one).replace('"code"', '"zebra"'))
    assert Recipe.parse(one, "test").digest == Recipe.parse(two, "test").digest


def test_settings_follow_groups_and_depth() -> None:
    recipe = Recipe.parse(
        content(method="lines", parameters={}, settings={"body": {"scale": [1, 2, 3], "alpha": 1.0, "beta": 1.0}}),
        "test",
    )
    found = recipe.settings_at(Layout(NAMES, recipe.groups))
    assert [found[f"model.layers.{i}.mlp.w"]["scale"] for i in range(3)] == [1.0, 2.0 * 1.5, 3.0 * 2.0]
    assert found["model.embed_tokens.weight"]["scale"] == 0.5  # the group `ends` keeps the defaults, at depth 0
    assert found["model.norm.weight"]["scale"] == 1.0


def test_mergekit_recipes_keep_the_order_in_which_models_are_listed() -> None:
    listed = Recipe.parse(content(compat="mergekit"), "test")
    assert [parent.name for parent in listed.canonical_parents()] == ["math", "code"]
    turned = Recipe.parse(content(compat="mergekit", parents=content()["parents"][::-1]), "test")
    assert turned.digest != listed.digest
