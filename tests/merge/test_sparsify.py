import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterosis.merge.masks import INT32_MIN, counters, drop_threshold, stream_key, tie_hash
from heterosis.merge.sparsify import (
    drop_mask,
    ranked_drop,
    ranked_drop_rates,
    rescale_factor,
    trim,
    trim_mask,
)

CPU = torch.device("cpu")
DELTA = torch.randn(400, generator=torch.Generator().manual_seed(0))


def int32(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int32)


def dare(delta: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    key = stream_key("drop", seed, "digest", "w")
    mask = drop_mask(counters(0, delta.numel(), CPU), int32(drop_threshold(p)), int32(key.low), int32(key.high))
    return trim(delta, mask) * rescale_factor(p, "inverse_keep")


def test_the_expectation_of_dare_is_the_task_vector() -> None:
    p, seeds = 0.7, 2000
    mean = torch.stack([dare(DELTA, p, seed) for seed in range(seeds)]).double().mean(dim=0)
    error = DELTA.abs().double() * (p / (1 - p) / seeds) ** 0.5
    deviations = (mean - DELTA) / error
    assert deviations.abs().max() < 4.5
    assert 0.85 < deviations.std() < 1.15


def test_survivors_are_scaled_and_the_rest_is_zero() -> None:
    once = dare(DELTA, 0.5, seed=0)
    assert set((once / DELTA).tolist()) == {0.0, 2.0}


@given(p=st.floats(0, 0.99))
def test_rescaling_by_name_and_by_number(p: float) -> None:
    assert rescale_factor(p, "inverse_keep") * (1 - p) == pytest.approx(1.0)
    assert rescale_factor(p, "none") == 1.0
    assert rescale_factor(p, 1.7) == 1.7


def test_trim_keeps_what_is_larger_and_breaks_ties_by_hash() -> None:
    delta = torch.tensor([3.0, -1.0, 1.0, -1.0, 1.0, 0.5, -3.0, 0.0])
    index = counters(0, 8, CPU)
    below_one = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    hashes = tie_hash(index, 77)
    cut = hashes[1:5].sort().values[2]  # of the four entries of magnitude 1, two reach it
    mask = trim_mask(delta, index, torch.tensor(1.0), torch.tensor(below_one), cut, int32(77))
    assert torch.equal(mask, (delta.abs() == 3.0) | ((delta.abs() == 1.0) & (hashes >= cut)))
    assert mask.sum() == 4


def test_trim_and_drop_commute() -> None:
    index = counters(0, DELTA.numel(), CPU)
    trimmed = trim_mask(DELTA, index, torch.tensor(0.6), torch.tensor(0.6), int32(INT32_MIN), int32(5))
    dropped = drop_mask(index, int32(0), int32(5), int32(6))
    assert torch.equal(trim(trim(DELTA, trimmed), dropped), trim(trim(DELTA, dropped), trimmed))
    assert torch.equal(trim(DELTA, trimmed & dropped), trim(trim(DELTA, dropped), trimmed))


@pytest.mark.parametrize("rescale", ["inverse_keep", "none", 1.7])
def test_ranked_drop_without_a_window_is_dare_mask_for_mask(rescale: str | float) -> None:
    key, index = stream_key("drop", 3, "digest", "w"), counters(0, DELTA.numel(), CPU)
    ranked = ranked_drop(DELTA, index, ranked_drop_rates(DELTA, 0.6, 0.0), *key, rescale)
    mask = drop_mask(index, drop_threshold(0.6), *key)
    torch.testing.assert_close(ranked, trim(DELTA, mask) * rescale_factor(0.6, rescale))
    assert torch.equal(ranked != 0.0, mask)


def test_ranked_rates_fall_linearly_with_the_rank_in_the_row() -> None:
    rows = torch.tensor([[0.1, -0.3, 0.2], [5.0, 4.0, -6.0]])
    expected = [[0.7, 0.3, 0.5], [0.5, 0.7, 0.3]]
    torch.testing.assert_close(ranked_drop_rates(rows, 0.5, 0.2), torch.tensor(expected, dtype=torch.float64))


def test_the_expectation_of_ranked_drop_is_the_task_vector() -> None:
    seeds, index = 2000, counters(0, DELTA.numel(), CPU)
    rates = ranked_drop_rates(DELTA, 0.6, 0.3)
    draws = [
        ranked_drop(DELTA, index, rates, *stream_key("drop", seed, "digest", "w"), "inverse_keep")
        for seed in range(seeds)
    ]
    error = DELTA.abs().double() * (rates / (1 - rates) / seeds) ** 0.5
    deviations = (torch.stack(draws).double().mean(dim=0) - DELTA) / error
    assert deviations.abs().max() < 4.5
    assert 0.85 < deviations.std() < 1.15
