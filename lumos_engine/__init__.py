"""lumos_engine: autoregressive video generation with discrete diffusion, after Lumos-1 (arXiv 2507.08801).

Public names are resolved on first use, so that ``import lumos_engine`` (and the extension ``lumos_engine._C``)
needs neither torch nor any other dependency.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Frame": "layout",
    "LumosConfig": "model",
    "LumosModel": "model",
    "LumosPipeline": "pipeline",
    "PagedKVCache": "kv_cache",
    "SequenceLayout": "layout",
    "Text": "layout",
    "TubePattern": "tubes",
    "Vocabulary": "layout",
    "keep_freed_memory": "memory",
}
_MODULES = ("ops", "testing")

__all__ = [
    "Frame",
    "LumosConfig",
    "LumosModel",
    "LumosPipeline",
    "PagedKVCache",
    "SequenceLayout",
    "Text",
    "TubePattern",
    "Vocabulary",
    "__version__",
    "keep_freed_memory",
    "ops",
    "testing",
]

if TYPE_CHECKING:
    from . import ops, testing
    from .kv_cache import PagedKVCache
    from .layout import Frame, SequenceLayout, Text, Vocabulary
    from .memory import keep_freed_memory
    from .model import LumosConfig, LumosModel
    from .pipeline import LumosPipeline
    from .tubes import TubePattern


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
