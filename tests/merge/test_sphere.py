import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge.sphere import inner, karcher, multislerp, norm, nuslerp, slerp

HALVES = [torch.float16, torch.bfloat16]


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def on_sphere(count: int, length: int = 40) -> list[Tensor]:
    vectors = [sample(length, seed=seed, dtype=torch.float64) for seed in range(count)]
    return [vector / vector.norm() for vector in vectors]


A, B, C = (sample(6, 5, seed=seed) for seed in range(3))
EAST, NORTH, UP = torch.eye(3)
TWO_POINTS = [slerp, nuslerp]


@pytest.mark.parametrize("function", TWO_POINTS)
def test_a_third_of_a_right_angle_worked_by_hand(function) -> None:
    # θ = 90°: sin 60° of the first, sin 30° of the second, lengths 2 and 4.
    result = function(2 * EAST, 4 * NORTH, 1 / 3)
    torch.testing.assert_close(result, torch.tensor([2 * math.sqrt(3) / 2, 4 * 0.5, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_slerp_ends_are_the_points_bit_for_bit(dtype: torch.dtype) -> None:
    a, b = A.to(dtype), B.to(dtype)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("settings", [{}, {"flatten": False}, {"flatten": False, "row_wise": True}, {"origin": C}])
def test_nuslerp_ends_are_the_points(settings: dict) -> None:
    torch.testing.assert_close(nuslerp(A, B, 0.0, **settings), A)
    torch.testing.assert_close(nuslerp(A, B, 1.0, **settings), B)


@pytest.mark.parametrize("function", TWO_POINTS)
@given(t=st.floats(0, 1), seed=st.integers(0, 20))
def test_the_way_back_is_the_way_there(function, t: float, seed: int) -> None:
    a, b = sample(8, seed=seed), sample(8, seed=seed + 100)
    torch.testing.assert_close(function(a, b, t), function(b, a, 1 - t))


@pytest.mark.parametrize("function", TWO_POINTS)
@given(t=st.floats(0, 1))
def test_unit_vectors_stay_on_the_sphere_at_a_share_of_the_angle(function, t: float) -> None:
    a, b = on_sphere(2)
    result = function(a, b, t)
    assert result.norm().item() == pytest.approx(1.0)
    assert torch.acos((result @ a).clamp(-1, 1)).item() == pytest.approx(t * torch.acos(a @ b).item(), abs=1e-6)


@pytest.mark.parametrize("function", TWO_POINTS)
def test_a_factor_on_both_points_is_a_factor_on_the_result(function) -> None:
    torch.testing.assert_close(function(1000 * A, 1000 * B, 0.3), 1000 * function(A, B, 0.3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", TWO_POINTS)
@pytest.mark.parametrize("factor", [2.0, -2.0, -1.0])
def test_points_on_one_line_are_joined_by_it(function, factor: float) -> None:
    torch.testing.assert_close(function(A, factor * A, 0.25), (0.75 + 0.25 * factor) * A)


@pytest.mark.parametrize("function", TWO_POINTS)
def test_a_zero_vector_is_at_a_right_angle_to_all(function) -> None:
    torch.testing.assert_close(function(torch.zeros_like(A), A, 1 / 3), 0.5 * A)
    assert torch.equal(function(torch.zeros_like(A), torch.zeros_like(A), 0.5), torch.zeros_like(A))


@pytest.mark.parametrize("function", TWO_POINTS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_two_points_of_any_shape_and_dtype_give_that(function, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = sample(*shape, dtype=dtype), sample(*shape, seed=1, dtype=dtype)
    result = function(a, b, 0.4)
    assert result.shape == shape
    assert result.dtype == dtype
    assert result.isfinite().all()


def test_slerp_goes_straight_between_points_closer_than_its_threshold() -> None:
    angle = 0.02  # cos = 0.9998
    near = math.cos(angle) * EAST + math.sin(angle) * NORTH
    assert torch.equal(slerp(EAST, near, 0.5), 0.5 * EAST + 0.5 * near)
    assert slerp(EAST, near, 0.5, threshold=0.99999).norm().item() == pytest.approx(1.0, abs=1e-7)


def test_slerp_in_half_precision_is_float32_rounded_once() -> None:
    for dtype in HALVES:
        a, b = A.to(dtype), B.to(dtype)
        assert torch.equal(slerp(a, b, 0.3), slerp(a.float(), b.float(), 0.3).to(dtype))


def test_nuslerp_around_an_origin_interpolates_task_vectors() -> None:
    torch.testing.assert_close(nuslerp(A, B, 0.3, origin=C), C + nuslerp(A - C, B - C, 0.3))


def test_nuslerp_takes_rows_or_columns_one_by_one() -> None:
    rows = torch.stack([nuslerp(a, b, 0.3) for a, b in zip(A, B, strict=True)])
    torch.testing.assert_close(nuslerp(A, B, 0.3, flatten=False), rows)
    columns = nuslerp(A.T, B.T, 0.3, flatten=False).T
    torch.testing.assert_close(nuslerp(A, B, 0.3, flatten=False, row_wise=True), columns)
    assert torch.equal(nuslerp(A, B, 0.3, row_wise=True), nuslerp(A, B, 0.3))


def test_multislerp_of_two_perpendicular_points_worked_by_hand() -> None:
    # Directions (1, 0, 0) and (0, 1, 0), weights 3/4 and 1/4: towards (3, 1, 0) / √10, length 3/4 · 2 + 1/4 · 6 = 3.
    result = multislerp([2 * EAST, 6 * NORTH], [3.0, 1.0])
    torch.testing.assert_close(result, 3 * torch.tensor([3.0, 1.0, 0.0]) / math.sqrt(10))


def test_karcher_mean_of_a_right_angle_worked_by_hand() -> None:
    # On an arc the mean is where the weights pull equally: 1/3 of the way, at 30°. Length 2/3 · 3 + 1/3 · 6 = 4.
    result = karcher([3 * EAST, 6 * NORTH], [2.0, 1.0], iterations=100, tolerance=1e-9)
    torch.testing.assert_close(result, 4 * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6), 0.0]))


def test_karcher_mean_of_three_axes_is_their_middle() -> None:
    torch.testing.assert_close(karcher([EAST, NORTH, UP]), torch.ones(3) / math.sqrt(3))


@given(weights=st.lists(st.floats(0.1, 1), min_size=3, max_size=3))
def test_the_pulls_on_a_karcher_mean_cancel(weights: list[float]) -> None:
    points = [vector + 2 * on_sphere(1)[0] for vector in on_sphere(3)]
    directions = [point / point.norm() for point in points]
    mean = karcher(directions, weights, iterations=100, tolerance=1e-10)
    pull = torch.zeros_like(mean)
    for weight, direction in zip(weights, directions, strict=True):
        cosine = (direction @ mean).clamp(-1, 1)
        away = direction - cosine * mean
        pull += weight * torch.acos(cosine) * away / away.norm().clamp(min=1e-12)
    assert pull.norm() < 1e-7


def multislerp_equally(points: list[Tensor]) -> Tensor:
    return multislerp(points, [1.0] * len(points))


@pytest.mark.parametrize("mean", [multislerp_equally, karcher])
def test_means_of_many_points_keep_their_promises(mean) -> None:
    points = [A, B, C]
    torch.testing.assert_close(mean(points), mean([C, A, B]), msg="order")
    torch.testing.assert_close(mean([8 * point for point in points]), 8 * mean(points), msg="scale")
    torch.testing.assert_close(mean([A, A, A]), A, msg="equal points")
    assert torch.equal(mean([A]), A)
    assert mean(on_sphere(4)).norm().item() == pytest.approx(1.0)
    torch.testing.assert_close(mean([A, torch.zeros_like(A)]), A / 2, msg="a zero vector has a length and no direction")
    assert torch.equal(mean([torch.zeros_like(A)] * 3), torch.zeros_like(A))


@pytest.mark.parametrize("mean", [multislerp_equally, karcher])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_means_of_any_shape_and_dtype_have_it(mean, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    result = mean([2.0 + sample(*shape, seed=seed, dtype=dtype).abs() for seed in range(3)])
    assert result.shape == shape
    assert result.dtype == dtype
    assert result.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_means_in_half_precision_are_near_the_exact_ones(dtype: torch.dtype) -> None:
    points = [x.to(dtype) for x in (A, B, C)]
    wide = [point.double() for point in points]
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(karcher(points).double(), karcher(wide), rtol=tolerance, atol=tolerance)
    exact = multislerp(wide, [0.5, 0.2, 0.3])
    torch.testing.assert_close(multislerp(points, [0.5, 0.2, 0.3]).double(), exact, rtol=tolerance, atol=tolerance)


def test_multislerp_weights_are_shares_or_taken_as_they_are() -> None:
    torch.testing.assert_close(multislerp([A, B], [2.0, 6.0]), multislerp([A, B], [0.25, 0.75]))
    torch.testing.assert_close(multislerp([A, B], [2.0, 6.0], normalize=False), 8 * multislerp([A, B], [0.25, 0.75]))


def test_multislerp_around_an_origin_is_of_task_vectors() -> None:
    result = multislerp([A, B], [0.5, 0.5], origin=C)
    torch.testing.assert_close(result, C + multislerp([A - C, B - C], [0.5, 0.5]))


def test_opposite_points_meet_on_the_line_or_are_refused() -> None:
    torch.testing.assert_close(multislerp([A, -3 * A], [1.0, 1.0]), -A)
    with pytest.raises(RecipeError, match="cancel"):
        multislerp([EAST, -EAST, NORTH, -NORTH], [1.0] * 4)
    torch.testing.assert_close(karcher([A, -A]), A)


def test_a_tensor_that_no_parent_changed_stays_the_base() -> None:
    for dtype in (torch.float32, *HALVES):
        origin = A.to(dtype)
        assert torch.equal(multislerp([origin] * 3, [0.2, 0.3, 0.5], origin=origin), origin)
        assert torch.equal(multislerp([origin] * 2, [0.5, 0.5], origin=origin), origin)


def test_weights_that_sum_to_zero_are_refused() -> None:
    with pytest.raises(RecipeError, match="sum to 0"):
        multislerp([A, B], [1.0, -1.0])
    with pytest.raises(RecipeError, match="sum to 0"):
        karcher([A, B], [1.0, -1.0])


def test_inner_products_are_exact_to_float64_and_free_of_thread_count() -> None:
    a, b = sample(2, 40_000), sample(2, 40_000, seed=1)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.cat([inner(a, b), norm(a), inner(a[:1], b[:1])]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0][:2, 0], (a.double() * b.double()).sum(dim=1), rtol=1e-12, atol=1e-9)


def test_many_rows_are_taken_in_parts() -> None:
    a, b = sample(200, 3), sample(200, 3, seed=1)
    torch.testing.assert_close(inner(a, b)[:, 0], (a.double() * b.double()).sum(dim=1))
