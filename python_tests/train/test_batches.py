"""Packing, and batches as a function of the position in the run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.train.batches import BatchMaker
from lumos_engine.train.config import DiffusionOptions
from lumos_engine.train.sources import image_ordinal

from .conftest import VOCABULARY, RandomClips


def maker(tokenizers: tuple[VisualTokenizer, TextTokenizer], history: str = "keep", **options: int) -> BatchMaker:
    settings = {"seed": 3, "max_tokens": 256, **options}
    return BatchMaker(RandomClips(), tokenizers[1], VOCABULARY, DiffusionOptions(history=history), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
def test_batches_depend_on_the_position_alone(tokenizers: tuple[VisualTokenizer, TextTokenizer], history: str) -> None:
    a, b = maker(tokenizers, history), maker(tokenizers, history)
    b.batch(0, 5)
    first, again = a.batch(5, 4), b.batch(5, 4)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.rows, again.rows)
    assert first.layout == again.layout
    assert first.positions == range(5, 9)
    other = maker(tokenizers, history, seed=4).batch(5, 4)
    assert not torch.equal(first.rows, other.rows)


@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
def test_rows_targets_and_frames_agree_with_the_tokens(
    tokenizers: tuple[VisualTokenizer, TextTokenizer], history: str
) -> None:
    batch = maker(tokenizers, history, round_tokens=64).batch(0, 6)
    assert len(batch.tokens) == batch.layout.num_tokens and batch.layout.num_tokens % 64 == 0
    assert bool((batch.tokens[batch.rows] == VOCABULARY.mask).all())
    low, high = torch.aminmax(batch.targets)
    assert low >= 0 and high < VOCABULARY.visual_size
    assert batch.frames.unique().tolist() == [0, 1]
    assert int(batch.rows.max()) < batch.layout.num_tokens - batch.num_padding
    assert batch.layout.num_sequences == 6 + (batch.num_padding > 0)


def test_a_sample_beyond_the_context_is_named(tokenizers: tuple[VisualTokenizer, TextTokenizer]) -> None:
    with pytest.raises(
        ValueError, match=r"caption 'a 0 standing still' needs 108 tokens, model\.max_position_embeddings is 20"
    ):
        maker(tokenizers, max_tokens=20).batch(0, 1)


@given(fraction=st.floats(0, 1), count=st.integers(1, 300))
def test_images_are_spread_evenly(fraction: float, count: int) -> None:
    found = [image_ordinal(position, fraction) for position in range(count)]
    images = [ordinal for ordinal in found if ordinal is not None]
    assert images == list(range(len(images)))
    assert abs(len(images) - fraction * count) <= 1
