"""What made the keys and values of a cache: they serve nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..layout import SequenceLayout

__all__ = ["key_fields", "layout_fields", "require_equal"]


def key_fields(key: Mapping[str, object] | str | None) -> dict[str, object]:
    """The caller's part of a key as named fields; a string becomes the field ``key``."""
    return {} if key is None else {"key": key} if isinstance(key, str) else dict(key)


def layout_fields(layout: SequenceLayout) -> dict[str, object]:
    """The fields that ``layout`` decides: ``positions`` (strides included: keys are stored rotated), then ``layout``, which
    is everything."""
    digest = hashlib.sha256(repr(layout.strides).encode())
    digest.update(layout.positions.cpu().numpy().tobytes())
    return {"positions": digest.hexdigest(), "layout": layout.key}


def require_equal(made: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raise ValueError naming the first field of ``wanted`` that ``made`` lacks or holds another value of."""
    for name, value in wanted.items():
        if made.get(name) != value:
            raise ValueError(f"the cache was made with {name} {made.get(name)!r}, it cannot serve {value!r}")
