"""Sums over task vectors: worked by hand, and additive over entries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heterosis.inspection.geometry import (
    CrowdMoments,
    Moments,
    PairMoments,
    magnitudes,
    measure,
    measure_crowd,
    measure_pair,
    octaves,
    total,
    unrelated_loss,
)

floats = st.floats(-4.0, 4.0, width=32, allow_subnormal=False)
vectors = st.lists(st.tuples(floats, floats, floats), min_size=2, max_size=40)


def columns(rows: list[tuple[float, ...]]) -> list[Tensor]:
    return list(torch.tensor(rows, dtype=torch.float32).T.contiguous())


def test_a_task_vector_measured_by_hand() -> None:
    found = measure(torch.tensor([0.0, -0.001, 0.005, 0.5]), torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert (found.entries, found.zeros, found.beyond_safe, found.beyond_large) == (4, 1, 2, 1)
    assert found.mean == pytest.approx(0.506 / 4)
    assert found.square == pytest.approx(0.250026)
    assert found.rms == pytest.approx(math.sqrt(0.250026 / 4))
    assert found.relative == pytest.approx(math.sqrt(0.250026) / 2)
    assert found.largest == 0.5
    assert found.effective_density == pytest.approx(0.506**2 / (4 * 0.250026))


def test_entries_of_one_size_are_fully_dense_and_a_single_one_is_as_sparse_as_can_be() -> None:
    base = torch.ones(4)
    assert measure(torch.tensor([0.5, -0.5, 0.5, -0.5]), base).effective_density == 1.0
    assert measure(torch.tensor([0.0, 0.0, 3.0, 0.0]), base).effective_density == 0.25


def test_a_task_vector_of_zeros_has_no_size_and_no_direction() -> None:
    zero, other = torch.zeros(3), torch.ones(3)
    found = measure(zero, torch.zeros(3))
    assert (found.mean, found.rms, found.quantile(0.99), found.effective_density) == (0.0, 0.0, 0.0, 0.0)
    assert found.relative is None
    assert measure_pair(zero, other).cosine is None
    assert measure_pair(zero, other).conflict is None
    assert measure_crowd([zero, zero]).loss is None
    assert (Moments().mean, Moments().rms, Moments().quantile(0.5)) == (0.0, 0.0, 0.0)


def test_a_pair_measured_by_hand() -> None:
    found = measure_pair(torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.tensor([4.0, 5.0, -3.0, 0.0]))
    assert found.cosine == 0.0
    assert (found.both, found.opposed, found.conflict) == (2, 1, 0.5)
    assert not found.identical


@pytest.mark.parametrize(("factor", "cosine", "conflict"), [(2.0, 1.0, 0.0), (-0.5, -1.0, 1.0)])
def test_multiples_point_the_same_or_the_opposite_way(factor: float, cosine: float, conflict: float) -> None:
    delta = torch.tensor([0.1, -0.2, 0.3])
    found = measure_pair(delta, factor * delta)
    assert found.cosine == pytest.approx(cosine)
    assert found.conflict == conflict
    assert not found.identical


def test_equal_task_vectors_are_identical() -> None:
    delta = torch.tensor([0.1, -0.2, 0.3])
    assert measure_pair(delta, delta.clone()).identical


def test_an_election_measured_by_hand() -> None:
    # Entry 0: 3 against 2 and 0.5, the minority loses 2.5. Entry 1: all agree. Entry 2: one parent alone.
    found = measure_crowd(
        [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0]), torch.tensor([-0.5, 1.0, 7.0])]
    )
    assert (found.mass, found.discarded) == (15.5, 2.5)
    assert found.loss == 2.5 / 15.5
    assert (found.shared, found.opposed, found.conflict) == (2, 1, 0.5)


@pytest.mark.parametrize("parents", [2, 3, 5])
def test_unrelated_task_vectors_lose_what_theory_says(parents: int) -> None:
    generator = torch.Generator().manual_seed(7)
    found = measure_crowd([torch.randn(100_000, generator=generator) for _ in range(parents)])
    assert found.loss == pytest.approx(unrelated_loss(parents), abs=0.003)


def test_one_parent_alone_loses_nothing() -> None:
    assert unrelated_loss(1) == 0.0
    assert measure_crowd([torch.tensor([1.0, -2.0])]).loss == 0.0


@given(vectors, st.integers(1, 39))
def test_sums_over_two_pieces_are_the_sums_over_the_whole(rows: list[tuple[float, ...]], cut: int) -> None:
    a, b, c = columns(rows)
    cut = min(cut, len(rows) - 1)
    whole, parts = measure(a, b), measure(a[:cut], b[:cut]) + measure(a[cut:], b[cut:])
    assert torch.equal(whole.buckets, parts.buckets) if whole.buckets is not None else False
    for name in Moments.__dataclass_fields__:
        if name != "buckets":
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12), name
    pair, pieces = measure_pair(a, b), measure_pair(a[:cut], b[:cut]) + measure_pair(a[cut:], b[cut:])
    for name in PairMoments.__dataclass_fields__:
        assert getattr(pieces, name) == pytest.approx(getattr(pair, name), rel=1e-9, abs=1e-12), name
    crowd = measure_crowd([a, b, c])
    split = measure_crowd([a[:cut], b[:cut], c[:cut]]) + measure_crowd([a[cut:], b[cut:], c[cut:]])
    for name in CrowdMoments.__dataclass_fields__:
        assert getattr(split, name) == pytest.approx(getattr(crowd, name), rel=1e-12), name


@given(vectors)
def test_the_order_of_the_parents_does_not_matter(rows: list[tuple[float, ...]]) -> None:
    a, b, c = columns(rows)
    one, other = measure_crowd([a, b, c]), measure_crowd([c, a, b])
    assert (one.shared, one.opposed) == (other.shared, other.opposed)
    assert one.mass == pytest.approx(other.mass, rel=1e-12)
    assert one.discarded == pytest.approx(other.discarded, rel=1e-9, abs=1e-12)
    assert measure_pair(a, b).cosine == measure_pair(b, a).cosine
    assert measure_pair(a, b).conflict == measure_pair(b, a).conflict


@given(vectors)
def test_no_election_discards_more_than_half(rows: list[tuple[float, ...]]) -> None:
    loss = measure_crowd(columns(rows)).loss
    assert loss is None or -1e-12 <= loss <= 0.5


@given(st.lists(floats, min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_never_below_the_exact_one_and_hardly_above(values: list[float], share: float) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    exact = float(delta.abs().sort().values[math.ceil(share * len(values)) - 1])
    found = measure(delta, delta).quantile(share)
    assert exact <= found <= max(exact * (1 + 1 / 64), 2.0**-31)


def test_every_entry_falls_into_one_octave_that_holds_it() -> None:
    sizes = torch.tensor([0.0, 2.0**-40, 0.3, 0.5, 0.999, 1.0, 1e6])
    counts = {low: count for low, _, count in octaves(magnitudes(sizes)) if count}
    assert counts == {2.0**-32: 2, 0.25: 1, 0.5: 2, 1.0: 1, 128.0: 1}


def test_a_sum_does_not_depend_on_the_number_of_threads() -> None:
    values = torch.randn(300_001, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(total(values))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2] == pytest.approx(math.fsum(values.tolist()), rel=1e-12)


def test_sums_are_kept_in_double_precision() -> None:
    delta = torch.full((1 << 20,), 0.1)
    assert measure(delta, delta).mass == pytest.approx(float(delta[0]) * (1 << 20), rel=1e-14)
