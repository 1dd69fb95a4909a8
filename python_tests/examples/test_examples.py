"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_kernel_example_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(EXAMPLES / "test_your_kernel.py")]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
