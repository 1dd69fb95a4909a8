"""What SECURITY.md promises of the sources: nothing in the package can run code that comes with data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lumos_engine

PACKAGE = Path(lumos_engine.__file__).parent
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load")}


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"import {name}") for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in FORBIDDEN_NAMES:
                yield node.lineno, f"{function.id}()"
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                dotted = (function.value.id, function.attr)
                yield from [(node.lineno, ".".join(dotted))] * (dotted in FORBIDDEN_ATTRIBUTES)
            if any(k.arg == "shell" and getattr(k.value, "value", None) is True for k in node.keywords):
                yield node.lineno, "shell=True"
            if any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is True for k in node.keywords):
                yield node.lineno, "allow_pickle=True"


def test_package_sources() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 50
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path in sources
        for line, what in offences(ast.parse(path.read_text()))
    ]
    assert not found, found


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "eval('1')", "exec('1')", "import torch\ntorch.load('x')", "import os\nos.system('x')",
    "import subprocess\nsubprocess.run('x', shell=True)", "import yaml\nyaml.load('x')", "import numpy\nnumpy.load('x', allow_pickle=True)",
])  # fmt: skip
def test_the_check_finds_each_of_them(source: str) -> None:
    assert list(offences(ast.parse(source)))


def test_assets_are_safetensors_and_json_only() -> None:
    suffixes = {path.suffix for path in (PACKAGE / "assets").rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json"}
