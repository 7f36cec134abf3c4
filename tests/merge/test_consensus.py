import pytest
import torch
from torch import Tensor

from heterosis.merge.consensus import agreeing, disjoint_mean, disjoint_sum, elect, total


def row(*values: float) -> Tensor:
    return torch.tensor(values)


UPDATES = [row(1.0, -2.0, 3.0, 0.0, 1.0), row(2.0, 1.0, -1.0, 0.0, -1.0), row(-1.0, -3.0, 0.0, 0.0, 0.0)]


def test_the_total_adds_in_the_given_order() -> None:
    big, small = row(1e8), row(1.0)
    assert total([big, -big, small]).item() == 1.0
    assert total([small, big, -big]).item() == 0.0


def test_the_elected_sign_carries_the_larger_mass() -> None:
    assert elect(total(UPDATES), torch.tensor(1.0)).tolist() == [1, -1, 1, 1, 1]


@pytest.mark.parametrize("tie", [1.0, 0.0, -1.0])
def test_cancelled_mass_takes_the_sign_of_ties(tie: float) -> None:
    assert elect(total(UPDATES), torch.tensor(tie))[3:].tolist() == [tie, tie]


@pytest.mark.parametrize("factor", [1.0, 4096.0])
def test_only_entries_of_the_elected_sign_agree(factor: float) -> None:
    sign = factor * row(1.0, 1.0, -1.0, 0.0, -1.0, 0.0)
    assert agreeing(row(0.5, -0.5, -0.1, 2.0, 0.0, 0.0), sign).tolist() == [True, False, True, False, False, False]


def test_the_smallest_number_agrees_too() -> None:
    assert agreeing(row(1e-45, -1e-45), row(1.0, -1.0)).all()


def chosen(updates: list[Tensor], tie: float) -> list[Tensor]:
    sign = elect(total(updates), torch.tensor(tie))
    return [agreeing(update, sign) for update in updates]


def test_the_disjoint_mean_divides_by_the_shares_that_agree() -> None:
    kept = chosen(UPDATES, 1.0)
    # Entry by entry: (1+2)/2, (-2-3)/2, 3/1, nothing agrees, 1/1 (the tie goes to +).
    assert disjoint_mean(UPDATES, kept, [1.0, 1.0, 1.0]).tolist() == [1.5, -2.5, 3.0, 0.0, 1.0]
    # Shares 1, 4, 2: (1+2)/(1+4), (-2-3)/(1+2), 3/1, nothing, 1/1.
    weighted = disjoint_mean(UPDATES, kept, [1.0, 4.0, 2.0])
    assert weighted.tolist() == pytest.approx([3 / 5, -5 / 3, 3.0, 0.0, 1.0])


def test_the_disjoint_sum_divides_by_nothing() -> None:
    assert disjoint_sum(UPDATES, chosen(UPDATES, -1.0)).tolist() == [3.0, -5.0, 3.0, 0.0, -1.0]


def test_flipping_all_signs_flips_the_result() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(500, generator=generator) for _ in range(3)]
    flipped = [-update for update in updates]
    shares = [1.0, 1.0, 1.0]
    there = disjoint_mean(updates, chosen(updates, 1.0), shares)
    back = disjoint_mean(flipped, chosen(flipped, -1.0), shares)
    assert torch.equal(there, -back)
