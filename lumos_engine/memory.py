"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Let this process keep freed memory up to 1 GiB a block, instead of giving it back to the operating system.

    torch allocates anew whatever a step produces. glibc returns large blocks at once when they are freed, so each step
    has the kernel clear the same gigabytes again, page by page: a fifth of a training step on a CPU. The price is that
    the process stays as large as it once was, and that blocks of other sizes leave holes: 2 % of a training step, more
    where a program has few blocks. ``lumos`` does this for its commands; programs that train or generate
    with the library on a CPU call it once, before the first step.

    Returns:
        Whether the C library was told: False without glibc, whose option this is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
