import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heterosis.merge.kernel import trim_key
from heterosis.merge.magnitude import BLOCK, KEEP_ALL, KEEP_NONE, RANKS, SORTED, MagnitudeIndex, Threshold, task_vector
from heterosis.merge.masks import counters
from heterosis.merge.sparsify import trim_mask

KEY = trim_key("digest", "w")


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def kept(delta: Tensor, threshold: Threshold, name: str = "w") -> Tensor:
    """The mask that the kernel makes of a threshold."""
    key = trim_key("digest", name)
    index = counters(0, delta.numel(), delta.device)
    return trim_mask(delta, index, *threshold, key)


def coarse(n: int, seed: int = 0) -> Tensor:
    """The task vector of a bfloat16 checkpoint: few magnitudes, many of them equal, many of them zero."""
    base = noise(n, seed)
    return (base + 0.01 * noise(n, seed + 1)).bfloat16().float() - base.bfloat16().float()


@settings(max_examples=60)
@given(
    n=st.integers(1, 3000),
    density=st.floats(0, 1),
    make=st.sampled_from([noise, coarse, torch.ones, torch.zeros]),
)
def test_the_kept_number_is_exact_up_to_16384_entries(n: int, density: float, make) -> None:
    delta = make(n)
    mask = kept(delta, MagnitudeIndex.build(delta, KEY).threshold(density))
    assert mask.sum() == int(density * n)


@pytest.mark.parametrize("make", [noise, coarse, torch.ones])
def test_the_kept_number_is_exact_at_16384_entries(make) -> None:
    delta = make(RANKS)
    index = MagnitudeIndex.build(delta, KEY)
    for count in (1, 2, 8191, 8192, RANKS - 1):
        assert kept(delta, index.threshold(count / RANKS)).sum() == count


@pytest.mark.parametrize("make", [noise, coarse, torch.ones])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.2, 0.5, 0.777, 0.9999])
def test_above_16384_entries_the_kept_number_is_within_a_hundredth_of_a_percent(make, density: float) -> None:
    n = 300_007
    delta = make(n)
    count = kept(delta, MagnitudeIndex.build(delta, KEY).threshold(density)).sum().item()
    assert abs(count - density * n) <= 1e-4 * n


def test_kept_entries_are_the_largest() -> None:
    delta = noise(5000)
    mask = kept(delta, MagnitudeIndex.build(delta, KEY).threshold(0.3))
    assert delta[mask].abs().min() > delta[~mask].abs().max()


@pytest.mark.parametrize("n", [777, 40_000])
def test_a_mask_with_higher_density_is_a_superset(n: int) -> None:
    delta = coarse(n)
    index = MagnitudeIndex.build(delta, KEY)
    masks = [kept(delta, index.threshold(density)) for density in (0.0, 0.01, 0.2, 0.21, 0.5, 0.99, 1.0)]
    for narrower, wider in itertools.pairwise(masks):
        assert not (narrower & ~wider).any()


def test_the_ends_keep_nothing_and_everything() -> None:
    delta = coarse(100)
    index = MagnitudeIndex.build(delta, KEY)
    assert index.threshold(0.0) == KEEP_NONE
    assert index.threshold(1.0) == KEEP_ALL
    assert not kept(delta, KEEP_NONE).any()
    assert kept(delta, KEEP_ALL).all()


def test_equal_magnitudes_are_not_kept_by_position() -> None:
    mask = kept(torch.ones(10_000), MagnitudeIndex.build(torch.ones(10_000), KEY).threshold(0.5))
    assert abs(mask[:5000].sum() - 2500) < 150


def test_the_tie_break_ignores_the_sign() -> None:
    delta = coarse(2000)
    assert MagnitudeIndex.build(delta, KEY).threshold(0.4) == MagnitudeIndex.build(-delta, KEY).threshold(0.4)


@pytest.mark.parametrize("make", [noise, coarse])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 0.5, 0.95, 1.0])
def test_a_union_has_one_exact_threshold_for_all_tensors(make, density: float) -> None:
    parts = {"v": make(300), "w": 3 * make(5000, 2), "x": 0.2 * make(1), "y": make(700, 4)}
    indices = [MagnitudeIndex.build(delta, trim_key("digest", name)) for name, delta in parts.items()]
    threshold = MagnitudeIndex.union(indices).threshold(density)
    masks = {name: kept(delta, threshold, name) for name, delta in parts.items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == int(density * 6001)
    all_kept = torch.cat([delta[masks[name]].abs() for name, delta in parts.items()])
    all_trimmed = torch.cat([delta[~masks[name]].abs() for name, delta in parts.items()])
    if all_kept.numel() and all_trimmed.numel():
        assert all_kept.min() >= all_trimmed.max()


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9])
def test_a_union_of_large_tensors_is_within_a_hundredth_of_a_percent(density: float) -> None:
    parts = {"v": coarse(100_000), "w": 3 * noise(150_000, 2), "x": noise(30)}
    indices = [MagnitudeIndex.build(delta, trim_key("digest", name)) for name, delta in parts.items()]
    threshold = MagnitudeIndex.union(indices).threshold(density)
    count = sum(int(kept(delta, threshold, name).sum()) for name, delta in parts.items())
    assert abs(count - density * 250_030) <= 1e-4 * 250_030


