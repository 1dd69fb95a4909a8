"""The choice of instruction set, and the thread pool under several callers and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lumos_engine._C as extension
from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.testing import tolerances

ISAS = extension.available_isas()


@pytest.mark.parametrize("name", ISAS)
def test_the_environment_lowers_the_instruction_set(name: str) -> None:
    code = "import lumos_engine._C as extension; print(extension.cpu_isa())"
    environment = {**os.environ, "LUMOS_CPU_ISA": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_an_unknown_instruction_set_is_named() -> None:
    code = "import lumos_engine._C as extension; print(extension.cpu_isa())"
    environment = {**os.environ, "LUMOS_CPU_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"LUMOS_CPU_ISA is 'sse9'; this build and processor allow {', '.join(ISAS)}" in done.stderr


NUM_THREADS = """
import os, torch
from lumos_engine import SequenceLayout, Text, ops
torch.set_num_threads(2)
torch.ones(1 << 22).add_(1)
before = len(os.listdir("/proc/self/task"))
q = torch.ones(130, 2, 32)
ops.block_attention(q, q, q, SequenceLayout.from_segments([[Text(130)]]))
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_torch_threads_do_the_work() -> None:
    """Threads of our own would share the cores with torch's, which spin for a while after each of torch's operations."""
    done = subprocess.run([sys.executable, "-c", NUM_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_callers_on_several_threads_share_the_pool() -> None:
    layout = SequenceLayout.from_segments([[Text(70), Frame(9, 9), Frame(9, 9)]] * 2)
    q, k, v = torch.randn(3, layout.num_tokens, 4, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = ops.block_attention(q, k, v, layout)[0]
        with ThreadPoolExecutor(4) as callers:
            for out in callers.map(lambda _: ops.block_attention(q, k, v, layout)[0], range(16)):
                tolerances.assert_bitwise_equal(out, expected)
    finally:
        torch.set_num_threads(before)


FORKED = """
import os, torch
from lumos_engine import SequenceLayout, Text, ops
torch.set_num_threads(2)
layout = SequenceLayout.from_segments([[Text(130)]])
q = torch.ones(130, 2, 32)  # so few elements that torch itself starts no threads
{before}
child = os.fork()
if child == 0:
    os._exit(0 if ops.block_attention(q, q, q, layout)[0].eq(1).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(
    "before",  # either starts threads that a forked child does not have
    ["ops.block_attention(q, q, q, layout)", "torch.ones(1 << 22).add_(1)"],
)
def test_a_forked_child_starts_a_pool_of_its_own(before: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
