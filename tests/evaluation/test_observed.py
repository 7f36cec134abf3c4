"""A merge that is watched on its way: digest, time, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from conftest import PARENTS, MakeRecipe, OpenFamily

from heterosis.builder import Builder
from heterosis.errors import CandidateError
from heterosis.evaluation.observed import Observed

THIRD = {name: {"weight": 0.3} for name in PARENTS}


def test_one_parent_at_full_weight_has_that_parents_digest(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    weights = {name: {"weight": float(name == "b")} for name in PARENTS}
    merge = Observed(Builder(family), recipe_for(family, "task_arithmetic", weights))
    assert sum(1 for _ in merge) == len(family.names)
    assert merge.digest() == family.parents["b"].digest


def test_what_goes_by_is_the_merge_and_is_kept_only_on_request(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    builder, recipe = Builder(family), recipe_for(family, "task_arithmetic", THIRD)
    plain, keeping = Observed(builder, recipe), Observed(builder, recipe, keep=True)
    seen, kept = dict(plain), dict(keeping)
    expected = dict(builder.tensors(recipe))
    assert list(seen) == list(kept) == list(expected)
    assert all(torch.equal(seen[name], expected[name]) for name in expected)
    assert plain.kept == {}
    assert keeping.kept.keys() == expected.keys()
    assert plain.digest() == keeping.digest()
    assert plain.seconds > 0.0


def test_a_tensor_that_is_not_taken_is_missed(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    merge = Observed(Builder(family), recipe_for(family, "task_arithmetic", THIRD))
    next(iter(merge))
    with pytest.raises(CandidateError, match=rf"never taken by the engine \({len(family.names) - 1} tensors missing"):
        merge.digest()


def test_a_merge_that_overflows_is_refused(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    weights: dict[str, dict[str, float]] = {name: {"weight": 1e39} for name in PARENTS}
    merge = Observed(Builder(family), recipe_for(family, "task_arithmetic", weights))
    for _ in merge:
        pass
    with pytest.raises(CandidateError, match="holds NaN or Inf after merging"):
        merge.digest()
