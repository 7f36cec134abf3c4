import math

import pytest
import torch
from torch import Tensor

from heterosis.merge.selection import arcee_fusion, ram, ram_plus, sce


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def row(*values: float) -> Tensor:
    return torch.tensor(values)


BASE = sample(6, 5)
POINTS = [BASE + sample(6, 5, seed=seed) for seed in (1, 2, 3)]
ZERO = torch.zeros(4)
# Entry by entry: only the first parent, both alike, both apart, nobody.
FIRST, SECOND = row(1.0, 2.0, 2.0, 0.0), row(0.0, 4.0, -3.0, 0.0)


def test_sce_worked_by_hand() -> None:
    # Weights: Σ δ² is 9 and 25, so 9/34 and 25/34. Signs of the sums: +, +, -, (+).
    shared = (9 * 2 + 25 * 4) / 34
    torch.testing.assert_close(sce(ZERO, [FIRST, SECOND]), row(1.0, shared, -3.0, 0.0))


def test_sce_selects_the_entries_of_largest_variance() -> None:
    # Variances 1/4, 1, 25/4 and 0: of the three that vary, two thirds are the second and the third entry.
    shared = (8 * 2 + 25 * 4) / 33
    torch.testing.assert_close(sce(ZERO, [FIRST, SECOND], select_topk=0.67), row(0.0, shared, -3.0, 0.0))
    assert torch.equal(sce(ZERO, [FIRST, SECOND], select_topk=0.0), ZERO)


def test_sce_below_its_guard_weighs_parents_alike() -> None:
    small = [1e-4 * FIRST, 1e-4 * SECOND]
    torch.testing.assert_close(1e4 * sce(ZERO, small), row(1.0, 3.0, -3.0, 0.0))
    torch.testing.assert_close(1e4 * sce(ZERO, small, uniform_below=0.0), sce(ZERO, [FIRST, SECOND]))


def test_sce_of_one_parent_or_of_equal_ones_is_that_parent() -> None:
    torch.testing.assert_close(sce(BASE, POINTS[:1]), POINTS[0])
    torch.testing.assert_close(sce(BASE, POINTS[:1] * 3), POINTS[0])
    assert torch.equal(sce(BASE, [BASE, BASE]), BASE)
    assert torch.equal(sce(BASE, []), BASE)
    # One parent does not vary, so there is nothing to select.
    assert torch.equal(sce(BASE, POINTS[:1], select_topk=0.5), BASE)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_sce_moves_exactly_the_selected_share_of_entries_that_vary(share: float) -> None:
    moved = sce(BASE, POINTS, select_topk=share) != BASE
    assert moved.sum() == int(share * BASE.numel())


@pytest.mark.parametrize("method", [sce, ram, ram_plus])
def test_the_order_of_parents_changes_nothing_but_rounding(method) -> None:
    torch.testing.assert_close(method(BASE, POINTS[::-1]), method(BASE, POINTS))


def fusion_by_hand(base: Tensor, point: Tensor) -> Tensor:
    """Rows by Python loops, quartiles from a sorted list."""
    importance = []
    for old, new in zip(base.tolist(), point.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, new)) + 1e-8 for x in new]
        q = [math.exp(x) / sum(map(math.exp, old)) + 1e-8 for x in old]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        importance.append([abs(x - y) * divergence for x, y in zip(new, old, strict=True)])
    ranked = sorted(entry for entries in importance for entry in entries)
    first, median, third = (ranked[int(q * (len(ranked) - 1))] for q in (0.25, 0.5, 0.75))
    return torch.tensor(importance, dtype=base.dtype) >= median + 1.5 * (third - first)


def test_arcee_fusion_takes_over_what_stands_out() -> None:
    base, point = sample(40, 9, dtype=torch.float64), sample(40, 9, seed=1, dtype=torch.float64)
    taken = fusion_by_hand(base, point)
    assert 0 < taken.sum() < taken.numel() / 2
    torch.testing.assert_close(arcee_fusion(base, point), torch.where(taken, point, base))


def test_arcee_fusion_takes_over_a_single_change() -> None:
    # All other entries have importance 0, and so has the threshold.
    point = BASE.clone()
    point[2, 3] += 1.0
    torch.testing.assert_close(arcee_fusion(BASE, point), point)


def test_arcee_fusion_takes_exact_quartiles_of_large_tensors() -> None:
    base = sample(1100, 1000)
    point = base + sample(1100, 1000, seed=1)
    once = arcee_fusion(base, point)
    assert torch.equal(once, arcee_fusion(base, point))
    p, q = (torch.softmax(x, dim=-1) + 1e-8 for x in (point, base))
    importance = (point - base).abs() * (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
    ranked = importance.flatten().sort().values
    first, median, third = (ranked[quarter * (len(ranked) - 1) // 4] for quarter in (1, 2, 3))
    expected = importance >= median + 1.5 * (third - first)
    assert torch.equal(once != base, expected)


def test_ram_worked_by_hand() -> None:
    torch.testing.assert_close(ram(ZERO, [FIRST, SECOND]), row(1.0, 3.0, -0.5, 0.0))


def test_ram_plus_worked_by_hand() -> None:
    # The first shares two entries and has one alone: ρ = 2, cut at 0.5, so its own entry is times 1 + 0.4 · 0.5.
    torch.testing.assert_close(ram_plus(ZERO, [FIRST, SECOND], r=0.4, alpha=0.5), row(1.2, 3.0, -0.5, 0.0))
    torch.testing.assert_close(ram_plus(ZERO, [FIRST, SECOND], r=0.1, alpha=5.0), row(1.2, 3.0, -0.5, 0.0))


def test_ram_plus_without_reinforcement_is_ram() -> None:
    torch.testing.assert_close(ram_plus(BASE, POINTS, r=0.0), ram(BASE, POINTS))


@pytest.mark.parametrize("method", [ram, ram_plus])
def test_ram_leaves_out_changes_of_epsilon_and_less(method) -> None:
    point = row(0.25, 0.5, 0.0, -0.5)
    assert torch.equal(method(ZERO, [point], epsilon=0.25), row(0.0, 0.5, 0.0, -0.5))
    assert torch.equal(method(BASE, [BASE, BASE]), BASE)


@pytest.mark.parametrize("method", [ram, ram_plus])
def test_what_one_parent_changed_is_whole_and_what_all_changed_is_the_mean(method) -> None:
    torch.testing.assert_close(method(BASE, POINTS[:1]), POINTS[0])
    torch.testing.assert_close(method(BASE, POINTS), sum(POINTS) / 3)


@pytest.mark.parametrize("method", [sce, ram, ram_plus])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_any_shape_and_dtype_give_that(method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """arcee_fusion and ram_plus sum in float32 at least, as mergekit does."""
    base, *points = (sample(*shape, seed=seed, dtype=dtype) for seed in range(4))
    settings = [{}, {"select_topk": 0.5}] if method is sce else [{}]
    wide = torch.promote_types(dtype, torch.float32)
    for result in [arcee_fusion(base, points[0]), *(method(base, points, **each) for each in settings)]:
        assert result.shape == shape
        assert result.dtype in (dtype, wide)
        assert result.isfinite().all()
