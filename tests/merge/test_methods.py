"""Each method against numbers worked by hand, and against PEFT where both mean the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from heterosis.merge import METHODS, Kernel, MagnitudeIndex, ParentTerm
from heterosis.merge.kernel import Rules, trim_key
from heterosis.merge.methods import depth_factor


def merge(method: str, base: Tensor, parents: dict[str, Tensor], weights: list[float], **rest: Any) -> Tensor:
    """Merge one float32 tensor "w" with seed 0. rest: density, gamma, drop, epsilon, settings, and what Rules takes."""
    terms = []
    density = rest.pop("density", 1.0)
    drop, gamma, epsilon = rest.pop("drop", 0.0), rest.pop("gamma", 0.0), rest.pop("epsilon", 0.0)
    settings = rest.pop("settings", {})
    for (digest, parent), weight in zip(parents.items(), weights, strict=True):
        index = MagnitudeIndex.build((parent - base).reshape(-1), trim_key(digest, "w"))
        floor, ceiling = index.band(density, gamma)
        terms.append(ParentTerm(parent, digest, weight, drop, floor, ceiling, epsilon))
    return Kernel().merge(METHODS[method], "w", base, terms, torch.float32, Rules(0, **rest), settings)


# The golden family. Task vectors:  a: [ 4, -2,  1,  0, -8,  2]
#                                   b: [ 2,  4, -1,  1, -4, -6]
BASE = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
A = torch.tensor([5.0, -1.0, 2.0, 0.0, -8.0, 2.0])
B = torch.tensor([3.0, 5.0, 0.0, 1.0, -4.0, -6.0])
GOLDEN = {"a": A, "b": B}


def test_linear_worked_by_hand() -> None:
    # (1·A + 3·B) / 4, entry by entry: (5+9)/4, (-1+15)/4, (2+0)/4, (0+3)/4, (-8-12)/4, (2-18)/4.
    merged = merge("linear", BASE, GOLDEN, [1.0, 3.0])
    assert merged.tolist() == [3.5, 3.5, 0.5, 0.75, -5.0, -4.0]


def test_task_arithmetic_worked_by_hand() -> None:
    # base + 0.5·a - 2·b: 1+2-4, 1-1-8, 1+.5+2, 0+0-2, 0-4+8, 0+1+12.
    merged = merge("task_arithmetic", BASE, GOLDEN, [0.5, -2.0])
    assert merged.tolist() == [-1.0, -8.0, 3.5, -2.0, 4.0, 13.0]


def test_ties_worked_by_hand() -> None:
    # Density 2/3 keeps the 4 largest of 6. a keeps 4, -2, -8, 2; b keeps 2, 4, -4, -6.
    # Times λ = (1, 0.5):  a: [4, -2, 0, 0, -8,  2]
    #                      b: [1,  2, 0, 0, -2, -3]
    # Mass:                   [5,  0, 0, 0, -10, -1]: one + and two - were elected, so the tie of entry 1 goes to -.
    # Means of the agreeing:  (4+1)/2, -2/1, none, none, (-8-2)/2, -3/1.
    merged = merge("ties", BASE, GOLDEN, [1.0, 0.5], density=2 / 3)
    assert merged.tolist() == [3.5, -1.0, 1.0, 0.0, -5.0, -3.0]


# The masks of seed 0, tensor "w", as the hash on unbounded integers gives them:
#   u for a: 0.19 0.32 0.17 0.18 0.52 0.37    at p = 0.5 a keeps entry 4;        at p = 0.25 entries 1, 4, 5
#   u for b: 0.07 0.31 0.10 0.79 0.44 0.64    at p = 0.5 b keeps entries 3, 5;   at p = 0.25 entries 1, 3, 4, 5


def test_dare_linear_worked_by_hand() -> None:
    # Survivors are scaled by 1/(1-0.5) = 2:  a: [0, 0, 0, 0, -16, 0]   b: [0, 0, 0, 2, 0, -12]
    # base + 0.5·a + 1·b: 1, 1, 1, 0+2, 0-8, 0-12.
    merged = merge("dare_linear", BASE, GOLDEN, [0.5, 1.0], drop=0.5)
    assert merged.tolist() == [1.0, 1.0, 1.0, 2.0, -8.0, -12.0]


def test_dare_ties_worked_by_hand() -> None:
    # Density 2/3 keeps entries 0, 1, 4, 5 of both (as above); p = 0.25 then drops entry 0 of both.
    # λ = 0.75, and 0.75/(1-0.25) = 1:  a: [0, -2, 0, 0, -8,  2]
    #                                   b: [0,  4, 0, 0, -4, -6]
    # Mass: [0, 2, 0, 0, -12, -4]. Means of the agreeing: none, 4/1, none, none, (-8-4)/2, -6/1.
    merged = merge("dare_ties", BASE, GOLDEN, [0.75, 0.75], density=2 / 3, drop=0.25)
    assert merged.tolist() == [1.0, 5.0, 1.0, 0.0, -6.0, -6.0]


@pytest.mark.parametrize(
    ("divisor", "expected"),
    [
        # Entries 0 and 4, where both agree, with λ = (1, 0.5): sums 5 and -10, mass as in the TIES example with d = 1.
        ("count", [3.5, -5.0]),
        ("weight", [1 + 5 / 1.5, -10 / 1.5]),
        ("none", [6.0, -10.0]),
    ],
)
def test_the_sum_is_divided_by_count_by_weight_or_by_nothing(divisor: str, expected: list[float]) -> None:
    merged = merge("ties", BASE, GOLDEN, [1.0, 0.5], divisor=divisor)
    assert merged[[0, 4]].tolist() == pytest.approx(expected)


def test_a_weighted_mean_survives_weights_that_nearly_cancel() -> None:
    """The share is |λ|, so [.5, -.499] on task vectors [1, -1] cannot blow up."""
    merged = merge("ties", torch.zeros(1), {"a": torch.ones(1), "b": -torch.ones(1)}, [0.5, -0.499], divisor="weight")
    assert merged.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("others", "expected"),
    [((1.0, 1.0, -1.0), 2.0), ((-1.0, -1.0, 1.0), -2.0), ((1.0, -1.0, 0.0), 0.0)],
    ids=["most elected +", "most elected -", "no majority"],
)
def test_an_election_that_ties_takes_the_majority_sign_of_the_tensor(others, expected: float) -> None:
    """The first entry ties, 2 against -2; the majority counts entries, not their mass."""
    base = torch.zeros(4)
    parents = {"a": torch.tensor([2.0, *others]), "b": torch.tensor([-2.0, *(10 * o for o in others)])}
    assert merge("ties", base, parents, [1.0, 1.0])[0] == expected


def test_a_method_reads_the_genes_of_its_stages() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    for method in METHODS.values():
        assert ("density" in method.genes) == method.trims, method.name
        assert ("gamma" in method.genes) == (method.prunes == "small_and_large"), method.name
        assert ("epsilon" in method.genes) == (method.prunes == "by_rank"), method.name
        assert method.summary
        assert method.source


# Magnitudes of a: 8 (entry 4), 4 (0), 2 (1 and 5), 1 (2), 0 (3); of b: 6 (5), 4 (1 and 4), 2 (0), 1 (2 and 3).


def test_magnitude_worked_by_hand() -> None:
    # Density 1/3 keeps two entries: a keeps 4 and -8; b keeps -6 and one of its two 4s.
    merged = merge("magnitude", BASE, {"a": A}, [0.5], density=1 / 3)
    assert merged.tolist() == [1.0 + 2.0, 1.0, 1.0, 0.0, -4.0, 0.0]
    merged = merge("magnitude", BASE, {"a": A}, [0.5], density=1 / 3, settings={"prune_rescale": True})
    assert merged.tolist() == [1.0 + 2.0, 1.0, 1.0, 0.0, -4.0, 0.0]  # the builder gives the factor with the term


def test_breadcrumbs_worked_by_hand() -> None:
    # gamma 1/6 leaves out the largest entry of six, density 1/2 keeps the next three: of a that is 4, -2 and 2.
    merged = merge("breadcrumbs", BASE, {"a": A}, [0.5], density=0.5, gamma=1 / 6)
    assert merged.tolist() == [1.0 + 2.0, 1.0 - 1.0, 1.0, 0.0, 0.0, 1.0]


def test_breadcrumbs_leave_out_fewer_large_entries_where_density_asks_for_them() -> None:
    # Density 5/6 and gamma 1/2 are more than the whole: one entry goes, the largest.
    merged = merge("breadcrumbs", BASE, {"a": A}, [0.5], density=5 / 6, gamma=0.5)
    assert merged.tolist() == [1.0 + 2.0, 1.0 - 1.0, 1.5, 0.0, 0.0, 1.0]


def test_breadcrumbs_ties_worked_by_hand() -> None:
    # a keeps [4, -2, 0, 0, 0, 2]; b without its 6 keeps 4, -4 and 2: [2, 4, 0, 0, -4, 0].
    # Mass [6, 2, 0, 0, -4, 2]: means of the agreeing (4+2)/2, 4/1, none, none, -4/1, 2/1.
    merged = merge("breadcrumbs_ties", BASE, GOLDEN, [1.0, 1.0], density=0.5, gamma=1 / 6)
    assert merged.tolist() == [4.0, 5.0, 1.0, 0.0, -4.0, 2.0]


def test_della_linear_worked_by_hand() -> None:
    # One row of two entries: |δ| = 1 has rank 0 and is dropped with p + ε = 0.75, |δ| = 8 with p - ε = 0.25.
    # u for a: 0.19, 0.32: the first entry (0.19 < 0.75) goes, the second (0.32 >= 0.25) stays, divided by 0.75.
    merged = merge("della_linear", torch.zeros(2), {"a": torch.tensor([1.0, 8.0])}, [1.5], drop=0.5, epsilon=0.25)
    assert merged.tolist() == [0.0, 16.0]


def test_della_elects_signs_as_ties_does() -> None:
    base = torch.zeros(2)
    parents = {"a": torch.tensor([1.0, 8.0]), "b": torch.tensor([0.0, -2.0])}
    merged = merge("della", base, parents, [1.5, 1.0], drop=0.5, epsilon=0.25)
    assert merged[1] == 16.0


def test_della_without_a_window_is_dare() -> None:
    base, parents = random_family()
    for ours, theirs in (("della_linear", "dare_linear"), ("della", "dare_ties")):
        merged = merge(ours, base, parents, [0.7, -0.2, 0.4], drop=0.3)
        torch.testing.assert_close(merged, merge(theirs, base, parents, [0.7, -0.2, 0.4], drop=0.3))


def test_della_keeps_the_expectation_entry_by_entry() -> None:
    base = torch.zeros(64)
    delta = torch.linspace(-1.0, 2.0, 64)
    method, draws = METHODS["della_linear"], 3000
    total = torch.zeros(64, dtype=torch.float64)
    for seed in range(draws):
        terms = [ParentTerm(delta, "a", 1.0, 0.6, epsilon=0.3)]
        total += Kernel().merge(method, "w", base, terms, torch.float32, Rules(seed)).double()
    # Standard error of an entry is |δ| sqrt(p_i / (1 - p_i) / draws), at most 0.04 |δ|; five of them.
    assert ((total / draws - delta).abs() <= 5 * delta.abs() * 0.06 + 1e-9).all()


def test_lines_is_task_arithmetic_with_the_scale_of_its_depth() -> None:
    factors = [depth_factor({"scale": 2.0, "alpha": 0.5, "beta": 0.25}, depth, 5) for depth in range(5)]
    assert factors == [1.0, 1.125, 1.25, 1.375, 1.5]
    base, parents = random_family()
    merged = merge("lines", base, parents, [0.4, 0.2, 0.1], settings={"scale": 2.0})
    torch.testing.assert_close(merged, merge("task_arithmetic", base, parents, [0.8, 0.4, 0.2]))


@pytest.mark.parametrize(
    ("election", "expected"),
    [
        # δ = 2 and -3 with λ = 2 and 1: weighted mass 4 - 3 elects +, unweighted mass 2 - 3 elects -.
        ("weighted", 4.0),
        ("unweighted", -3.0),
    ],
)
def test_an_election_counts_votes_with_or_without_weights(election: str, expected: float) -> None:
    parents = {"a": torch.tensor([2.0]), "b": torch.tensor([-3.0])}
    assert merge("ties", torch.zeros(1), parents, [2.0, 1.0], election=election).item() == expected


def test_an_election_by_frequency_counts_heads() -> None:
    parents = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0]), "c": torch.tensor([-9.0])}
    assert merge("ties", torch.zeros(1), parents, [1.0, 1.0, 1.0], election="frequency").item() == 1.0
    assert merge("ties", torch.zeros(1), parents, [1.0, 1.0, 1.0], election="unweighted").item() == -9.0


def test_ties_of_an_election_may_go_to_plus() -> None:
    base = torch.zeros(3)
    parents = {"a": torch.tensor([2.0, -1.0, -1.0]), "b": torch.tensor([-2.0, -1.0, -1.0])}
    assert merge("ties", base, parents, [1.0, 1.0])[0] == -2.0
    assert merge("ties", base, parents, [1.0, 1.0], majority=False)[0] == 2.0


def test_normalize_divides_by_the_sum_of_weights() -> None:
    base, parents = random_family()
    merged = merge("task_arithmetic", base, parents, [1.0, 2.0, 1.0], settings={"normalize": True})
    torch.testing.assert_close(merged, merge("linear", base, parents, [1.0, 2.0, 1.0]))


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude", "breadcrumbs", "slerp", "karcher", "sce", "tsv"])
def test_dare_stands_in_front_of_any_method(method: str) -> None:
    """Its masks are those of dare_linear, so dropping first by hand gives the same merge."""
    base, parents = random_family(2)
    thinned = {name: merge("dare_linear", base, {name: parent}, [1.0], drop=0.4) for name, parent in parents.items()}
    merged = merge(method, base, parents, [0.6, 0.4], drop=0.4)
    expected = merge(method, base, thinned, [0.6, 0.4])
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(merged, merge(method, base, parents, [0.6, 0.4]))


def random_family(count: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 30, generator=generator)
    return base, {str(k): base + 0.1 * torch.randn(40, 30, generator=generator) for k in range(count)}


def test_equal_weights_make_dare_ties_without_drop_ties() -> None:
    base, parents = random_family()
    weights = [0.7, 0.7, 0.7]
    ties = merge("ties", base, parents, weights, density=0.3)
    assert torch.equal(ties, merge("dare_ties", base, parents, weights, density=0.3, drop=0.0))


def test_dare_linear_without_drop_is_task_arithmetic() -> None:
    base, parents = random_family()
    weights = [0.7, -0.2, 0.4]
    assert torch.equal(merge("dare_linear", base, parents, weights), merge("task_arithmetic", base, parents, weights))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_agrees_with_peft(density: float) -> None:
    """PEFT elects before weighting, which is the same for equal weights."""
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, parents = random_family()
    deltas = [parent - base for parent in parents.values()]
    theirs = base + peft.ties(deltas, torch.full((3,), 0.6), density)
    torch.testing.assert_close(merge("ties", base, parents, [0.6] * 3, density=density), theirs)


def test_task_arithmetic_agrees_with_peft() -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, parents = random_family()
    weights = [0.6, -0.3, 1.1]
    theirs = base + peft.task_arithmetic([parent - base for parent in parents.values()], torch.tensor(weights))
    torch.testing.assert_close(merge("task_arithmetic", base, parents, weights), theirs)


def test_trimming_one_parent_agrees_with_peft() -> None:
    """With a single parent every election is won, so TIES is PEFT's magnitude pruning."""
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, parents = random_family(1)
    theirs = base + peft.magnitude_prune([parents["0"] - base], torch.tensor([0.8]), 0.35)
    torch.testing.assert_close(merge("ties", base, parents, [0.8], density=0.35), theirs)


@pytest.mark.parametrize("election", ["unweighted", "frequency"])
@pytest.mark.parametrize("weights", [[0.6, 0.6, 0.6], [1.0, 0.3, 0.8]])
def test_ties_agrees_with_peft_for_any_weights(election: str, weights: list[float]) -> None:
    """PEFT elects by the trimmed task vectors themselves, by their mass or by their signs, and gives ties to +."""
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, parents = random_family()
    deltas = [parent - base for parent in parents.values()]
    sign_method = "total" if election == "unweighted" else "frequency"
    theirs = base + peft.ties(deltas, torch.tensor(weights), 0.4, sign_method)
    ours = merge("ties", base, parents, weights, density=0.4, election=election, majority=False)
    torch.testing.assert_close(ours, theirs)


def test_magnitude_pruning_agrees_with_peft() -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, parents = random_family()
    weights = [0.6, -0.3, 1.1]
    theirs = base + peft.magnitude_prune([parent - base for parent in parents.values()], torch.tensor(weights), 0.35)
    torch.testing.assert_close(merge("magnitude", base, parents, weights, density=0.35), theirs)
