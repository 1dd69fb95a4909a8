"""The original's pre-tokenised records, which are pickles, read without unpickling.

A pickle is a program. This interpreter knows the instructions that make lists, dicts, ints and strings, and no other: it stops at the
first one that would import, call or build anything. It takes names and argument formats of instructions from :mod:`pickletools`.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["MAX_CONTAINERS", "MAX_RECORD_BYTES", "RecordError", "read_record_file"]

MAX_RECORD_BYTES = 16 << 20
"""Largest file that is read. The original's hold 1 MB. Values take at most 40 bytes of memory per byte of the file."""
MAX_CONTAINERS = 10_000
"""Most lists and dicts in a record, and most strings that it refers back to."""

_MARK = object()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class RecordError(ValueError):
    """A record cannot be used; the sentence names the file, and the byte where reading stopped."""


def read_record_file(path: str | os.PathLike[str]) -> Any:
    """The value in a pickle of lists, dicts with string keys, ints of at most 64 bits and strings.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        RecordError: it is too large, damaged, cut short, or holds an instruction for anything else.
    """
    path = Path(path)
    with open(path, "rb") as file:
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise RecordError(f"{path}: a record has at most {MAX_RECORD_BYTES} bytes, this file has more")
    stream = BytesIO(content)
    machine = _Machine()
    while True:
        place = stream.tell()
        code = stream.read(1)
        if not code:
            raise RecordError(f"{path}: the record is cut short at byte {place}")
        opcode = _OPCODES.get(code.decode("latin-1"))
        name = opcode.name if opcode else f"0x{code.hex()}"
        action = _ACTIONS.get(name)
        if opcode is None or action is None:
            raise RecordError(
                f"{path}: instruction {name} at byte {place} is refused; records hold lists, dicts, ints and strings"
            )
        try:
            argument = opcode.arg.reader(stream) if opcode.arg else None
            if name == "STOP":
                return machine.result()
            action(machine, argument)
        except (ValueError, IndexError) as error:
            reason = "a value is missing" if isinstance(error, IndexError) else " ".join(str(error).split())
            raise RecordError(f"{path}: instruction {name} at byte {place} cannot be followed: {reason}") from None


class _Machine:
    """Stack and memo. Only strings are remembered, so that no value can hold itself or be held twice over and over."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, str] = {}
        self.num_memoized = self.num_containers = 0

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError("the stack does not hold one value")
        return self.stack[0]

    def push(self, value: Any) -> None:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("an int has more than 64 bits")
        self.stack.append(value)

    def container(self, value: list[Any] | dict[str, Any]) -> None:
        self.num_containers += 1
        if self.num_containers > MAX_CONTAINERS:
            raise ValueError(f"there are more than {MAX_CONTAINERS} lists and dicts")
        self.stack.append(value)

    def remember(self, index: int) -> None:
        if isinstance(self.stack[-1], str):
            self.memo[index] = self.stack[-1]
            if len(self.memo) > MAX_CONTAINERS:
                raise ValueError(f"there are more than {MAX_CONTAINERS} strings to refer back to")

    def memoize(self, _: None) -> None:
        self.remember(self.num_memoized)
        self.num_memoized += 1

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"value {index} is referred to, and is no string that was remembered")
        self.stack.append(self.memo[index])

    def append(self, values: list[Any]) -> None:
        self._check(values, list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        keys = values[::2]
        if len(values) % 2 or not all(isinstance(key, str) for key in keys):
            raise ValueError("keys of a dict must be strings, each with a value")
        self._check(values, dict).update(zip(keys, values[1::2], strict=True))

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) <= count:
            raise ValueError("a value is missing")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 1:
            raise ValueError("a mark is missing")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _check(self, values: list[Any], kind: type) -> Any:
        if type(self.stack[-1]) is not kind or any(value is _MARK for value in values):
            raise ValueError(f"a {kind.__name__} is expected")
        return self.stack[-1]


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "MEMOIZE": _Machine.memoize,
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "EMPTY_LIST": lambda machine, _: machine.container([]),
    "EMPTY_DICT": lambda machine, _: machine.container({}),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
}  # fmt: skip
