"""Small JSON files: configurations and indices, bounded before they are parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError

__all__ = ["MAX_JSON_BYTES", "read_json_object"]

MAX_JSON_BYTES = 16 << 20
"""Largest file that is parsed; values take at most 30 times its size."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in ``path``.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        CheckpointError: it is too large, not valid JSON, or holds something else than an object.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: more than {MAX_JSON_BYTES} bytes, which no configuration has")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value
