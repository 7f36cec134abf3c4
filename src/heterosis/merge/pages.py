"""Memory for results, used again once nothing refers to what it held.

Having the system clear fresh pages for every result costs about as much as merging into them does.
"""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor

from heterosis.checkpoints.pages import OWN_PAGES, fresh_pages

# Results that nothing refers to whose memory is kept at most.
KEPT = 4


class Pages:
    """Hands out tensors on huge pages. Its memory is free once nobody holds it or a view of it."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def empty(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor; one that is small or not on a CPU comes from torch's own allocator."""
        size = shape.numel() * dtype.itemsize
        if device.type != "cpu" or size < OWN_PAGES:
            return torch.empty(shape, dtype=dtype, device=device)
        pages = self._take(size)
        # The tensor's storage holds this view until the last tensor on it is gone.
        view = memoryview(pages)
        weakref.finalize(view, self._give_back, pages).atexit = False
        return torch.frombuffer(view, dtype=dtype, count=shape.numel()).reshape(shape)

    def _take(self, size: int) -> mmap.mmap:
        """The smallest free pages that are large enough. Where none are, fresh ones replace others that are free.

        So there are never more than results were in use at once. Another thread may free some meanwhile, not take any.
        """
        fitting = [pages for pages in tuple(self._free) if len(pages) >= size]
        if fitting:
            found = min(fitting, key=len)
            self._free.remove(found)
            return found
        if self._free:
            self._free.pop(0)
        return fresh_pages(size)

    def _give_back(self, pages: mmap.mmap) -> None:
        if len(self._free) < KEPT:
            self._free.append(pages)
