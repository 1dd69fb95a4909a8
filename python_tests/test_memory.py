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
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**24) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_equal_rounds_come_to_need_no_fresh_page() -> None:
    def faults(keep: bool) -> int:
        """Pages that the last of eight equal rounds had to ask the kernel for."""
        program = PROGRAM.format(keep=keep)
        run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert faults(keep=True) < 100 < faults(keep=False)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
