import pytest
import torch
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge import spectral
from heterosis.merge.spectral import iso_c, tsv_merge


def sample(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


TALL = [sample(12, 7, seed=seed) for seed in range(3)]
WIDE = [delta.T for delta in TALL]


def outer(u: list[float], v: list[float]) -> Tensor:
    return torch.outer(torch.tensor(u), torch.tensor(v))


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(sample(size, size, seed=seed, dtype=torch.float64)).Q


def algorithm_1(deltas: list[Tensor], kept: int) -> Tensor:
    """The paper's algorithm, step by step, for tasks that span more than they keep."""
    lefts, values, rights = [], [], []
    for delta in deltas:
        left, singular, right = torch.linalg.svd(delta.double(), full_matrices=False)
        lefts.append(left[:, :kept])
        values.append(singular[:kept])
        rights.append(right[:kept])
    p_u, _, q_u = torch.linalg.svd(torch.cat(lefts, dim=1), full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(torch.cat(rights), full_matrices=False)
    return (p_u @ q_u @ torch.diag(torch.cat(values)) @ p_v @ q_v).to(deltas[0].dtype)


def test_tsv_of_tasks_that_do_not_interfere_is_their_sum() -> None:
    # diag(4, 1) keeps its first direction, the other task its second, so whitening changes nothing.
    first, second = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(tsv_merge([first, second]), torch.diag(torch.tensor([4.0, 3.0])))


def test_tsv_turns_two_directions_at_60_degrees_apart_worked_by_hand() -> None:
    # u = (1, 0) and (1/2, √3/2); the nearest orthonormal pair lies 15° outside of them, at -15° and 75°.
    tilted, root = torch.tensor(3.0).sqrt().item() / 2, torch.tensor(0.5).sqrt().item()
    deltas = [2 * outer([1.0, 0.0], [1.0, 0.0]), 4 * outer([0.5, tilted], [0.0, 1.0])]
    cosine, sine = root * (tilted + 0.5), root * (tilted - 0.5)  # of 15°
    expected = torch.tensor([[2 * cosine, 4 * sine], [-2 * sine, 4 * cosine]])
    torch.testing.assert_close(tsv_merge(deltas), expected)


@pytest.mark.parametrize("deltas", [TALL, WIDE])
@pytest.mark.parametrize("tasks", [2, 3])
def test_tsv_is_the_papers_algorithm(deltas: list[Tensor], tasks: int) -> None:
    torch.testing.assert_close(tsv_merge(deltas[:tasks]), algorithm_1(deltas[:tasks], 7 // tasks))
    torch.testing.assert_close(tsv_merge(deltas[:tasks], keep=0.3), algorithm_1(deltas[:tasks], 2))


def test_tsv_of_one_task_is_that_task_and_keep_cuts_its_rank() -> None:
    torch.testing.assert_close(tsv_merge(TALL[:1]), TALL[0])
    assert torch.linalg.matrix_rank(tsv_merge(TALL[:1], keep=0.5), rtol=1e-4) == 3
    assert torch.linalg.matrix_rank(tsv_merge(TALL[:1], keep=0.01), rtol=1e-4) == 1


def test_tsv_keeps_the_singular_values() -> None:
    kept = torch.cat([torch.linalg.svdvals(delta)[:2] for delta in TALL]).sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(tsv_merge(TALL))[:6], kept)


def test_tsv_weights_scale_task_vectors_and_zero_is_no_task() -> None:
    weighted = [2.0 * TALL[0], -0.5 * TALL[1]]
    torch.testing.assert_close(tsv_merge(TALL[:2], [2.0, -0.5]), tsv_merge(weighted))
    torch.testing.assert_close(tsv_merge(TALL, [1.0, 0.0, 1.0]), tsv_merge([TALL[0], TALL[2]]))
    assert torch.equal(tsv_merge(TALL, [0.0] * 3), torch.zeros_like(TALL[0]))


def test_tsv_of_a_task_that_changed_nothing_makes_up_no_directions() -> None:
    zero = torch.zeros_like(TALL[0])
    torch.testing.assert_close(tsv_merge([TALL[0], zero], keep=1.0), TALL[0])
    assert torch.equal(tsv_merge([zero, zero]), zero)
    thin = outer([1.0, 2.0, 0.0], [3.0, 0.0, 4.0])
    torch.testing.assert_close(tsv_merge([thin, torch.zeros(3, 3)], keep=1.0), thin)


def test_tsv_of_a_repeated_task_is_its_strongest_part() -> None:
    # Two equal columns share one direction: each becomes u / √2, so together they carry σ / 2 + σ / 2.
    strongest = algorithm_1(TALL[:1], 3)
    torch.testing.assert_close(tsv_merge([TALL[0], TALL[0]]), strongest)


@pytest.mark.parametrize("method", [tsv_merge, iso_c])
def test_spectral_merges_keep_their_promises(method) -> None:
    merged = method(TALL)
    assert torch.equal(method(TALL), merged)
    torch.testing.assert_close(method(TALL[::-1]), merged, msg="order")
    torch.testing.assert_close(method([64 * delta for delta in TALL]), 64 * merged, msg="scale")
    torch.testing.assert_close(method([-delta for delta in TALL]), -merged, msg="sign")
    torch.testing.assert_close(method(WIDE), merged.T, msg="transposition")
    left, right = orthogonal(12, 5), orthogonal(7, 6)
    turned = [left @ delta.double() @ right for delta in TALL]
    torch.testing.assert_close(method(turned).float(), (left @ merged.double() @ right).float(), msg="rotation")


def test_signs_of_singular_vectors_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tsv_merge(TALL), iso_c(TALL)
    svd = torch.linalg.svd

    def flipped(matrix: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        left, singular, right = svd(matrix, full_matrices=full_matrices)
        signs = torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0], dtype=left.dtype)[: len(singular)]
        return left * signs, singular, signs[:, None] * right

    monkeypatch.setattr(spectral.torch.linalg, "svd", flipped)
    torch.testing.assert_close(tsv_merge(TALL), expected[0])
    torch.testing.assert_close(iso_c(TALL), expected[1])


def test_iso_c_worked_by_hand() -> None:
    # The sum is diag(3, -1): both singular values become 2, and the signs stay.
    deltas = [torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, -2.0]))]
    torch.testing.assert_close(iso_c(deltas), torch.diag(torch.tensor([2.0, -2.0])))


