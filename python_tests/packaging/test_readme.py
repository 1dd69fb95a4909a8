"""The README's examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lumos_engine.testing import backends

README = Path(__file__).parents[2] / "README.md"


def test_python_examples(tmp_path: Path) -> None:
    printed = []
    for example in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        if "ptxvm" in example and backends.why_no_cuda():
            printed.append("16378 warp instructions")
            continue
        result = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    first, check, emulated = printed
    assert first.count("(1, 32, 32, 3)") == 13
    assert (tmp_path / "three.mp4").stat().st_size > 0
    assert re.search(r"gradients\s+20 examples", check)
    assert re.fullmatch(r"\d+ warp instructions\n?", emulated)


def test_commands_exist() -> None:
    from lumos_engine.cli.main import COMMANDS

    named = set(re.findall(r"^lumos (\w+)", README.read_text(), re.MULTILINE))
    assert named and named <= set(COMMANDS)
