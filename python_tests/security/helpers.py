"""What every reader promises of every input: a result, or an error of a documented kind whose message is one short line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

MAX_MESSAGE_CHARACTERS = 2000


def attempt(
    call: Callable[[], Any],
    kinds: tuple[type[Exception], ...] = (TypeError, ValueError, OSError),
    *,
    path: Path | None = None,
) -> Any:
    """What ``call`` returns, or None where it raises one of ``kinds``. path: that the message has to name."""
    try:
        return call()
    except kinds as error:
        message = str(error)
        assert message and "\n" not in message, repr(message)
        assert len(message) <= MAX_MESSAGE_CHARACTERS + 4 * len(str(path or "")), len(message)
        assert path is None or path.name in message, message
        return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with a few bytes changed, cut out, doubled or put in, and perhaps cut short."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "insert", "remove", "repeat", "cut"]))
        if kind == "flip" and raw:
            raw[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and raw:
            raw[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        elif kind == "insert":
            raw[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del raw[place : place + draw(st.integers(1, 16))]
        elif kind == "repeat":
            raw[place:place] = raw[place : place + draw(st.integers(1, 64))]
        elif kind == "cut" and draw(st.booleans()):
            del raw[place:]
    return bytes(raw)


numbers = (
    st.integers()
    | st.sampled_from([-1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)])
    | st.floats()
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=8,
)
"""Anything that JSON or YAML can hold, numbers at the edges of their types among it."""


@st.composite
def edited(draw: st.DrawFn, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with one to three of them, at any depth, replaced by anything or removed, or a key added."""
    result = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for _ in range(draw(st.integers(1, 3))):
        place = result
        inner = [value for value in result.values() if isinstance(value, dict) and value]
        if inner and draw(st.booleans()):
            place = draw(st.sampled_from(inner))
        if not place:
            continue
        name = draw(st.sampled_from(sorted(place)) | st.text(max_size=10))
        if draw(st.integers(0, 4)) == 0:
            place.pop(name, None)
        else:
            place[name] = draw(json_values)
    return result
