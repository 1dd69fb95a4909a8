"""PTX of the foreign kernels: which compiler makes it, and why it cannot where it cannot.

Triton and CUTLASS may be installed for another interpreter than the one of the tests: ``LUMOS_TRUST_PYTHON`` names it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTHON = os.environ.get("LUMOS_TRUST_PYTHON", sys.executable)


@functools.cache
def _package(name: str) -> Path | None:
    """Where the interpreter has a package; None if it has none."""
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.submodule_search_locations[0] if s else '')"
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return Path(found) if found else None


def triton_ptx(folder: Path) -> Path:
    """The folder with a ``.ptx`` and the shared bytes (``.shared``) of every kernel in triton_kernels.py."""
    if not _package("triton"):
        pytest.skip("triton is not installed: pip install triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_DEFAULT_FP_FUSION": "1"}
    subprocess.run([PYTHON, HERE / "triton_kernels.py", folder], check=True, env=environment)
    return folder


def nvcc_ptx(source: str, folder: Path, includes: Sequence[Path] = ()) -> str:
    """PTX of a ``.cu`` file of this folder."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc is not installed")
    target = folder / source.replace(".cu", ".ptx")
    options = ["-std=c++17", "-w", "-lineinfo", "-gencode", "arch=compute_80,code=compute_80"]
    command = [nvcc, *options, *(f"-I{path}" for path in includes), "-ptx", HERE / source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if "curand_kernel.h" in done.stderr:
        pytest.skip("curand_kernel.h is missing, which CUTLASS's attention includes: pip install nvidia-curand")
    assert done.returncode == 0, done.stderr
    return target.read_text()


def cutlass_ptx(source: str, folder: Path) -> str:
    """As ``nvcc_ptx``, for a file that includes CUTLASS's headers and examples."""
    library = _package("cutlass_library")
    if not library:
        pytest.skip("CUTLASS is not installed: pip install nvidia-cutlass")
    root = library / "source"
    examples = [root / "examples" / name for name in ("common", "cute/tutorial", "41_fused_multi_head_attention")]
    includes = [root / "include", root / "tools/util/include", *examples]
    if nvidia := _package("nvidia"):  # curand_kernel.h, where the toolkit lacks it
        includes += sorted(nvidia.glob("*/include"))
    return nvcc_ptx(source, folder, includes)