def test_iso_c_gives_all_directions_the_mean_singular_value_of_the_sum() -> None:
    values = torch.linalg.svdvals(sum(TALL))
    torch.testing.assert_close(torch.linalg.svdvals(iso_c(TALL)), values.mean().expand(7))


def test_iso_c_leaves_directions_in_which_nothing_changed_at_zero() -> None:
    thin = outer([1.0, 0.0, 0.0], [0.0, 3.0, 0.0])
    torch.testing.assert_close(iso_c([thin]), thin / 3)
    assert torch.equal(iso_c([TALL[0], -TALL[0]]), torch.zeros_like(TALL[0]))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (0,), (2, 3, 4)])
def test_what_is_no_matrix_is_averaged(shape: tuple[int, ...]) -> None:
    deltas = [sample(*shape, seed=seed) for seed in range(3)]
    mean = torch.stack(deltas).mean(dim=0)
    torch.testing.assert_close(tsv_merge(deltas), mean)
    torch.testing.assert_close(iso_c(deltas), mean)
    torch.testing.assert_close(tsv_merge(deltas, [2.0, 0.0, 1.0]), (2 * deltas[0] + deltas[2]) / 2)


@pytest.mark.parametrize("method", [tsv_merge, iso_c])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 0), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_any_matrix_and_dtype_give_that(method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    result = method([sample(*shape, seed=seed, dtype=dtype) for seed in range(4)])
    assert result.shape == shape
    assert result.dtype == dtype
    assert result.isfinite().all()


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5])
def test_a_share_of_triplets_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(RecipeError, match="keep"):
        tsv_merge(TALL, keep=keep)