LARGE = SORTED + 4321
DENSITIES = [0.001, 0.1, 0.2, 0.5, 0.777, 0.9999]


def half_zero(n: int, seed: int = 0) -> Tensor:
    """Noise on every other entry in the mean, at no regular distance."""
    return torch.where(noise(n, seed + 7) > 0.0, noise(n, seed), 0.0)


@pytest.fixture(scope="module")
def large() -> dict[str, tuple[Tensor, MagnitudeIndex]]:
    made = {make.__name__: make(LARGE) for make in (noise, coarse, torch.ones, half_zero)}
    return {name: (delta, MagnitudeIndex.build(delta, KEY)) for name, delta in made.items()}


@pytest.mark.parametrize("make", ["noise", "coarse", "ones", "half_zero"])
def test_above_a_million_entries_the_kept_number_is_within_a_tenth_of_a_percent_and_masks_nest(large, make) -> None:
    delta, index = large[make]
    assert index.in_cells
    masks = [kept(delta, index.threshold(density)) for density in DENSITIES]
    for density, mask in zip(DENSITIES, masks, strict=True):
        assert abs(int(mask.sum()) - density * LARGE) <= 1e-3 * LARGE
    for narrower, wider in itertools.pairwise(masks):
        assert not (narrower & ~wider).any()


@pytest.mark.parametrize("density", DENSITIES)
def test_above_a_million_entries_what_is_kept_is_larger_but_for_one_part_in_2000(large, density: float) -> None:
    delta, index = large["noise"]
    mask = kept(delta, index.threshold(density))
    inside, outside = delta[mask].abs().min(), delta[~mask].abs().max()
    if 0.01 < density < 0.99:  # beyond, cells are wider: they hold a 65,536th of all entries
        assert inside >= outside * (1 - 2**-11)
    assert (delta.abs()[~mask] > inside).sum() <= 1e-3 * LARGE


def test_equal_magnitudes_of_a_large_tensor_are_not_kept_by_position(large) -> None:
    delta, index = large["ones"]
    mask = kept(delta, index.threshold(0.5))
    assert abs(int(mask[: LARGE // 2].sum()) - LARGE / 4) <= 1e-3 * LARGE


def test_cells_stay_few(large) -> None:
    assert all(len(index.keys) <= 40_000 for _, index in large.values())


def test_a_large_tensor_has_ends_too(large) -> None:
    delta, index = large["half_zero"]
    assert index.threshold(0.0) == KEEP_NONE
    assert index.threshold(1.0) == KEEP_ALL
    floor, ceiling = index.band(0.3, 0.1)
    band = kept(delta, floor) & ~kept(delta, ceiling)
    assert abs(int(band.sum()) - 0.3 * LARGE) <= 1e-3 * LARGE


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9])
def test_a_union_of_sorted_and_counted_tensors_is_within_a_tenth_of_a_percent(large, density: float) -> None:
    small = {"v": 2 * coarse(40_000), "x": noise(30), "y": 0.5 * noise(9000)}
    indices = [MagnitudeIndex.build(delta, trim_key("digest", name)) for name, delta in small.items()]
    threshold = MagnitudeIndex.union([large["coarse"][1], *indices]).threshold(density)
    counted = [kept(delta, threshold, name) for name, delta in (small | {"w": large["coarse"][0]}).items()]
    numel = LARGE + 49_030
    assert abs(sum(int(mask.sum()) for mask in counted) - density * numel) <= 1e-3 * numel


def test_the_number_of_threads_changes_no_threshold(large) -> None:
    delta, index = large["coarse"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = MagnitudeIndex.build(delta, KEY)
    finally:
        torch.set_num_threads(before)
    assert [again.threshold(density) for density in DENSITIES] == [index.threshold(density) for density in DENSITIES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numel", [0, 3, 2 * BLOCK + 5])
def test_a_task_vector_is_the_difference_in_float32(numel: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base, parent = (torch.randn(numel, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(task_vector(parent, base), parent.float() - base.float())
