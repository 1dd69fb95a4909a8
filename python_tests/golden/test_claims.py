"""No golden file is left out, and each is the one that the manifest describes."""

from __future__ import annotations

import hashlib
import re
from importlib import import_module
from pathlib import Path

import pytest

from .files import GoldenFile, manifest

FILES = r"(?!manifest\.json$).*"
MODULES = [path.stem for path in Path(__file__).parent.glob("test_*.py")]


def claims() -> dict[str, str]:
    """FILES of each module of tests beside this one."""
    modules = {name: import_module(f".{name}", __package__) for name in MODULES}
    return {
        name: module.FILES for name, module in modules.items() if name != "test_claims" and hasattr(module, "FILES")
    }


def test_exactly_one_module_claims(golden: GoldenFile) -> None:
    claimed = [name for name, pattern in claims().items() if re.fullmatch(pattern, golden.name)]
    assert len(claimed) == 1, f"{golden.name} is claimed by {claimed or 'no module of tests'}"


@pytest.mark.parametrize("name", ["model_C.onnx", "rope.npz", "infer_t2v.safetensors", "notes.txt"])
def test_unknown_kinds_are_claimed_by_none(name: str) -> None:
    assert not [pattern for pattern in claims().values() if re.fullmatch(pattern, name)]


def test_the_manifest_describes_the_file(golden: GoldenFile) -> None:
    assert golden.name in manifest(golden.folder)["files"], f"{golden.name} is not in the manifest"
    path = golden.folder / golden.name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == golden.entry["sha256"]
    arrays = golden.arrays()
    described = {name: (entry["shape"], entry["dtype"]) for name, entry in golden.entry["arrays"].items()}
    assert {name: (list(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in arrays.items()} == described


def test_every_described_file_is_there(golden_dir: Path) -> None:
    assert sorted(manifest(golden_dir)["files"]) == sorted(
        path.name for path in golden_dir.iterdir() if path.name != "manifest.json"
    )
