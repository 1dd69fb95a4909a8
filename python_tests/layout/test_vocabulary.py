"""Vocabulary: defaults, helpers, JSON, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from lumos_engine.layout import Vocabulary

from .helpers import SMALL


def test_defaults_are_the_released_ids():
    v = Vocabulary()
    assert (v.bos, v.image_end, v.image_start, v.sep, v.newline, v.size_zero) == (0, 8196, 8197, 8710, 8803, 8804)
    assert (v.mask, v.video_start, v.video_end, v.visual_begin, v.visual_size) == (9003, 9004, 9005, 65536, 64000)
    assert (v.size_unit, v.strides, v.visual_end) == (32, (4, 8, 8), 129536)
    assert v.frame_header(48, 84) == [8197, 8804 + 12, 8804 + 21]  # 384 x 672 pixels
    assert v.video_header(2, 12) == [9004, 8806, 8816]


@pytest.mark.parametrize("vocabulary", [Vocabulary(), SMALL])
def test_json_round_trip(vocabulary):
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_visual():
    codes = torch.tensor([[0, 127]])
    assert SMALL.visual(codes).tolist() == [[192, 319]] and SMALL.visual(5) == 197
    assert SMALL.is_visual(torch.tensor([191, 192, 319, 320])).tolist() == [False, True, True, False]
    assert SMALL.is_visual(192) is True


def test_numbers_whose_id_means_something_else_do_not_exist():
    v = Vocabulary()
    assert v.number(198) == 9002 and v.number(202) == 9006
    for n in (199, 200, 201):  # mask, video_start, video_end
        with pytest.raises(ValueError, match=f"n {n} has no token"):
            v.number(n)
    assert SMALL.number(81) == 191
    with pytest.raises(ValueError, match="n 82 has no token"):
        SMALL.number(82)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Vocabulary(mask=8197), ValueError, "mask and Vocabulary.image_start are both 8197"),
        (lambda: Vocabulary(sep=65536), ValueError, "Vocabulary.sep is 65536, inside the visual ids"),
        (lambda: Vocabulary(bos=-1), ValueError, "Vocabulary.bos"),
        (lambda: Vocabulary(bos="a"), TypeError, "Vocabulary.bos must be an int"),
        (lambda: Vocabulary(visual_size=0), ValueError, "Vocabulary.visual_size"),
        (lambda: Vocabulary(strides=(4, 5, 8)), ValueError, "no multiple of the height stride 5"),
        (lambda: Vocabulary(strides=4), TypeError, "strides must be three ints"),
        (lambda: Vocabulary.from_dict({"boss": 1}), ValueError, "'boss' is no field"),
        (lambda: Vocabulary.from_dict([]), TypeError, "values must be a mapping"),
        (lambda: Vocabulary().frame_header(6, 4), ValueError, "height 6 is 48 pixels; .* multiple of 4 latent"),
        (lambda: Vocabulary().number(1000), ValueError, "n must be in 0..999"),
        (lambda: Vocabulary().visual(64000), ValueError, "code must be in 0..63999"),
        (lambda: SMALL.visual(torch.tensor([0, 128])), ValueError, "got values 0..128"),
        (lambda: SMALL.visual(torch.tensor([0.0])), TypeError, "code must be an integer tensor"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
