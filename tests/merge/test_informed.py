from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heterosis.errors import CheckpointError, RecipeError
from heterosis.merge.informed import fisher_mean, regmean, shrink_off_diagonal

SHAPE = (5, 4)
WEIGHTS = (1.0, 2.0, 0.5)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


POINTS = [normal(k, *SHAPE) for k in range(3)]
FISHERS = [normal(10 + k, *SHAPE).square() for k in range(3)]
INPUTS = [normal(20 + k, 30, SHAPE[1], dtype=torch.float64) for k in range(3)]
GRAMS = [inputs.T @ inputs / len(inputs) for inputs in INPUTS]


def average(points: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    stacked = torch.stack([weight * point.double() for point, weight in zip(points, weights, strict=True)])
    return stacked.sum(dim=0).float() / sum(weights)


def pairs(*values: float) -> list[Tensor]:
    return list(torch.tensor(values, dtype=torch.float32).reshape(2, -1))


class TestFisher:
    def test_worked_by_hand(self) -> None:
        # Entry by entry: (3·1 + 1·5) / 4; the second parent alone; no information, so (2·1 + 6·1) / 2.
        merged = fisher_mean(pairs(1, 7, 2, 5, 8, 6), pairs(3, 0, 0, 1, 2, 0), [1.0, 1.0], floor=0.0)
        assert merged.tolist() == [2.0, 8.0, 4.0]

    def test_the_floor_is_added_worked_by_hand(self) -> None:
        # (3+1)·1 and (1+1)·5 over 6; (0+1)·7 and (2+1)·8 over 4.
        merged = fisher_mean(pairs(1, 7, 5, 8), pairs(3, 0, 1, 2), [1.0, 1.0], floor=1.0)
        assert merged.tolist() == pytest.approx([14 / 6, 31 / 4])

    def test_normalized_worked_by_hand(self) -> None:
        # Norms 5 and 10: shares 3/5 and 6/10 are equal; 4/5 and 8/10 too.
        merged = fisher_mean(pairs(1, 7, 5, 9), pairs(3, 4, 6, 8), [1.0, 1.0], floor=0.0, normalize=True)
        assert merged.tolist() == pytest.approx([3.0, 8.0])

    def test_the_norm_of_the_whole_model_goes_before_that_of_the_tensor(self) -> None:
        # Shares 3/6 and 6/2.
        merged = fisher_mean(pairs(1, 5), pairs(3, 6), [1.0, 1.0], floor=0.0, normalize=True, norms=[6.0, 2.0])
        assert merged.tolist() == pytest.approx([(0.5 * 1 + 3 * 5) / 3.5])

    def test_floor_and_norm_act_together_as_in_mergelm(self) -> None:
        floor, norms = 0.1, [4.0, 0.5, 2.0]
        scale = 1.0 / (torch.tensor(norms) + floor)
        factors = torch.tensor(WEIGHTS) * scale / scale.sum()
        shares = factors[:, None, None] * (torch.stack(FISHERS) + floor)
        expected = (shares * torch.stack(POINTS)).sum(dim=0) / shares.sum(dim=0)
        torch.testing.assert_close(fisher_mean(POINTS, FISHERS, WEIGHTS, floor, True, norms), expected)

    def test_equal_information_gives_the_weighted_average(self) -> None:
        merged = fisher_mean(POINTS, [FISHERS[0]] * 3, WEIGHTS)
        torch.testing.assert_close(merged, average(POINTS, WEIGHTS))

    def test_no_information_gives_the_weighted_average(self) -> None:
        nothing = [torch.zeros(SHAPE)] * 3
        for floor in (0.0, 1e-6):
            for normalize in (False, True):
                merged = fisher_mean(POINTS, nothing, WEIGHTS, floor, normalize)
                torch.testing.assert_close(merged, average(POINTS, WEIGHTS))

    @given(scale=st.floats(1e-3, 1e3))
    def test_scaling_all_information_or_all_weights_changes_nothing(self, scale: float) -> None:
        there = fisher_mean(POINTS, FISHERS, WEIGHTS, floor=0.0)
        torch.testing.assert_close(
            fisher_mean(POINTS, [scale * f for f in FISHERS], WEIGHTS, floor=0.0), there, rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(fisher_mean(POINTS, FISHERS, [scale * w for w in WEIGHTS], floor=0.0), there)

    @given(scale=st.floats(1e-3, 1e3))
    def test_normalized_information_does_not_depend_on_one_model_s_scale(self, scale: float) -> None:
        scaled = [scale * FISHERS[0], *FISHERS[1:]]
        there = fisher_mean(POINTS, FISHERS, WEIGHTS, floor=0.0, normalize=True)
        back = fisher_mean(POINTS, scaled, WEIGHTS, floor=0.0, normalize=True)
        torch.testing.assert_close(back, there, rtol=1e-5, atol=1e-6)

    def test_a_far_better_informed_parent_prevails(self) -> None:
        merged = fisher_mean(POINTS, [FISHERS[0] + 1e9, *FISHERS[1:]], WEIGHTS)
        torch.testing.assert_close(merged, POINTS[0], rtol=1e-6, atol=1e-6)

    def test_the_merge_lies_between_the_parents(self) -> None:
        merged, stacked = fisher_mean(POINTS, FISHERS, WEIGHTS), torch.stack(POINTS)
        assert bool(((stacked.amin(dim=0) <= merged) & (merged <= stacked.amax(dim=0))).all())

    def test_a_fisher_of_another_shape_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match=r"\[5, 4\], its Fisher information \[4\]"):
            fisher_mean(POINTS[:1], [torch.ones(4)], [1.0])

    @pytest.mark.parametrize("floor", [-1e-6, float("nan"), float("inf")])
    def test_a_floor_out_of_range_is_refused(self, floor: float) -> None:
        with pytest.raises(RecipeError, match="floor"):
            fisher_mean(POINTS, FISHERS, WEIGHTS, floor)


def loss(weight: Tensor, weights: Sequence[float]) -> float:
    """Σ λ_k ‖X_k W - X_k W_k‖² per token."""
    parts = (
        factor * (x @ (weight.double() - point.double()).T).square().sum() / len(x)
        for x, point, factor in zip(INPUTS, POINTS, weights, strict=True)
    )
    return float(sum(parts))


class TestRegMean:
    def test_worked_by_hand(self) -> None:
        # One output, two inputs. G₁ + G₂ = [[3, 1], [1, 2]], inverse [[2, -1], [-1, 3]] / 5.
        # G₁ W₁ᵀ = [6, 6], G₂ W₂ᵀ = [3, 0], sum [9, 6], so W = [12, 9] / 5.
        points = [torch.tensor([[-1.0, 7.0]]), torch.tensor([[1.5, 0.0]])]
        grams = [torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])]
        assert regmean(points, grams, 1.0)[0].tolist() == pytest.approx([12 / 5, 9 / 5])

    def test_no_off_diagonal_worked_by_hand(self) -> None:
        # Column by column, weighted by the diagonal: (1·1 + 3·5) / 4 and (2·3 + 2·7) / 4.
        grams = [torch.tensor([[1.0, 0.7], [0.7, 2.0]]), torch.tensor([[3.0, -2.0], [-2.0, 2.0]])]
        points = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 7.0]])]
        assert regmean(points, grams, 0.0)[0].tolist() == pytest.approx([4.0, 5.0])

    def test_the_full_matrices_give_the_least_squares_optimum(self) -> None:
        merged = regmean(POINTS, GRAMS, 1.0, WEIGHTS)
        best = loss(merged, WEIGHTS)
        for seed in range(50):
            assert loss(merged + 1e-2 * normal(seed, *SHAPE), WEIGHTS) > best
        stacked = torch.cat([w**0.5 * x / len(x) ** 0.5 for x, w in zip(INPUTS, WEIGHTS, strict=True)])
        wanted = torch.cat(
            [w**0.5 * (x / len(x) ** 0.5) @ p.double().T for x, p, w in zip(INPUTS, POINTS, WEIGHTS, strict=True)]
        )
        optimum = torch.linalg.lstsq(stacked, wanted).solution.T
        torch.testing.assert_close(merged, optimum.float())

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
    def test_inverse_and_solve_agree_as_in_mergelm(self, alpha: float) -> None:
        scaled = [gram * torch.where(torch.eye(SHAPE[1]).bool(), 1.0, alpha) for gram in GRAMS]
        right = torch.stack([gram @ point.double().T for gram, point in zip(scaled, POINTS, strict=True)]).sum(dim=0)
        expected = (torch.inverse(torch.stack(scaled).sum(dim=0)) @ right).T
        torch.testing.assert_close(regmean(POINTS, GRAMS, alpha), expected.float())

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_equal_matrices_give_the_weighted_average(self, alpha: float) -> None:
        merged = regmean(POINTS, [GRAMS[0]] * 3, alpha, WEIGHTS)
        torch.testing.assert_close(merged, average(POINTS, WEIGHTS))

    @given(scale=st.floats(1e-6, 1e6))
    def test_scaling_all_matrices_changes_nothing(self, scale: float) -> None:
        scaled = regmean(POINTS, [scale * gram for gram in GRAMS], 0.9, WEIGHTS)
        torch.testing.assert_close(scaled, regmean(POINTS, GRAMS, 0.9, WEIGHTS))

    def test_a_matrix_twice_as_large_is_a_weight_twice_as_large(self) -> None:
        heavier = regmean(POINTS, GRAMS, 0.9, [2.0, 1.0, 1.0])
        torch.testing.assert_close(regmean(POINTS, [2.0 * GRAMS[0], *GRAMS[1:]], 0.9), heavier)

    def test_layers_that_store_inputs_first_give_the_transpose(self) -> None:
        transposed = regmean([point.T for point in POINTS], GRAMS, 0.9, WEIGHTS, input_first=True)
        assert torch.equal(transposed, regmean(POINTS, GRAMS, 0.9, WEIGHTS).T)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_few_tokens_still_give_an_optimum_and_the_average_elsewhere(self, dtype: torch.dtype) -> None:
        inputs = [normal(40 + k, 2, 8, dtype=torch.float64) for k in range(2)]
        points = [normal(50 + k, 5, 8) for k in range(2)]
        merged = regmean(points, [(x.T @ x).to(dtype) for x in inputs], 1.0).double()
        for x, point in zip(inputs, points, strict=True):  # 4 tokens, 8 inputs: every parent is reproduced
            torch.testing.assert_close(x @ merged.T, x @ point.double().T, rtol=1e-4, atol=1e-4)
        # In units of the inputs' size, the step from the average is at right angles to what no token reached.
        root = sum(x.T @ x for x in inputs).diagonal().sqrt()
        unseen = torch.linalg.svd(torch.cat(inputs) / root).Vh[4:]
        step = (merged - average(points, [1.0, 1.0])) * root
        torch.testing.assert_close(step @ unseen.T, torch.zeros(5, 4).double(), rtol=0, atol=1e-4)

    def test_an_input_that_is_always_zero_is_averaged(self) -> None:
        silent = torch.ones(4)
        silent[2] = 0.0
        for alpha in (0.0, 1.0):
            merged = regmean(POINTS, [gram * silent * silent[:, None] for gram in GRAMS], alpha, WEIGHTS)
            torch.testing.assert_close(merged[:, 2], average(POINTS, WEIGHTS)[:, 2])

    def test_no_token_at_all_gives_the_weighted_average(self) -> None:
        merged = regmean(POINTS, [torch.zeros(4, 4)] * 3, 0.9, WEIGHTS)
        torch.testing.assert_close(merged, average(POINTS, WEIGHTS))

    @given(large=st.floats(1.0, 1e6))
    def test_the_unit_of_an_input_plays_no_part(self, large: float) -> None:
        unit = torch.tensor([large, 1.0, 1.0, 1.0])
        grams = [gram * unit * unit[:, None] for gram in GRAMS]
        merged = regmean([point / unit for point in POINTS], grams, 0.9, WEIGHTS)
        torch.testing.assert_close(merged * unit, regmean(POINTS, GRAMS, 0.9, WEIGHTS), rtol=1e-5, atol=1e-6)

    def test_only_the_off_diagonal_shrinks(self) -> None:
        shrunk = shrink_off_diagonal(torch.tensor([[1.0, 4.0], [4.0, 9.0]]), 0.25)
        assert shrunk.tolist() == [[1.0, 1.0], [1.0, 9.0]]

    def test_a_gram_matrix_of_another_size_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match=r"4 inputs, its Gram matrix is \[5, 5\]"):
            regmean(POINTS[:1], [torch.eye(5)], 0.9)

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
    def test_an_alpha_out_of_range_is_refused(self, alpha: float) -> None:
        with pytest.raises(RecipeError, match=r"must lie in \[0, 1\]"):
            regmean(POINTS, GRAMS, alpha)


