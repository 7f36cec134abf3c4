"""Memory in pages of its own, which go back to the system as soon as nobody needs them."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

# Bytes from which a tensor is worth pages of its own, and the size of a huge page.
OWN_PAGES, HUGE_PAGE = 2**20, 2**21


def fresh_pages(size: int) -> mmap.mmap:
    """Huge pages where the system has them: having it clear small ones costs as much as reading or merging into them.

    The C library would keep tens of megabytes for each thread that used tensors of such sizes.
    """
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    try:
        pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for a tensor of {size} bytes") from error
    with contextlib.suppress(AttributeError, OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def fresh_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, a large one in pages of its own."""
    count = torch.Size(shape).numel()
    if count * dtype.itemsize < OWN_PAGES:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(fresh_pages(count * dtype.itemsize), dtype=dtype, count=count).reshape(shape)
