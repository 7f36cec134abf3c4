import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from heterosis.merge.masks import INT32_MIN, Key, counter_hash, counters, drop_threshold, stream_key, tie_hash

CPU = torch.device("cpu")
N = 1 << 20


def uniform(key: Key, n: int = N) -> np.ndarray:
    """u(element) in [0, 1) for the first n elements."""
    hashes = counter_hash(counters(0, n, CPU), key.low, key.high).numpy().astype(np.int64)
    return (hashes - INT32_MIN) / 2**32


def kept(key: Key, p: float, n: int = 10_000) -> torch.Tensor:
    return counter_hash(counters(0, n, CPU), key.low, key.high) >= drop_threshold(p)


def reference_hash(index: int, key: Key) -> int:
    """The same hash on unbounded integers."""
    x = (index ^ key.low) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15) ^ (key.high & 0xFFFFFFFF)) * 0x846CA68B) & 0xFFFFFFFF
    x ^= x >> 16
    return x - 2**32 if x >= 2**31 else x


@pytest.mark.parametrize("start", [0, 2**31 - 3, 2**32 - 5, 7 * 2**32 + 11])
def test_the_hash_is_lowbias32_on_wrapping_integers(start: int) -> None:
    key = stream_key("drop", 3, "digest", "w")
    index = counters(start, 5, CPU)
    expected = [reference_hash(int(i), key) for i in index]
    assert counter_hash(index, key.low, key.high).tolist() == expected


def test_the_hash_takes_keys_as_numbers_or_as_tensors() -> None:
    key = stream_key("drop", 3, "digest", "w")
    index = counters(0, 1000, CPU)
    low, high = (torch.tensor(half, dtype=torch.int32) for half in key)
    assert torch.equal(counter_hash(index, key.low, key.high), counter_hash(index, low, high))


def test_no_two_elements_of_a_tensor_share_a_hash() -> None:
    key = stream_key("trim", 0, "digest", "w")
    assert counter_hash(counters(0, N, CPU), key.low, key.high).unique().numel() == N


def test_a_tie_hash_is_a_permutation_whose_every_stretch_is_spread_evenly() -> None:
    hashes = tie_hash(counters(12345, N, CPU), 77)
    assert hashes.unique().numel() == N
    for stretch in hashes.split(N // 8):
        assert abs((stretch >= 0).float().mean().item() - 0.5) < 1e-4


def test_counters_take_steps() -> None:
    assert torch.equal(counters(5, 4, CPU, step=1024), counters(5, 4096, CPU)[::1024])


def test_counters_are_all_different_up_to_32_bits_and_then_repeat() -> None:
    around = counters(2**31 - 2, 4, CPU)
    assert around.unique().numel() == 4
    assert torch.equal(counters(2**32 + 9, 3, CPU), counters(9, 3, CPU))


def test_a_mask_is_frozen() -> None:
    """Recipes in other people's hands rely on these bits."""
    key = stream_key("drop", 0, "parent", "model.norm.weight")
    assert key == (910502621, -447403327)
    assert kept(key, 0.5, 16).int().tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_with_higher_drop_rate_is_a_subset(seed: int) -> None:
    key = stream_key("drop", seed, "digest", "w")
    rates = [0.0, 1e-6, 0.1, 0.10001, 0.5, 0.9, 0.999, 1 - 2**-33]
    masks = [kept(key, p) for p in rates]
    assert masks[0].all()
    for wider, narrower in itertools.pairwise(masks):
        assert not (narrower & ~wider).any()


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_the_dropped_fraction_is_the_drop_rate(p: float) -> None:
    mask = kept(stream_key("drop", 1, "digest", "w"), p, N)
    deviations = ((~mask).sum().item() - p * N) / (N * p * (1 - p)) ** 0.5
    assert abs(deviations) < 4


@pytest.mark.parametrize("bins", [256, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_high_bits_are_uniform(seed: int, bins: int) -> None:
    counts = np.bincount((uniform(stream_key("drop", seed, "digest", "w")) * bins).astype(int), minlength=bins)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 4096])
def test_neighbours_are_uncorrelated(lag: int) -> None:
    u = uniform(stream_key("drop", 0, "digest", "w"))
    assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) * N**0.5 < 4


def test_pairs_of_neighbours_fill_the_square() -> None:
    u = (uniform(stream_key("drop", 0, "digest", "w")) * 32).astype(int)
    counts = np.bincount(u[0::2] * 32 + u[1::2], minlength=1024)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        stream_key("trim", 0, "digest", "w"),
        stream_key("drop", 1, "digest", "w"),
        stream_key("drop", 0, "digest 2", "w"),
        stream_key("drop", 0, "digest", "v"),
        stream_key("drop", 0, "digest", "w", 1),
    ],
    ids=["purpose", "seed", "parent", "tensor", "high counter"],
)
def test_masks_of_different_streams_are_independent(other: Key) -> None:
    one, two = uniform(stream_key("drop", 0, "digest", "w")), uniform(other)
    table = np.histogram2d(one, two, bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    assert abs(np.corrcoef(one, two)[0, 1]) * N**0.5 < 4


def test_drop_thresholds_stay_in_32_bits() -> None:
    assert drop_threshold(0.0) == INT32_MIN
    assert drop_threshold(0.5) == 0
    assert drop_threshold(1 - 2**-53) == 2**31 - 1
