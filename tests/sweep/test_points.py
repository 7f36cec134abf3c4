"""From lists to merges: products, equal merges once, masks only where there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heterosis.builder import Builder
from heterosis.recipe import Recipe
from heterosis.study import Prepared, prepare_as
from heterosis.sweep.config import load_sweep
from heterosis.sweep.points import Design, canonical, design
from sweep.sweeps import CURVES, write_sweep

FamilyFolder = Callable[..., Path]
Unfold = Callable[..., tuple[Design, Prepared]]


@pytest.fixture
def unfold(tmp_path: Path, tiny_family: FamilyFolder) -> Unfold:
    def unfolded(section: dict[str, Any], **changes: Any) -> tuple[Design, Prepared]:
        path = write_sweep(tmp_path, tiny_family(), section, **changes)
        config = load_sweep(path)
        prepared = prepare_as(config, path)
        return design(config, prepared), prepared

    return unfolded


def test_several_lists_give_their_product_and_the_longest_comes_first(unfold: Unfold) -> None:
    grid = {"method": ["ties", "dare_ties"], "weight": [0.5, 1.0, 1.5], "density": 0.5}
    found, _ = unfold({"parents": "together", "grid": grid})
    (curve,) = found.curves
    assert list(curve.axes) == ["weight", "method"]
    assert {(point.at["weight"], point.at["method"]) for point in found.points} == {
        (weight, method) for weight in (0.5, 1.0, 1.5) for method in ("ties", "dare_ties")
    }
    for point in found.points:
        (recipe,) = point.recipes
        assert recipe.method == point.at["method"]
        assert recipe.parameters["b"]["all"].weight == point.at["weight"]
        assert recipe.parameters["b"]["all"].density == 0.5


def test_one_at_a_time_varies_each_list_around_the_fixed_point(unfold: Unfold) -> None:
    section = {
        "parents": "together",
        "fixed": {"method": "dare_ties", "weight": 0.6, "drop": 0.3},
        "one_at_a_time": {"weight": [0.2, 1.0], "density": [0.1, 0.9], "settings": {"scale": [0.5, 2.0]}},
        "mask_seeds": 1,
    }
    found, _ = unfold(section)
    assert {curve.name: list(curve.axes) for curve in found.curves} == {
        "weight": ["weight"], "density": ["density"], "settings.scale": ["settings.scale"],
    }  # fmt: skip
    of_density = [point.recipes[0].parameters["a"]["all"] for point in found.points if point.curve == "density"]
    assert [(each.weight, each.density, each.drop) for each in of_density] == [(0.6, 0.1, 0.3), (0.6, 0.9, 0.3)]
    scaled = [point.recipes[0].settings for point in found.points if point.curve == "settings.scale"]
    assert scaled == [{"all": {"scale": 0.5}}, {"all": {"scale": 2.0}}]


def test_one_parents_weight_may_vary_alone(unfold: Unfold) -> None:
    weights = {"a": [0.1, 0.9], "b": 0.5, "c": 0.5}
    found, _ = unfold({"parents": "together", "curves": {"a": {"method": "task_arithmetic", "weight": weights}}})
    for point in found.points:
        numbers = {name: by_group["all"].weight for name, by_group in point.recipes[0].parameters.items()}
        assert numbers == {"a": point.at["weight.a"], "b": 0.5, "c": 0.5}


def test_each_parent_is_merged_alone_and_asked_its_own_tasks(unfold: Unfold) -> None:
    section = {"parents": {"a": "choice", "b": ["other", "choice"]}, "curves": {"one": CURVES["DARE"]}}
    found, _ = unfold(section, tasks=["choice.yaml", "other.yaml"])
    wanted = {"a": ("choice",), "b": ("choice", "other")}
    assert {subject.name: subject.tasks for subject in found.subjects} == wanted
    for job in found.jobs:
        names = tuple(parent.name for parent in job.recipe.parents)
        assert len(names) == 1
        assert set(job.tasks) == ({"choice", "other"} if job.label == "base" else set(wanted[names[0]]))


def test_only_what_drops_at_random_is_repeated_over_mask_seeds(unfold: Unfold) -> None:
    found, _ = unfold({"parents": {"a": "choice"}, "curves": CURVES, "mask_seeds": 4})
    for point in found.points:
        assert len(point.recipes) == (4 if point.at.get("drop") else 1)
        assert len({recipe.seed for recipe in point.recipes}) == len(point.recipes)


def test_curves_share_their_mask_seeds(unfold: Unfold) -> None:
    found, _ = unfold({"parents": {"a": "choice"}, "curves": CURVES, "mask_seeds": 3})
    seeds = {tuple(recipe.seed for recipe in point.recipes) for point in found.points if point.at.get("drop")}
    assert len(seeds) == 1


def test_a_mask_seed_may_vary_itself(unfold: Unfold) -> None:
    curve = {"method": "dare_linear", "drop": 0.5, "seed": [1, 2, 3]}
    found, _ = unfold({"parents": {"a": "choice"}, "curves": {"seeds": curve}, "mask_seeds": 5})
    assert [[recipe.seed for recipe in point.recipes] for point in found.points] == [[1], [2], [3]]


def test_equal_merges_are_scored_once(unfold: Unfold) -> None:
    found, _ = unfold({"parents": {"a": "choice"}, "curves": CURVES, "mask_seeds": 1})
    starts = [point.recipes[0].digest for point in found.points if point.at in ({"drop": 0.0}, {"density": 1.0})]
    assert len(starts) == 3
    assert set(starts) == {found.references["a"].digest}
    assert len(found.jobs) == len({job.recipe.digest for job in found.jobs}) == 2 + 3 * 2


@pytest.mark.parametrize(
    "curve",
    [
        {"method": "dare_linear", "rescale": "none", "weight": [0.7, 1.0]},
        {"method": "magnitude", "settings": {"prune_rescale": True, "scale": [0.5, 1.0]}},
        {"method": "della_linear", "seed": [5, 6]},
        {"method": "breadcrumbs", "trim_scope": ["model", "tensor"], "settings": {"normalize": True}},
        {"method": "dare_ties", "trim_scope": "model", "weight": [0.5, 1.0], "rescale": 3.0},
    ],
)
def test_what_is_left_out_of_a_recipe_changes_no_bit_of_the_merge(unfold: Unfold, curve: dict[str, Any]) -> None:
    found, prepared = unfold({"parents": "together", "curves": {"one": curve}})
    builder = Builder(prepared.family)
    for point in found.points:
        (recipe,) = point.recipes
        written = {key: value for key, value in {**found.curves[0].fixed, **point.at}.items() if "." not in key}
        settings = {k.partition(".")[2]: v for k, v in {**found.curves[0].fixed, **point.at}.items() if "." in k}
        content = recipe.model_dump() | {
            "method": curve["method"],
            "settings": {"all": settings} if settings else {},
            **{key: written[key] for key in ("rescale", "seed", "trim_scope") if key in written},
        }
        plain = Recipe.parse(content, "test")
        assert canonical(plain, prepared.blank.seed) == recipe
        for (_, one), (_, other) in zip(builder.tensors(plain), builder.tensors(recipe), strict=True):
            assert torch.equal(one, other)
