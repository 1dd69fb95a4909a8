"""The extension imports and computes without torch; it builds on every interpreter that is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CPU = (-1, 0, 1)  # no GPU, no stream, one thread

WITHOUT_TORCH = """
import sys
for name in ("torch", "numpy"):
    sys.modules[name] = None  # any import of it now fails
import lumos_engine
import lumos_engine._C as extension
assert extension.cpu_isa() in extension.available_isas()

import array
row = array.array("f", [2.0] * 32), array.array("f", [0.0])
out, lse = array.array("f", [0.0] * 32), array.array("f", [0.0])
tensor = lambda values, shape, strides: (values.buffer_info()[0], 0, shape, strides)
wide, narrow = ((1, 1, 32), (32, 32, 1)), ((1, 1), (1, 1))
side = tensor(row[0], *wide), tensor(row[1], *narrow)
extension.merge_attention(*side, *side, tensor(out, *wide), tensor(lse, *narrow), (-1, 0, 1))  # the CPU, no stream, one thread
assert list(out) == [2.0] * 32, list(out)
assert abs(lse[0] - 0.6931472) < 1e-6, lse[0]
print("good")
"""


def interpreters() -> list[str]:
    """One interpreter of each Python version from 3.10 up, from PATH and pyenv."""
    roots = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    roots += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    found: dict[str, str] = {}
    for minor in range(10, 16):
        for folder in roots:
            path = shutil.which(f"python3.{minor}", path=str(folder))
            works = (
                path and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0
            )
            if path and works:
                found.setdefault(f"3.{minor}", path)
    return list(found.values())


def test_the_extension_needs_neither_torch_nor_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "good", done.stderr


def test_wrong_tensors_are_refused_by_the_binding_itself() -> None:
    import lumos_engine._C as extension

    good = (0, 0, (0, 1, 32), (32, 32, 1)), (0, 0, (0, 1), (1, 1))
    extension.merge_attention(*good, *good, *good, CPU)
    short = (0, 0, (1, 1, 32), (32, 32, 1)), good[1]
    with pytest.raises(ValueError, match="out_b has the wrong dtype, shape or strides"):
        extension.merge_attention(*good, *short, *good, CPU)
    with pytest.raises(TypeError):
        extension.merge_attention(*good, *good, 3, good[1], CPU)


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters() if "--slow" in sys.argv else [sys.executable])
def test_an_isolated_build_imports_without_torch(python: str, tmp_path: Path) -> None:
    """`pip install .` into an empty environment, without the dependencies."""
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    fresh = str(tmp_path / "venv" / "bin" / "python")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("build", ".*", "out", "runs", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    one_gpu = "cmake.define.CMAKE_CUDA_ARCHITECTURES=80"  # what a wheel holds for others takes four times as long
    install = [fresh, "-m", "pip", "install", "--quiet", "--no-deps", "--config-settings", one_gpu, str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([fresh, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "good", done.stderr
    (package,) = (tmp_path / "venv").glob("lib/python*/site-packages/lumos_engine")
    assert {"py.typed", "_C.pyi"} <= {path.name for path in package.iterdir()}
