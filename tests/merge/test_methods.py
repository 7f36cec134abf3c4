"""Each method against numbers worked by hand, and against PEFT where both mean the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from heterosis.merge import METHODS, Kernel, MagnitudeIndex, ParentTerm
from heterosis.merge.kernel import trim_key


def merge(method: str, base: Tensor, parents: dict[str, Tensor], weights: list[float], **rest: Any) -> Tensor:
    """Merge one float32 tensor "w" with seed 0. rest: density, drop, divisor."""
    terms = []
    density = rest.pop("density", 1.0)
    drop = rest.pop("drop", 0.0)
    for (digest, parent), weight in zip(parents.items(), weights, strict=True):
        index = MagnitudeIndex.build((parent - base).reshape(-1), trim_key(digest, "w"))
        terms.append(ParentTerm(parent, digest, weight, drop, index.threshold(density)))
    return Kernel().merge(METHODS[method], "w", base, terms, torch.float32, seed=0, **rest)


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
    assert {name: method.genes for name, method in METHODS.items()} == {
        "linear": ("weight",),
        "task_arithmetic": ("weight",),
        "ties": ("weight", "density"),
        "dare_linear": ("weight", "drop"),
        "dare_ties": ("weight", "density", "drop"),
    }
    assert all(name == method.name for name, method in METHODS.items())


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
