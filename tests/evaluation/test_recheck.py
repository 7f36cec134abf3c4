"""A merge is merged again by another process, and what an engine holds is summed up: both find a single bit."""

from __future__ import annotations

import pytest
import torch
from conftest import PARENTS, MakeRecipe, OpenFamily
from hypothesis import given
from hypothesis import strategies as st

from heterosis.builder import Builder
from heterosis.checkpoints import tensor_digest
from heterosis.errors import CanaryError, CandidateError
from heterosis.evaluation import recheck
from heterosis.evaluation.canary import cache_prompt
from heterosis.evaluation.engine import Probe
from heterosis.evaluation.observed import Observed, multiset_checksum
from heterosis.evaluation.recheck import Recheck, chosen

NUMBERS = {name: {"weight": 0.4, "density": 0.5, "drop": 0.2} for name in PARENTS}


def digests(builder: Builder, recipe: object) -> dict[str, str]:
    return {name: tensor_digest(tensor) for name, tensor in builder.tensors(recipe)}  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["dare_ties", "task_arithmetic", "model_stock", "karcher"])
def test_an_honest_merge_passes(method: str, open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    recipe = recipe_for(family, method, NUMBERS)
    found = digests(Builder(family), recipe)
    Recheck(Builder(family, compiled=False)).start(recipe, found).result()


def test_a_merge_with_another_seed_is_refused(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    builder = Builder(family)
    found = digests(builder, recipe_for(family, "dare_ties", NUMBERS, seed=1))
    with pytest.raises(CanaryError, match=r"is not what the recipe gives when it is merged again \(\d+ tensors"):
        Recheck(builder).compare(recipe_for(family, "dare_ties", NUMBERS, seed=2), found)


def test_every_tensor_of_a_small_model_is_merged_again(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny()
    builder, recipe = Builder(family), recipe_for(family, "dare_ties", NUMBERS)
    honest = digests(builder, recipe)
    for name in honest:
        with pytest.raises(CanaryError, match="canary"):
            Recheck(builder).compare(recipe, honest | {name: "0" * 64})
        with pytest.raises(CanaryError, match="canary"):
            Recheck(builder).compare(recipe, {other: value for other, value in honest.items() if other != name})


def test_every_tensor_of_a_larger_model_has_its_turn(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_tiny()
    builder = Builder(family)
    most = max(spec.numel for spec in family.base.specs.values())
    monkeypatch.setattr(recheck, "ENTRIES", most)
    turns: set[str] = set()
    for seed in range(300):
        plan = builder.plan(recipe_for(family, "dare_ties", NUMBERS, seed=seed))
        names = chosen(plan, builder.specs(plan))
        assert 0 < sum(family.base.specs[name].numel for name in names) <= most
        assert names == chosen(plan, builder.specs(plan))
        turns |= set(names)
    assert turns == set(family.names)


def test_a_whole_model_trim_of_a_large_model_is_left_alone(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_tiny()
    monkeypatch.setattr(recheck, "ENTRIES", 100)
    Recheck(Builder(family)).compare(recipe_for(family, "ties", NUMBERS, trim_scope="model"), {})


def test_a_recipe_of_other_models_is_a_failed_candidate(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family, other = open_tiny(), open_tiny("bfloat16")
    with pytest.raises(CandidateError, match="the recipe was made for weights"):
        Recheck(Builder(other)).compare(recipe_for(family, "ties", NUMBERS), {})


FLOATS = st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=2, max_size=50)


@given(values=FLOATS, at=st.integers(1, 49))
def test_the_checksum_sees_values_and_not_their_order_place_padding_or_dtype(values: list[float], at: int) -> None:
    whole = torch.tensor(values, dtype=torch.float16)
    at = min(at, len(values) - 1)
    parts = multiset_checksum(whole[:at]) + multiset_checksum(whole[at:])
    padded = torch.cat([whole.flip(0), torch.zeros(7, dtype=torch.float16)])
    assert multiset_checksum(whole) == parts % 2**64 == multiset_checksum(padded)
    assert multiset_checksum(whole) == multiset_checksum(whole.float())


@given(values=FLOATS, at=st.integers(0, 49), bit=st.integers(0, 15))
def test_the_checksum_sees_every_bit(values: list[float], at: int, bit: int) -> None:
    whole = torch.tensor(values, dtype=torch.float16)
    flipped = whole.clone()
    flipped.view(torch.int16)[min(at, len(values) - 1)] ^= (1 << bit) if bit < 15 else -(1 << 15)
    assert multiset_checksum(flipped) != multiset_checksum(whole)


def test_a_merge_has_the_checksum_of_its_tensors(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    family = open_tiny("bfloat16")
    merge = Observed(Builder(family), recipe_for(family, "ties", NUMBERS, dtype="bfloat16"), live_dtype=torch.float32)
    tensors = [tensor for _, tensor in merge]
    merge.digest()
    assert merge.checksum() == sum(map(multiset_checksum, tensors)) % 2**64


def test_a_cache_prompt_fills_a_block_and_begins_like_no_probe() -> None:
    probes = [Probe((5, 6, 7), (1,)), Probe((0, 9), (1,))]
    prompt = cache_prompt(probes, 16, 64)
    assert prompt is not None
    assert len(prompt) == 17
    assert prompt[0] not in {5, 0}
    assert set(prompt) <= set(range(8))


def test_where_no_prompt_fills_a_block_there_is_no_cache_prompt() -> None:
    assert cache_prompt([Probe((5, 6), (1,))], 128, 64) is None
    assert cache_prompt([Probe((5, 6), (1,))], 62, 64) is not None
    assert cache_prompt([], 16, 64) is None
