"""Freed memory stays with the process that asked for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from lumos_engine.memory import keep_freed_memory

PROGRAM = """
import resource, torch
from lumos_engine.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a, b = torch.ones(2**24), torch.ones(2**23)
    del a
    c = torch.ones(2**22)
    del b, c
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


END = """
import ctypes
from lumos_engine.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes, libc.malloc.argtypes, libc.sbrk.argtypes = [ctypes.c_void_p], [ctypes.c_size_t], [ctypes.c_ssize_t]
keep_freed_memory()
block = libc.malloc(2**28)
before = libc.sbrk(0)
libc.free(block)
print(before - libc.sbrk(0))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_the_end_of_the_heap_stays() -> None:
    """The block that is freed is the last, which is given back unless told otherwise."""
    run = subprocess.run([sys.executable, "-c", END], check=True, capture_output=True, text=True)
    assert int(run.stdout) == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_equal_rounds_come_to_need_no_fresh_page() -> None:
    def faults(keep: bool) -> int:
        """Pages that the last of thirty equal rounds had to ask the kernel for."""
        program = PROGRAM.format(keep=keep)
        run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert faults(keep=True) < 100 < faults(keep=False)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
