"""Memory that results share: never while anything can see it, again when nothing can."""

from __future__ import annotations

import torch
from torch import Tensor

from heterosis.checkpoints.pages import OWN_PAGES
from heterosis.merge.pages import KEPT, Pages

ENTRIES = OWN_PAGES // 4


def made(pages: Pages, entries: int = ENTRIES) -> Tensor:
    return pages.empty(torch.Size([entries]), torch.float32, torch.device("cpu"))


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    pages = Pages()
    tensor = made(pages)
    address = tensor.data_ptr()
    del tensor
    assert made(pages).data_ptr() == address


def test_a_view_or_an_array_of_a_tensor_keeps_its_memory() -> None:
    pages = Pages()
    tensor = made(pages)
    address, view = tensor.data_ptr(), tensor.view(-1, 4)[1:]
    del tensor
    assert made(pages).data_ptr() != address
    array = view.numpy()
    del view
    kept = [made(pages) for _ in range(2)]
    assert address not in [each.data_ptr() for each in kept]
    array[:] = 1.0
    for each in kept:
        each.zero_()
    assert (array == 1.0).all()


def test_results_that_are_held_stay_as_they_are() -> None:
    pages = Pages()
    held = [made(pages).fill_(number) for number in range(2 * KEPT)]
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(held))


def test_a_larger_result_takes_the_place_of_a_free_one_and_a_smaller_one_fits_in() -> None:
    pages = Pages()
    made(pages)
    large = made(pages, 4 * ENTRIES)
    address = large.data_ptr()
    del large
    assert made(pages).data_ptr() == address


def test_no_more_memory_is_kept_than_a_few_results() -> None:
    pages = Pages()
    held = [made(pages) for _ in range(3 * KEPT)]
    addresses = {tensor.data_ptr() for tensor in held}
    held.clear()
    again = [made(pages) for _ in range(KEPT)]
    assert {tensor.data_ptr() for tensor in again} <= addresses
    assert len(pages._free) == 0


def test_the_last_reference_may_go_after_the_pool() -> None:
    pages = Pages()
    tensor = made(pages).fill_(2.0)
    del pages
    assert bool((tensor == 2.0).all())
