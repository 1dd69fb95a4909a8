"""The package carries its types: the marker for type checkers, and a stub that agrees with the extension."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lumos_engine
import lumos_engine._C as extension

PACKAGE = Path(lumos_engine.__file__).parent
STUB = ast.parse((PACKAGE / "_C.pyi").read_text())

# What the stub says for what pybind11 prints, of which this is the begin.
ANNOTATIONS = {
    "tuple | None": "Tensor",
    "tuple": "Device",
    "typing.SupportsFloat": "float",
    "typing.SupportsInt": "int",
}


def declared() -> dict[str, tuple[list[str], str]]:
    """Of each function in the stub: annotations of the arguments and of the result."""
    functions = [node for node in STUB.body if isinstance(node, ast.FunctionDef)]
    return {
        f.name: ([ast.unparse(a.annotation) for a in f.args.args if a.annotation], ast.unparse(f.returns or f))
        for f in functions
    }


def built() -> dict[str, tuple[list[str], str]]:
    """The same of the extension, from the signature on the first line that pybind11 writes into each docstring."""
    found = {}
    for name in dir(extension):
        if name.startswith("__"):
            continue
        signature = (getattr(extension, name).__doc__ or "").splitlines()[0]
        match = re.fullmatch(rf"{name}\((.*)\) -> (.+)", signature)
        assert match, f"{name} has the docstring {signature!r}"
        (function,) = ast.parse(f"def {signature}: ...").body
        assert isinstance(function, ast.FunctionDef)
        printed = [ast.unparse(a.annotation) for a in function.args.args if a.annotation]
        found[name] = ([annotation(text) for text in printed], match[2])
    return found


def annotation(printed: str) -> str:
    return next((ours for theirs, ours in ANNOTATIONS.items() if printed.startswith(theirs)), printed)


def test_the_stub_names_what_the_extension_has() -> None:
    assert declared() == built()


def test_the_marker_is_in_the_package() -> None:
    assert (PACKAGE / "py.typed").is_file()
