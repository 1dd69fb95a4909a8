"""``lumos doctor``: what this installation is made of, what it can run, what is missing and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PACKAGES = ("torch", "numpy", "safetensors", "av", "pillow", "tokenizers", "rich", "tyro", "pyyaml", "scikit-learn")
EXTRAS = {"tensorboard": "pip install 'lumos_engine[tensorboard]'"}

CUDA_STATE = "verified in emulation, unverified on hardware"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_backend() -> dict[str, Any]:
    try:
        extension = importlib.import_module("lumos_engine._C")
    except ImportError as error:
        return {
            "available": False,
            "reason": str(error),
            "remedy": "reinstall with a C++17 compiler: pip install --force-reinstall lumos_engine",
        }
    return {
        "available": True,
        "instruction_sets_found": list(extension.available_isas()),
        "instruction_set_used": extension.cpu_isa(),
        "lowered_by_LUMOS_CPU_ISA": os.environ.get("LUMOS_CPU_ISA"),
    }


def _cuda_backend() -> dict[str, Any]:
    try:
        kernels = list(importlib.import_module("lumos_engine._C").cuda_kernels())
    except ImportError:
        kernels = []
    found = {"kernels": kernels, "state": CUDA_STATE if kernels else None}
    if not kernels:
        return found | {
            "available": False,
            "reason": "this build carries no CUDA kernels",
            "remedy": "use the cpu backend, or build with nvcc as docs/building_cuda.md of the source tree says",
        }
    if _version("torch") is None or not importlib.import_module("torch").cuda.is_available():
        return found | {
            "available": False,
            "reason": "torch sees no GPU",
            "remedy": "use the cpu backend, or install an NVIDIA driver and a torch built for CUDA",
        }
    return found | {"available": True}


def _model() -> dict[str, Any]:
    from ..pipeline import shipped_model_folder

    folder = shipped_model_folder()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not (folder / "model.safetensors").is_file():
        return {
            "available": False,
            "reason": f"no weights in {folder}",
            "remedy": "reinstall the wheel, or train: lumos train",
        }
    return {"available": True, "folder": str(folder), "bytes": sum(path.stat().st_size for path in files)}


def report() -> dict[str, Any]:
    """Everything ``lumos doctor`` knows, as plain JSON types."""
    from .. import __version__

    torch_version = _version("torch")
    threads = importlib.import_module("torch").get_num_threads() if torch_version else None
    return {
        "lumos_engine": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": threads,
        "backends": {
            "reference": {
                "available": torch_version is not None,
                "remedy": None if torch_version else "pip install torch",
            },
            "cpu": _cpu_backend(),
            "cuda": _cuda_backend(),
        },
        "shipped_model": _model(),
        "extras": {name: {"version": _version(name), "remedy": how} for name, how in EXTRAS.items()},
    }


def _missing(found: dict[str, Any]) -> list[str]:
    rows = [
        f"{name}: not installed; pip install {name}" for name, version in found["packages"].items() if version is None
    ]
    rows += [
        f"{name} (optional): not installed; {extra['remedy']}"
        for name, extra in found["extras"].items()
        if not extra["version"]
    ]
    for name, backend in found["backends"].items():
        if not backend["available"]:
            rows.append(f"backend {name}: {backend.get('reason', 'not available')}; {backend['remedy']}")
    if not found["shipped_model"]["available"]:
        rows.append(f"shipped model: {found['shipped_model']['reason']}; {found['shipped_model']['remedy']}")
    return rows


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("lumos_engine", found["lumos_engine"])
    table.add_row("python", f"{found['python']} on {found['platform']}")
    table.add_row(
        "packages", ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    )
    cpu = found["backends"]["cpu"]
    if cpu["available"]:
        table.add_row(
            "cpu backend",
            f"{cpu['instruction_set_used']} (found: {', '.join(cpu['instruction_sets_found'])}), {found['threads']} threads",
        )
    cuda = found["backends"]["cuda"]
    if cuda["kernels"]:
        table.add_row("CUDA kernels", f"{', '.join(cuda['kernels'])} ({cuda['state']})")
    if found["shipped_model"]["available"]:
        table.add_row(
            "shipped model", f"{found['shipped_model']['bytes'] / 1e6:.1f} MB in {found['shipped_model']['folder']}"
        )
    console.print(table)
    for row in _missing(found):
        console.print(f"- {row}", markup=False)


@dataclass
class Doctor:
    """Versions, backends and instruction sets found and used; what is missing and how to get it."""

    json: bool = False
    """print JSON instead of a table"""

    def run(self) -> int:
        found = report()
        if self.json:
            json.dump(found, sys.stdout, indent=2)
            print()
        else:
            _print(found)
        return 0


def main(argv: Sequence[str]) -> int:
    import tyro

    return tyro.cli(Doctor, args=list(argv), prog="lumos doctor").run()
