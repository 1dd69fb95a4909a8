"""Layouts from any ids and any intervals: built right or refused, and never at the price of memory for tokens that are not there."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text, Vocabulary

from .helpers import attempt

SMALL = Vocabulary(
    bos=0, image_start=11, image_end=12, newline=13, video_start=14, video_end=15, mask=16, sep=17, size_zero=20, size_unit=4,
    visual_begin=40, visual_size=4, strides=(4, 4, 4), number_tokens=9,
)  # fmt: skip
GOOD = [0, 17, 14, 21, 21, 11, 22, 21, 40, 13, 41, 13, 12, 15, 17]  # a video of one frame of 2 x 1 codes
edges = st.sampled_from([-(2**63), -1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1])
ids = st.sampled_from([*range(44), 999]) | edges


def check(layout: SequenceLayout, num_tokens: int) -> None:
    assert layout.num_tokens == num_tokens == sum(s.num_tokens for row in layout.sequences for s in row)
    bounds = layout.intervals
    lengths = layout.cu_seqlens.diff()[layout.sequence_id.long()]
    assert bool((bounds >= 0).all()) and bool((bounds <= lengths[:, None]).all())
    assert int(layout.positions.min()) >= 0


@given(st.lists(ids, max_size=40), st.none() | st.lists(st.integers(-1, 40) | edges, max_size=4))
def test_any_ids(tokens: list[int], lengths: list[int] | None) -> None:
    tensor = torch.tensor(tokens, dtype=torch.int64)
    layout = attempt(lambda: SequenceLayout.from_tokens(tensor, SMALL, lengths))
    if layout is not None:
        check(layout, len(tokens))


@given(st.data())
def test_ids_near_good_ones(data: st.DataObject) -> None:
    tokens = GOOD * data.draw(st.integers(1, 3))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(tokens) - 1))
        kind = data.draw(st.sampled_from(["set", "remove", "insert"]))
        tokens[place : place + (kind != "insert")] = [] if kind == "remove" else [data.draw(ids)]
    layout = attempt(lambda: SequenceLayout.from_tokens(torch.tensor(tokens, dtype=torch.int64), SMALL))
    if layout is not None:
        check(layout, len(tokens))


@given(st.fixed_dictionaries({}, optional={
    name: edges | st.integers(0, 70) for name in SMALL.to_dict() if name != "strides"
} | {"strides": st.lists(edges | st.integers(0, 9), max_size=4)}))  # fmt: skip
@example({"size_unit": 2**31 - 4, "number_tokens": 2**31 - 1})
@example({"strides": [2**31 - 1, 1, 1]})
def test_any_vocabulary(changes: dict[str, Any]) -> None:
    vocabulary = attempt(lambda: Vocabulary.from_dict({**SMALL.to_dict(), **changes}))
    if vocabulary is not None:
        attempt(lambda: SequenceLayout.from_tokens(torch.tensor(GOOD), vocabulary))


@given(st.data())
def test_any_intervals(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 6) | edges, max_size=3))
    total = data.draw(st.sampled_from([min(max(0, sum(lengths)), 20), 4]))
    bound = st.integers(-1, 7) | edges
    rows = data.draw(st.lists(st.lists(bound, min_size=5, max_size=5), min_size=total, max_size=total))
    places = data.draw(
        st.none()
        | st.lists(st.lists(st.integers(0, 9) | edges, min_size=3, max_size=3), min_size=total, max_size=total)
    )
    hidden = data.draw(st.none() | st.lists(st.booleans(), max_size=20))
    layout = attempt(
        lambda: SequenceLayout.from_intervals(
            lengths,
            torch.tensor(rows, dtype=torch.int64).reshape(-1, 5),
            None if places is None else torch.tensor(places, dtype=torch.int64).reshape(-1, 3),
            None if hidden is None else torch.tensor(hidden, dtype=torch.bool),
        )
    )
    if layout is not None:
        check(layout, sum(lengths))


@pytest.mark.parametrize("arguments", [
    ("ids", SMALL), (torch.zeros(3), SMALL), (torch.zeros(2, 2).long(), SMALL), (torch.tensor([1]), None), (torch.tensor([1]), SMALL, 3),
    (torch.tensor([1]), SMALL, ["a"]), (torch.tensor([1]), SMALL, [None]), (torch.tensor([1]), SMALL, [1.0]),
])  # fmt: skip
def test_other_types(arguments: tuple[Any, ...]) -> None:
    assert attempt(lambda: SequenceLayout.from_tokens(*arguments)) is None


def test_promised_sizes_cost_nothing() -> None:
    """A length, a segment or a size token may say two thousand million; memory follows the tensors that are there."""
    rows = torch.zeros(4, 5, dtype=torch.int32)
    huge = 2**31 - 1
    wide = Vocabulary.from_dict({**SMALL.to_dict(), "visual_begin": 2**30, "number_tokens": 2**29})
    tracemalloc.start()
    for call in (
        lambda: SequenceLayout.from_intervals([huge], rows),
        lambda: SequenceLayout.from_intervals([4], rows, segments=[[Frame(huge, huge)]]),
        lambda: SequenceLayout.from_intervals([huge], rows, segments=[[Text(huge)]]),
        lambda: SequenceLayout.from_tokens(torch.tensor([11, 2**29, 2**29, 13]), wide),
        lambda: SequenceLayout.from_tokens(torch.tensor([1, 2]), SMALL, [huge, huge]),
    ):
        assert attempt(call) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
