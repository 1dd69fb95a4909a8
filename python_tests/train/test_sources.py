"""Clips by position: the moving-digits world and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumos_engine.data import MovingDigits
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.tokenizers.autoencoder import VisualAutoencoder, VisualTokenizerConfig
from lumos_engine.train.config import DataOptions
from lumos_engine.train.folder_source import FolderSource, encode_folder
from lumos_engine.train.sources import CodedClip, image_ordinal, open_sources

Tokenizers = tuple[VisualTokenizer, TextTokenizer]


def test_moving_digits_by_position(tokenizers: Tokenizers) -> None:
    data = DataOptions(image_fraction=0.25)
    training, held_back = open_sources(data, tokenizers[0], 5)
    again, _ = open_sources(data, tokenizers[0], 5)
    positions = [0, 255, 256, 3, 700]
    for position in positions:
        clip, other = training.clip(position), again.clip(position)
        assert torch.equal(clip.codes, other.codes) and clip.caption == other.caption
        image = image_ordinal(position, 0.25) is not None
        assert (clip.num_frames, clip.fps, clip.codes.shape[0]) == ((1, 1, 1) if image else (13, 6, 4))
        world = MovingDigits("train", 5, num_clips=2**62, num_frames=clip.num_frames, two_digit_share=0.5)
        assert clip.caption == world.clip(position).caption
    assert any(held_back.clip(p).caption != training.clip(p).caption for p in range(8))


def test_moving_digits_are_grey() -> None:
    tokenizer = VisualTokenizer(
        VisualAutoencoder(VisualTokenizerConfig(channels=3, encoder_widths=(8,), decoder_widths=(8,)))
    )
    with pytest.raises(ValueError, match="moving-digits are grey, the visual tokenizer has 3 channels"):
        open_sources(DataOptions(), tokenizer, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 16, 3), 12 * i, np.uint8)).save(path / f"{i:02}.png")
        (path / f"{i:02}.txt").write_text(f"grey {i}")
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (path / "broken.txt").write_text("broken")
    return path


def test_folder_is_encoded_once(
    tokenizers: Tokenizers, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataOptions(dataset=str(folder), height=8, width=16, validation_clips=2)
    cache, calls = tmp_path / "run" / "codes.safetensors", []
    first = encode_folder(data, tokenizers[0], cache, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert (len(first.training), len(first.held_back)) == (18, 2)
    captions = {clip.caption for clip in first.training + first.held_back}
    assert captions == {f"grey {i}" for i in range(20)}

    monkeypatch.setattr(VisualTokenizer, "encode", None)  # would fail if it were called
    second = encode_folder(data, tokenizers[0], cache)
    for a, b in zip(first.training, second.training, strict=True):
        assert torch.equal(a.codes, b.codes) and (a.caption, a.num_frames, a.fps) == (b.caption, b.num_frames, b.fps)
    monkeypatch.undo()
    for change in ("cut", "texts", "file"):
        if change == "cut":
            cache.write_bytes(cache.read_bytes()[:-5])
        elif change == "texts":
            cache.write_bytes(cache.read_bytes().replace(b'"clips":"[[', b'"clips":"{[['))
        else:
            (folder / "21.png").write_bytes((folder / "00.png").read_bytes())
            (folder / "21.txt").write_text("grey 0")
        calls.clear()
        encode_folder(data, tokenizers[0], cache, lambda done, total: calls.append((done, total)))
        assert calls, change


def test_each_epoch_visits_every_clip_once() -> None:
    clips = [CodedClip(torch.zeros(1, 1, 1, dtype=torch.int64), str(i), 1 if i < 5 else 5, 1) for i in range(12)]
    source = FolderSource(clips, seed=1, image_fraction=0.5)
    drawn = [source.clip(position) for position in range(70)]
    images = [int(clip.caption) for clip in drawn if clip.num_frames == 1]
    videos = [int(clip.caption) for clip in drawn if clip.num_frames > 1]
    assert len(images) == len(videos) == 35
    assert all(sorted(images[i : i + 5]) == list(range(5)) for i in range(0, 35, 5))
    assert all(sorted(videos[i : i + 7]) == list(range(5, 12)) for i in range(0, 35, 7))
    assert images[:5] != images[5:10]
    only_videos = FolderSource(clips[5:], seed=1, image_fraction=0.5)
    assert {int(only_videos.clip(p).caption) for p in range(7)} == set(range(5, 12))


def test_a_folder_needs_two_clips(tokenizers: Tokenizers, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black")
    with pytest.raises(ValueError, match="at least 2 usable clips"):
        encode_folder(DataOptions(dataset=str(tmp_path), height=8, width=16), tokenizers[0], None)
    with pytest.raises(ValueError, match="neither 'moving-digits' nor a folder"):
        open_sources(DataOptions(dataset=str(tmp_path / "none")), tokenizers[0], 0)
