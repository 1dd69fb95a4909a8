"""Tools to test a backend of ``lumos_engine.ops``: generated inputs, poisoned memory, one table of tolerances.

``strategies`` needs hypothesis (``pip install lumos_engine[test]``); ``tolerances``, ``eager`` and ``poison`` need
torch alone.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["eager", "poison", "strategies", "tolerances"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)
