import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterosis.merge.masks import INT32_MIN, counter_hash, counters, drop_threshold, stream_key
from heterosis.merge.sparsify import drop_mask, rescale_factor, trim, trim_mask

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
    key = stream_key("trim", 0, "digest", "w")
    hashes = counter_hash(index, key.low, key.high)
    cut = hashes[1:5].sort().values[2]  # of the four entries of magnitude 1, two reach it
    mask = trim_mask(delta, index, torch.tensor(1.0), cut, int32(key.low), int32(key.high))
    expected = (delta.abs() == 3.0) | ((delta.abs() == 1.0) & (hashes >= cut))
    assert torch.equal(mask, expected)
    assert mask.sum() == 4


def test_trim_and_drop_commute() -> None:
    index, low, high = counters(0, DELTA.numel(), CPU), int32(5), int32(6)
    trimmed = trim_mask(DELTA, index, torch.tensor(0.6), int32(INT32_MIN), low, high)
    dropped = drop_mask(index, int32(0), low, high)
    assert torch.equal(trim(trim(DELTA, trimmed), dropped), trim(trim(DELTA, dropped), trimmed))
    assert torch.equal(trim(DELTA, trimmed & dropped), trim(trim(DELTA, dropped), trimmed))
