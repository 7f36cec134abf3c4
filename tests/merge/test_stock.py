import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge.stock import model_stock, nearswap


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


BASE = sample(6, 5)
POINTS = [BASE + sample(6, 5, seed=seed) + 2 for seed in (1, 2, 3)]


def test_model_stock_at_60_degrees_worked_by_hand() -> None:
    # Two task vectors of length 2 at 60°: t = 2 · 0.5 / (1 + 0.5) = 2/3 of the way to their average (1.5, √3/2).
    base = torch.tensor([10.0, 20.0])
    points = [base + torch.tensor([2.0, 0.0]), base + torch.tensor([1.0, math.sqrt(3)])]
    torch.testing.assert_close(model_stock(base, points), base + torch.tensor([1.0, math.sqrt(3) / 3]))


def test_model_stock_of_three_uses_the_mean_cosine() -> None:
    # Cosines 0, 0 and 1: their mean is 1/3, t = 3 · 1/3 / (1 + 2 · 1/3) = 3/5.
    points = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 4.0])]
    torch.testing.assert_close(model_stock(torch.zeros(2), points), 0.6 * torch.tensor([1.0, 5.0]) / 3)


def test_equal_parents_are_the_merge_and_perpendicular_ones_leave_the_base() -> None:
    torch.testing.assert_close(model_stock(BASE, [POINTS[0]] * 3), POINTS[0])
    ahead, aside = torch.eye(2)
    assert torch.equal(model_stock(torch.ones(2), [ahead + 1, aside + 1]), torch.ones(2))


def test_opposite_parents_and_unchanged_ones_leave_the_base() -> None:
    step = torch.ones_like(BASE)
    assert torch.equal(model_stock(BASE, [BASE + step, BASE - step]), BASE)
    assert torch.equal(model_stock(BASE, [BASE, BASE]), BASE)
    assert torch.equal(model_stock(BASE, [BASE, POINTS[0]], eps=0.0), BASE)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_the_order_of_parents_changes_nothing_but_rounding(filter_wise: bool) -> None:
    there = model_stock(BASE, POINTS, filter_wise=filter_wise)
    torch.testing.assert_close(model_stock(BASE, POINTS[::-1], filter_wise=filter_wise), there)


def test_model_stock_with_no_eps_is_free_of_the_size_of_task_vectors() -> None:
    deltas = [point - BASE for point in POINTS]
    small = model_stock(torch.zeros_like(BASE), [1e-6 * delta for delta in deltas], eps=0.0)
    torch.testing.assert_close(1e6 * small, model_stock(torch.zeros_like(BASE), deltas))


def test_pairs_below_eps_stay_nearer_to_the_base() -> None:
    deltas = [1e-5 * (point - BASE) for point in POINTS]
    zero = torch.zeros_like(BASE)
    assert model_stock(zero, deltas).norm() < model_stock(zero, deltas, eps=0.0).norm()


def test_filter_wise_is_every_row_by_itself_and_a_vector_whole() -> None:
    rows = torch.stack([model_stock(BASE[i], [point[i] for point in POINTS]) for i in range(len(BASE))])
    torch.testing.assert_close(model_stock(BASE, POINTS, filter_wise=True), rows)
    vectors = [point[0] for point in POINTS]
    assert torch.equal(model_stock(BASE[0], vectors, filter_wise=True), model_stock(BASE[0], vectors))


def test_one_parent_has_no_angle() -> None:
    with pytest.raises(RecipeError, match="two parents or more, got 1"):
        model_stock(BASE, POINTS[:1])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_any_shape_and_dtype_give_that(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, *points = (sample(*shape, seed=seed, dtype=dtype) for seed in range(3))
    for result in (
        model_stock(base, points),
        model_stock(base, points, filter_wise=True),
        nearswap(base, points[0], 0.1),
    ):
        assert result.shape == shape
        assert result.dtype == dtype
        assert result.isfinite().all()


def test_nearswap_worked_by_hand() -> None:
    base, point = torch.zeros(4), torch.tensor([0.25, -0.5, 2.0, -4.0])
    assert nearswap(base, point, 0.5).tolist() == [0.25, -0.5, 0.5, -0.5]


def test_nearswap_at_zero_is_the_base_and_far_out_the_parent() -> None:
    assert torch.equal(nearswap(BASE, POINTS[0], 0.0), BASE)
    assert torch.equal(nearswap(BASE, POINTS[0], 100.0), POINTS[0])
    assert torch.equal(nearswap(BASE, BASE, 0.5), BASE)


@given(t=st.floats(0, 3))
def test_nearswap_moves_no_entry_by_more_than_t_nor_past_the_parent(t: float) -> None:
    moved = nearswap(BASE.double(), POINTS[0].double(), t) - BASE.double()
    away = POINTS[0].double() - BASE.double()
    torch.testing.assert_close(moved.abs(), away.abs().clamp(max=t))
    assert (moved * away >= -1e-12).all()
