"""The digit reader: accuracy on held-back images, also blurred and dimmed, and the training that makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from lumos_engine.data.digit_images import digit_split
from lumos_engine.evals import classifier as module
from lumos_engine.evals.classifier import (
    CROP_SIZE,
    DigitClassifier,
    classifier_path,
    load_classifier,
    rendered_crops,
    train_classifier,
)
from lumos_engine.io.checkpoint import CheckpointError, save_safetensors


def test_shipped_weights_read_held_back_digits() -> None:
    crops, digits = rendered_crops("test")
    assert crops.shape == (360, 4, CROP_SIZE, CROP_SIZE) and crops.dtype == np.float32
    read = load_classifier().read(crops.reshape(-1, CROP_SIZE, CROP_SIZE)).reshape(360, 4)
    assert ((read == digits[:, None]).mean(axis=0) >= 0.99).all()
    blurred = ndimage.gaussian_filter(crops, (0, 0, 0.7, 0.7)).reshape(-1, CROP_SIZE, CROP_SIZE) * np.float32(0.9)
    assert (load_classifier().read(blurred) == digits.repeat(4)).mean() >= 0.985
    assert classifier_path().stat().st_size < 300_000


def test_reading_nothing() -> None:
    assert load_classifier().read([]).shape == (0,)


def test_training_learns_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(images[:12] for images in digit_split("train"))
    monkeypatch.setattr(module, "digit_split", lambda split: few)
    before = torch.random.get_rng_state()
    models = [train_classifier(steps=80, batch_size=32) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    for first, second in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(first, second)
    crops, digits = rendered_crops("train")
    assert (models[0].read(crops[:, 0]) == digits).mean() > 0.3  # 0.1 is chance


def test_damaged_and_foreign_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "classifier_path", lambda: tmp_path / "model.safetensors")
    load = module.load_classifier.__wrapped__
    with pytest.raises(FileNotFoundError):
        load()
    save_safetensors(
        tmp_path / "model.safetensors", {**DigitClassifier().state_dict(), "head.weight": torch.zeros(9, 768)}
    )
    with pytest.raises(CheckpointError, match="does not fit the digit classifier"):
        load()
    (tmp_path / "model.safetensors").write_bytes(classifier_path().read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "train_classifier", load_classifier)
    assert module.main([str(tmp_path / "new" / "model.safetensors")]) == 0
    assert "% of the test digits" in capsys.readouterr().out
    assert module.main([]) == 2 and "usage" in capsys.readouterr().err
    assert (tmp_path / "new" / "model.safetensors").stat().st_size > 100_000
