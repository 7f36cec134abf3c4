import itertools
import re
import shutil

import pytest
import torch
from torch import Tensor

from heterosis.checkpoints import tensor_digest
from heterosis.merge import METHODS, Kernel, MagnitudeIndex, ParentTerm, kernel
from heterosis.merge.entries import TIE, signs_and_ties
from heterosis.merge.kernel import Rules, trim_key
from heterosis.merge.magnitude import KEEP_ALL

N = 1500
DTYPES = [torch.float32, torch.bfloat16]
# What needs statistics of its parents is tested with them, in test_informed.
PLAIN = [name for name, method in METHODS.items() if method.evidence is None]
ENTRYWISE = [name for name in PLAIN if isinstance(METHODS[name].combine, str)]
SUMS = [name for name in ENTRYWISE if METHODS[name].combine != "mean"]


def family(dtype: torch.dtype, parents: int = 3, n: int = N) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, generator=generator)
    base[7:9] = torch.tensor([0.0, -0.0])[: len(base[7:9])]
    return base.to(dtype), [(base + 0.1 * torch.randn(n, generator=generator)).to(dtype) for _ in range(parents)]


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Stricter than torch.equal, for which -0.0 is 0.0."""
    return one.dtype == two.dtype and one.shape == two.shape and tensor_digest(one) == tensor_digest(two)


def term(base: Tensor, parent: Tensor, digest: str, weight: float, drop: float, density: float) -> ParentTerm:
    index = MagnitudeIndex.build((parent.float() - base.float()).reshape(-1), trim_key(digest, "w"))
    return ParentTerm(parent, digest, weight, drop, index.threshold(density))


def usual_terms(base: Tensor, parents: list[Tensor], method: str = "dare_ties") -> list[ParentTerm]:
    """As many parents as the method takes; those with a drop rate have a window of rates too."""
    numbers = [("a", 0.7, 0.3, 0.6), ("b", -0.4, 0.0, 0.2), ("c", 1.0, 0.8, 1.0)]
    terms = [term(base, parent, *row) for parent, row in zip(parents, numbers, strict=False)]
    if METHODS[method].prunes == "by_rank":
        terms = [t._replace(epsilon=0.1 if t.drop else 0.0) for t in terms]
    return terms[: METHODS[method].parents[1]]


def run(method: str, base: Tensor, terms: list[ParentTerm], dtype=torch.float32, by: Kernel | None = None, **rest):
    """Merge tensor "w". rest: seed, settings, and what Rules takes."""
    settings = rest.pop("settings", {})
    rules = Rules(rest.pop("seed", 5), **rest)
    return (by or Kernel()).merge(METHODS[method], "w", base, terms, dtype, rules, settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", SUMS)
def test_weight_zero_returns_the_base_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    base, parents = family(dtype)
    terms = [ParentTerm(parent, str(k), 0.0, 0.5) for k, parent in enumerate(parents)]
    merged = run(method, base, terms, dtype)
    assert same_bits(merged, base)
    assert merged.data_ptr() != base.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside weights of 0"])
@pytest.mark.parametrize("method", ENTRYWISE)
def test_one_untouched_parent_is_returned_bit_for_bit(method: str, others: bool, dtype: torch.dtype) -> None:
    base, parents = family(dtype)
    terms = [ParentTerm(parents[0], "a", 1.0, 0.0, KEEP_ALL)]
    if others:
        terms = [ParentTerm(parents[1], "b", 0.0, 0.5), *terms, ParentTerm(parents[2], "c", 0.0)]
    merged = run(method, base, terms, dtype)
    assert same_bits(merged, parents[0])
    assert merged.data_ptr() != parents[0].data_ptr()


def test_linear_of_one_parent_is_that_parent_whatever_its_weight() -> None:
    base, parents = family(torch.float32)
    assert same_bits(run("linear", base, [ParentTerm(parents[0], "a", 0.3)]), parents[0])


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_free_rescaling_factor_applies_at_every_drop_rate_and_weight(drop: float) -> None:
    base, parents = family(torch.float32)
    at_one = run("dare_linear", base, [ParentTerm(parents[0], "a", 1.0, drop)], rescale=2.0)
    nearby = run("dare_linear", base, [ParentTerm(parents[0], "a", 1.0 + 1e-6, drop)], rescale=2.0)
    torch.testing.assert_close(at_one, nearby, rtol=1e-5, atol=1e-5)


def test_rescale_none_leaves_survivors_as_they_are() -> None:
    base, parents = torch.zeros(N), family(torch.float32)[1]
    merged = run("dare_linear", base, [ParentTerm(parents[0], "a", 1.0, 0.5)], rescale="none")
    survived = merged != 0.0
    assert 0.4 < survived.float().mean() < 0.6
    assert same_bits(merged[survived], parents[0][survived])


def test_what_one_parent_draws_does_not_depend_on_the_company() -> None:
    """A copy of the base adds nothing, whatever is dropped from it."""
    base, parents = family(torch.float32, 2)
    alone = run("dare_linear", base, [ParentTerm(parents[0], "a", 0.5, 0.6)])
    accompanied = run("dare_linear", base, [ParentTerm(base, "z", 0.9, 0.1), ParentTerm(parents[0], "a", 0.5, 0.6)])
    assert same_bits(alone, accompanied)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_two_parents_elect_and_average_as_they_do_beside_a_copy_of_the_base(drop: float, dtype: torch.dtype) -> None:
    """Two alone are averaged by a shorter way, to the same bits."""
    base, parents = family(dtype, 2)
    terms = [ParentTerm(parent, digest, 0.7, drop) for parent, digest in zip(parents, "ab", strict=True)]
    for weight in (0.7, -0.3):
        terms[1] = terms[1]._replace(weight=weight)
        alone = run("dare_ties", base, terms, dtype)
        assert same_bits(alone, run("dare_ties", base, [*terms, ParentTerm(base, "c", 0.5)], dtype))


@pytest.mark.parametrize("other", [{"seed": 6}, {"digest": "z"}, {"name": "v"}])
def test_masks_follow_seed_parent_and_tensor(other: dict) -> None:
    base, (parent,) = family(torch.float32, 1)

    def changed(seed: int = 5, digest: str = "a", name: str = "w") -> Tensor:
        terms = [ParentTerm(parent, digest, 1.0, 0.5)]
        return Kernel().merge(METHODS["dare_linear"], name, base, terms, torch.float32, Rules(seed)) != base

    same = (changed() == changed(**other)).float().mean()
    assert same_bits(changed(), changed())
    assert 0.4 < same < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 64, 999])
@pytest.mark.parametrize("method", PLAIN)
def test_the_size_of_a_block_changes_no_bit(method: str, block: int, dtype: torch.dtype, monkeypatch) -> None:
    base, parents = family(dtype, n=200 if block == 1 else N)
    terms = usual_terms(base, parents, method)
    whole = run(method, base, terms, dtype)
    monkeypatch.setattr(kernel, "BLOCK", block)
    assert same_bits(run(method, base, terms, dtype), whole)


@pytest.mark.parametrize("block", [2, 16])
def test_the_majority_is_that_of_the_tensor_not_of_the_block(block: int, monkeypatch) -> None:
    base = torch.zeros(8)
    a = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    b = torch.tensor([-2.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    monkeypatch.setattr(kernel, "BLOCK", block)
    assert run("ties", base, [ParentTerm(a, "a"), ParentTerm(b, "b")])[0] == -2.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("block", [64, 1024, 2048])
def test_ties_take_the_majority_whatever_the_blocks_before_them_elected(seed: int, block: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(-2, 3, (2, 5000), generator=generator).float()
    mass = a + b
    majority = torch.sign(torch.sign(mass).sum())
    elected = torch.where(mass == 0.0, majority, torch.sign(mass))
    agree_a, agree_b = (a * elected > 0.0).float(), (b * elected > 0.0).float()
    expected = (a * agree_a + b * agree_b) / (agree_a + agree_b).clamp(min=1.0)
    monkeypatch.setattr(kernel, "BLOCK", block)
    merged = run("ties", torch.zeros(5000), [ParentTerm(a, "a"), ParentTerm(b, "b")])
    assert torch.equal(merged, expected)


def test_one_sum_tells_signs_and_ties() -> None:
    signs = torch.tensor([[1.0] * 700 + [-1.0] * 200 + [0.0] * 124, [1.0] * 1024, [0.0] * 1024])
    ties = torch.tensor([100, 0, 1024])
    for tie in (TIE, -TIE):
        assert signs_and_ties(signs.sum(dim=1) + ties * tie, tie) == (1524, 1124)


def test_a_result_on_pages_of_its_own_is_a_tensor_like_any_other(monkeypatch) -> None:
    base, parents = family(torch.bfloat16)
    terms = usual_terms(base, parents)
    usual = run("dare_ties", base, terms, torch.bfloat16)
    monkeypatch.setattr("heterosis.merge.pages.OWN_PAGES", 1)
    one, two = (run("dare_ties", base, terms, torch.bfloat16) for _ in range(2))
    assert same_bits(one, usual)
    one.zero_()
    assert same_bits(two, usual)


@pytest.mark.parametrize("method", PLAIN)
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    base, parents = family(torch.bfloat16, n=100_000)  # above the size from which PyTorch splits work
    terms = usual_terms(base, parents, method)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(method, base, terms, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    assert same_bits(*results)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (6, 5), (5, 3, 2)])
@pytest.mark.parametrize("method", [name for name in ENTRYWISE if METHODS[name].entrywise])
def test_a_tensor_keeps_its_shape_and_its_entries_their_numbers(method: str, shape: tuple[int, ...]) -> None:
    n = torch.Size(shape).numel()
    base, parents = family(torch.float32, n=n)
    terms = usual_terms(base, parents, method)
    flat = run(method, base, terms)
    shaped = run(method, base.reshape(shape), [t._replace(tensor=t.tensor.reshape(shape)) for t in terms])
    assert shaped.shape == shape
    assert same_bits(shaped.reshape(-1), flat)


def test_a_transposed_tensor_counts_its_elements_row_by_row() -> None:
    base, parents = (x.reshape(30, 50) for x in family(torch.float32)[1][:2])
    swapped = [ParentTerm(parents.t().contiguous().t(), "a", 0.5, 0.5)]
    assert same_bits(run("dare_linear", base, swapped), run("dare_linear", base, [ParentTerm(parents, "a", 0.5, 0.5)]))


@pytest.mark.parametrize("method", PLAIN)
def test_rounding_happens_once_at_the_end(method: str) -> None:
    base, parents = family(torch.bfloat16)
    terms = usual_terms(base, parents, method)
    assert same_bits(run(method, base, terms, torch.bfloat16), run(method, base, terms).bfloat16())


@pytest.mark.parametrize("method", PLAIN)
def test_sources_are_left_as_they_were(method: str) -> None:
    base, parents = family(torch.float32)
    copies = [tensor.clone() for tensor in (base, *parents)]
    run(method, base, usual_terms(base, parents, method))
    assert all(same_bits(x, y) for x, y in zip((base, *parents), copies, strict=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) to compile with")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it imports its compiler
def test_the_compiled_path_gives_the_same_bits_for_every_method_and_dtype(monkeypatch) -> None:
    base, parents = family(torch.bfloat16, n=5000)  # whole rows and a rest, in several blocks
    monkeypatch.setattr(kernel, "LARGE_BLOCK", 2048)
    parents[1] = parents[1].float() + 1e-4  # one variant per method then reads both dtypes
    terms = usual_terms(base, parents)
    terms[2] = terms[2]._replace(weight=0.0)
    compiled = Kernel(compiled=True)
    for method, dtype in itertools.product(ENTRYWISE, DTYPES):
        assert same_bits(run(method, base, terms, dtype, compiled), run(method, base, terms, dtype)), (method, dtype)


def test_without_a_working_compiler_the_same_bits_come_with_one_warning(monkeypatch) -> None:
    def broken(function):
        def fail(*arguments):
            raise RuntimeError("\nC++ compile error\nand pages more")

        return fail

    base, parents = family(torch.float32)
    terms = usual_terms(base, parents)
    monkeypatch.setattr(kernel, "_compile", broken)
    compiled = Kernel(compiled=True)
    with pytest.warns(UserWarning, match=re.escape("uncompiled (same results, slower): C++ compile error")) as caught:
        results = [run(method, base, terms, by=compiled) for method in ENTRYWISE]
    assert len(caught) == 1
    assert all(same_bits(x, run(method, base, terms)) for x, method in zip(results, ENTRYWISE, strict=True))


def test_an_error_of_the_maths_is_not_taken_for_a_missing_compiler() -> None:
    base, parents = family(torch.float32)
    with pytest.raises(RuntimeError, match="size"):
        run("task_arithmetic", base, [ParentTerm(parents[0][:-1], "a", 0.5)])


CHECKSUMS = {
    "linear": "5354649a78c8bd4a",
    "task_arithmetic": "7804dc40437a52de",
    "magnitude": "bf6976a060906cf1",
    "ties": "4d9d5013fe0066a8",
    "dare_linear": "7804dc40437a52de",
    "dare_ties": "4d9d5013fe0066a8",
    "della_linear": "d58bbe9ffaa622cf",
    "della": "b79b74a50e97b6fd",
    "breadcrumbs": "bf6976a060906cf1",
    "breadcrumbs_ties": "4d9d5013fe0066a8",
    "lines": "7804dc40437a52de",
    "passthrough": "5354649a78c8bd4a",
}


@pytest.mark.parametrize("method", ENTRYWISE)
def test_results_are_frozen(method: str) -> None:
    """A change that is not meant to alter results leaves these digests as they are."""
    steps = torch.arange(1000)
    base = (steps % 17 - 8) / 8
    parents = [base + (steps * factor % 23 - 11) / 64 for factor in (3, 5, 7)]
    merged = run(method, base, usual_terms(base, parents, method), seed=0)
    assert tensor_digest(merged)[:16] == CHECKSUMS[method]
