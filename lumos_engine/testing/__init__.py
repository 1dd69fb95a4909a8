"""Tools to test a backend of ``lumos_engine.ops``: generated inputs, poisoned memory, one table of tolerances.

``check_backend`` runs the property suite on a kernel of your own; what it is made of is here too, a module each.
``tolerances``, ``eager``, ``poison``, ``emulation`` and ``backends`` need torch alone, the others hypothesis
(``pip install lumos_engine[test]``).
``ptxvm`` runs the CUDA kernels without a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backends as backends
    from . import eager as eager
    from . import emulation as emulation
    from . import oracles as oracles
    from . import poison as poison
    from . import properties as properties
    from . import strategies as strategies
    from . import strategies_cache as strategies_cache
    from . import strategies_cases as strategies_cases
    from . import tolerances as tolerances
    from .check import Report as Report
    from .check import check_backend as check_backend
    from .emulation import ptxvm as ptxvm

_MODULES = (
    "backends", "eager", "emulation", "oracles", "poison", "properties", "strategies", "strategies_cache",
    "strategies_cases", "tolerances",
)  # fmt: skip
_FROM_MODULES = {"Report": "check", "check_backend": "check", "ptxvm": "emulation"}
__all__ = [*_FROM_MODULES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FROM_MODULES:
        return getattr(importlib.import_module(f".{_FROM_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
