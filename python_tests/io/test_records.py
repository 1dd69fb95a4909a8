"""Records of the original: what pickle writes of plain data is read back; everything else is refused before it does anything."""

from __future__ import annotations

import datetime
import os
import pickle  # only to write what our own reader is given; nothing here unpickles
import pickletools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumos_engine.io.records import MAX_CONTAINERS, MAX_RECORD_BYTES, RecordError, read_record_file

integers = st.integers(-(2**63), 2**63 - 1)
plain = st.recursive(
    integers | st.text(max_size=300), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)
files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, content: bytes) -> Any:
    path = folder / "record.pkl"
    path.write_bytes(content)
    return read_record_file(path)


@files
@given(value=plain, protocol=st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_data_round_trip(tmp_path: Path, value: Any, protocol: int) -> None:
    # Copied by way of text, because a list that a value holds twice would be referred back to, which records do not do.
    assert read(tmp_path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "value",
    [None, True, 1.5, b"bytes", (1,), {1, 2}, frozenset([1]), 2**70, {1: 2}, datetime.date(2026, 1, 1), os.system, Path("a"), print],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused(tmp_path: Path, value: Any, protocol: int) -> None:
    with pytest.raises(
        RecordError, match=r"record\.pkl: instruction \w+ at byte \d+ (is refused|cannot be followed)"
    ) as caught:
        read(tmp_path, pickle.dumps({"token": [1, value]}, protocol))
    assert "\n" not in str(caught.value)


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made_by_an_attack",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match="refused"):
        read(tmp_path, pickle.dumps(Attack(), protocol))
    assert not (tmp_path / "made_by_an_attack").exists()


def test_every_other_instruction_is_refused_before_its_argument_is_read(tmp_path: Path) -> None:
    known = {
        "PROTO", "FRAME", "STOP", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "BINPUT", "LONG_BINPUT",
        "BINGET", "LONG_BINGET", "MEMOIZE", "MARK", "EMPTY_LIST", "EMPTY_DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    }  # fmt: skip
    refused = [opcode for opcode in pickletools.opcodes if opcode.name not in known]
    assert len(refused) == len(pickletools.opcodes) - len(known) > 40
    for opcode in refused:
        with pytest.raises(RecordError, match=rf"instruction {opcode.name} at byte 1 is refused"):
            read(tmp_path, b"]" + opcode.code.encode("latin-1"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short at byte 0"),
        (b"\x80\x04]", "cut short at byte 3"),
        (b".", "does not hold one value"),
        (b"].]", None),
        (b"]].", "does not hold one value"),
        (b"(.", "does not hold one value"),
        (b"a", "a value is missing"),
        (b"]a", "a value is missing"),
        (b"e", "a mark is missing"),
        (b"(e", "a mark is missing"),
        (b"}K\x01a.", "a list is expected"),
        (b"](K\x01K\x02u.", "keys of a dict"),
        (b"](X\x01\x00\x00\x00aK\x02u.", "a dict is expected"),
        (b"}X\x01\x00\x00\x00as.", "a value is missing"),
        (b"](](e.", "does not hold one value"),
        (b"](a.", "a list is expected"),
        (b"\x94", "a value is missing"),
        (b"]\x94h\x00", "referred to"),
        (b"h\x00", "referred to"),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.", "64 bits"),
        (b"X\xff\xff\xff\xffabc", "cannot be followed"),
        (b"X\x02\x00\x00\x00\xff\xff", "cannot be followed"),
        (b"\x95\x00", "cannot be followed"),
        (b"\xff", "0xff at byte 0 is refused"),
        (b"](" + b"]" * MAX_CONTAINERS + b"e.", "more than 10000 lists"),
        (b"U\x00", "refused"),
        (b"\x8c\x00" + b"\x94" * (MAX_CONTAINERS + 1) + b".", "more than 10000 strings"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str | None) -> None:
    if message is None:
        assert read(tmp_path, content) == []
        return
    with pytest.raises(RecordError, match=message):
        read(tmp_path, content)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.pkl"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(RecordError, match=f"at most {MAX_RECORD_BYTES} bytes"):
        read_record_file(path)
