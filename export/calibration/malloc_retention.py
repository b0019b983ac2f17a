"""Memory that one step frees and the next one needs again stays with the process."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3), malloc.h
_KEPT = 2**31 - 1
_LARGEST_KEPT = 32 * 2**20  # glibc takes no more
_DEFAULT = 128 * 2**10


@contextlib.contextmanager
def malloc_retained() -> Generator[None]:
    """Inside, glibc's ``malloc`` gives no memory back to the system; after it, all it can.

    By default every tensor of some megabytes is mapped, filled with zeros page by page, and
    unmapped, in every step anew. On systems without glibc nothing is done.

    Source: mallopt(3), ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in names) else None
