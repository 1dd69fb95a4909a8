"""Text tokenizer and prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.tokenizers import TextTokenizer, build_prompt, clip_duration, prompt_tokens, train_bpe
from lumos_engine.tokenizers.text import prompt_corpus, special_token_names

CAPTIONS = [
    f"a {digit} moving {direction}{speed} and a {9 - digit} standing still"
    for digit in range(10)
    for direction in ("up", "down", "left", "right")
    for speed in ("", " slowly")
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(prompt_corpus(CAPTIONS), special_token_names(), 512)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(40 <= i < tokenizer.vocab_size <= 512 for i in ids)


@pytest.mark.parametrize("name", ["<|bos|>", "a <|video_start|> b", "<|number_3|>"])
def test_special_tokens_are_not_read_out_of_text(tokenizer, name):
    ids = tokenizer.encode(name)
    assert min(ids) >= 40 and tokenizer.decode(ids) == name


def test_template_and_words_are_single_tokens(tokenizer):
    assert tokenizer.tokens(build_prompt("a 7 moving up slowly and a 3 standing still", 32, 64, 13, 6)) == [
        "Generate a video with a resolution of",
        *(" 3", "2", "x", "6", "4"),
        ", consisting of",
        *(" 1", "2"),
        " frames at",
        " 6",
        " frames per second, according to the following prompt:\n",
        *(" a", " 7", " moving", " up", " slowly", " and", " a", " 3", " standing", " still"),
    ]


def test_file_round_trip_and_determinism(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "text.json")
    loaded = TextTokenizer.from_file(tmp_path / "text.json")
    text = "a 7 <|bos|> ünknown"
    assert loaded.encode(text) == tokenizer.encode(text)
    train_bpe(prompt_corpus(CAPTIONS), special_token_names(), 512).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "text.json").read_bytes()


def test_bad_input(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")
    (tmp_path / "x.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        TextTokenizer.from_file(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        TextTokenizer.from_file(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        TextTokenizer.from_file(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="max_vocabulary must be at least 258"):
        train_bpe(["a"], ["x", "y"], 257)
    with pytest.raises(ValueError, match="must all be different"):
        train_bpe(["a"], ["x", "x"], 512)


def test_prompt_bytes():
    assert build_prompt("a red fox", 448, 256, 25, 12).encode() == (
        b"Generate a video with a resolution of 448x256, consisting of 24 frames at 12 frames per second, "
        b"according to the following prompt:\n a red fox"
    )
    assert build_prompt("{x} %s", 32, 32, 1, 12).encode() == (
        b"Generate a video with a resolution of 32x32, consisting of 1 frames at 1 frames per second, "
        b"according to the following prompt:\n {x} %s"
    )


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (1, 12, (1, 1)),
        (25, 12, (2, 12)),
        (85, 12, (7, 12)),
        (13, 6, (2, 6)),
        (5, 12, (1, 12)),
        (17, 12, (1, 12)),
        (21, 12, (2, 12)),
    ],
)
def test_duration(num_frames, fps, expected):
    assert clip_duration(num_frames, fps) == expected


def test_prompt_tokens(tokenizer):
    options = dict(width=32, height=32, num_frames=13, fps=6, bos=0, sep=3)
    ids = prompt_tokens(tokenizer.encode, "a 7 moving right", **options)
    assert ids[0] == 0 and ids[-1] == 3 and len(ids) == 18
    assert tokenizer.decode(ids[1:-1]) == build_prompt("a 7 moving right", 32, 32, 13, 6)
    assert prompt_tokens(tokenizer.encode, "a 7 moving right", max_tokens=18, **options) == ids
    with pytest.raises(ValueError, match="fit into 17 tokens, got 18"):
        prompt_tokens(tokenizer.encode, "a 7 moving right", max_tokens=17, **options)


@pytest.mark.parametrize("caption", ["", " \n\t"])
def test_empty_prompts_are_refused(caption):
    with pytest.raises(ValueError, match="prompt must not be empty"):
        build_prompt(caption, 32, 32, 13, 6)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"height": 2.5}, {"num_frames": 0}, {"fps": 0}, {"fps": True}])
def test_sizes_must_be_positive_integers(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        build_prompt("a fox", **{"width": 32, "height": 32, "num_frames": 13, "fps": 6, **wrong})
