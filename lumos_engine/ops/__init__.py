"""The operations of lumos_engine: thin, checked functions over packed tensors ``[tokens, heads, head_dim]``.

Each takes ``backend=None | "reference" | "cpu" | "cuda"``. ``reference`` is the definition, in plain torch and fp64; ``cpu`` is C++.
Underscored operations of the ``torch.library`` namespace ``lumos`` take raw tensors and are not part of the public interface.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._registry import BACKENDS, use_backend

_HOME = {
    "block_attention": "attention",
    "inverse_frequencies": "rotary",
    "linear": "projection",
    "masked_linear_cross_entropy": "loss",
    "merge_attention": "merge",
    "mm_rope": "rotary",
    "paged_attention": "paged",
    "paged_write": "pages",
    "qk_norm_mm_rope": "qk_norm",
    "qk_norm_mm_rope_paged_write": "qk_norm",
    "remask": "unmask",
    "rms_norm": "norm",
    "sample_codes": "sampling",
    "swiglu_linear": "projection",
    "tube_mask": "tube",
    "unmask_step": "unmask",
}

__all__ = [
    "BACKENDS",
    "block_attention",
    "inverse_frequencies",
    "linear",
    "masked_linear_cross_entropy",
    "merge_attention",
    "mm_rope",
    "paged_attention",
    "paged_write",
    "qk_norm_mm_rope",
    "qk_norm_mm_rope_paged_write",
    "remask",
    "rms_norm",
    "sample_codes",
    "swiglu_linear",
    "tube_mask",
    "unmask_step",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
