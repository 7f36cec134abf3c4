"""The models that a recipe names: found beside it, and found out where they are others."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from heterosis.checkpoints import Family
from heterosis.errors import CheckpointError, RecipeError
from heterosis.recipe import Recipe
from heterosis.sources import compare_sources, moved, open_sources, pinned

USUAL = {"a": {"weight": 0.5}, "b": {"weight": 0.5}}
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(open_tiny: Callable[..., Family], recipe_for: MakeRecipe) -> Recipe:
    return recipe_for(open_tiny(), "task_arithmetic", USUAL)


def test_a_recipe_opens_its_own_sources_relative_to_its_folder(
    recipe: Recipe, tiny_family: Callable[..., Path]
) -> None:
    document = json.loads(recipe.model_dump_json().replace(str(tiny_family()) + "/", ""))
    with closing(open_sources(Recipe.parse(document, "test"), tiny_family())) as family:
        assert compare_sources(recipe, family) == ()


def test_a_source_that_is_gone_is_named(recipe: Recipe) -> None:
    document = recipe.model_dump() | {"base": {"name": "base", "model": "/no/such/base", "digest": "0"}}
    with pytest.raises(CheckpointError, match=r"^/no/such/base: no such folder"):
        open_sources(Recipe.parse(document, "test"))


def test_a_source_that_has_moved_is_looked_for_elsewhere_and_stays_the_same_recipe(
    recipe: Recipe, tiny_family: Callable[..., Path]
) -> None:
    elsewhere = moved(recipe, {"a": "owner/a@1234567"}, "c1")
    source = elsewhere.parents[0]
    assert (source.model, source.revision, source.digest) == ("owner/a", "1234567", recipe.parents[0].digest)
    assert (elsewhere.digest, elsewhere.parents[1]) == (recipe.digest, recipe.parents[1])
    with pytest.raises(RecipeError, match="--model x: c1 has no such source; it has base, a, b"):
        moved(recipe, {"x": "anywhere"}, "c1")
    with closing(open_sources(moved(recipe, {"a": str(tiny_family() / "c")}, "c1"))) as family:
        with pytest.raises(RecipeError, match=r"a at .*/c is \w{12}, not \w{12}"):
            compare_sources(moved(recipe, {"a": str(tiny_family() / "c")}, "c1"), family)


def test_only_what_names_no_digest_is_given_one(recipe: Recipe) -> None:
    content: dict[str, Any] = recipe.model_dump()
    content["parents"][0]["digest"] = ""
    with closing(open_sources(recipe)) as family:
        bare = Recipe.parse(content, "test")
        assert compare_sources(bare, family) == ("a",)
        assert pinned(bare, family) == recipe