Merge = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[float]], Tensor]
BOTH: list[tuple[Merge, list[Tensor]]] = [
    (fisher_mean, FISHERS),
    (lambda points, fishers, weights: fisher_mean(points, fishers, weights, normalize=True), FISHERS),
    (lambda points, grams, weights: regmean(points, grams, 0.9, weights), GRAMS),
    (lambda points, grams, weights: regmean(points, grams, 1.0, weights), GRAMS),
]


@pytest.mark.parametrize(("merge", "evidence"), BOTH)
class TestBoth:
    def test_one_parent_comes_back_bit_for_bit(self, merge: Merge, evidence: list[Tensor]) -> None:
        for point, measured in zip(POINTS, evidence, strict=True):
            assert torch.equal(merge([point], [measured], [0.3]), point)

    def test_a_parent_without_weight_takes_no_part(self, merge: Merge, evidence: list[Tensor]) -> None:
        with_it = merge(POINTS, evidence, [1.0, 2.0, 0.0])
        torch.testing.assert_close(with_it, merge(POINTS[:2], evidence[:2], [1.0, 2.0]))

    def test_order_plays_no_part(self, merge: Merge, evidence: list[Tensor]) -> None:
        there = merge(POINTS, evidence, WEIGHTS)
        for order in permutations(range(3)):
            other = merge([POINTS[k] for k in order], [evidence[k] for k in order], [WEIGHTS[k] for k in order])
            torch.testing.assert_close(other, there, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("weights", [(1.0, -0.5, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, float("nan"))])
    def test_weights_that_are_no_weights_are_refused(
        self, merge: Merge, evidence: list[Tensor], weights: tuple[float, ...]
    ) -> None:
        with pytest.raises(RecipeError, match="must be 0 or more"):
            merge(POINTS, evidence, weights)

    def test_the_result_has_the_dtype_and_shape_of_the_parents(self, merge: Merge, evidence: list[Tensor]) -> None:
        merged = merge([point.double() for point in POINTS], evidence, WEIGHTS)
        assert merged.dtype == torch.float64
        assert merged.shape == SHAPE
