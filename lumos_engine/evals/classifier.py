"""The digit reader: a small convolutional network trained on the *training* digits as the world renders them.

Its weights ship with the package (``assets/digit_classifier/model.safetensors``). To train it again from nothing (six
minutes on one core) and see its accuracy on the 360 test digits::

    OMP_NUM_THREADS=1 python -m lumos_engine.evals.classifier OUT.safetensors

It sees what :func:`~lumos_engine.evals.tracker.find_blobs` cuts out, at the four half-pixel phases, turned, scaled,
shifted, bent, blurred and dimmed a little: what a visual tokenizer does to a digit must not change what is read.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.digit_images import SPRITE_SIZE, digit_split, digit_sprites
from ..io.checkpoint import CheckpointError, load_safetensors, save_safetensors
from .tracker import CROP_SIZE, find_blobs

__all__ = ["DigitClassifier", "classifier_path", "load_classifier", "rendered_crops", "train_classifier"]

_WIDTHS = (24, 48)


class DigitClassifier(nn.Module):
    """Crops float [n, 16, 16] in [0, 1] -> logits float [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in _WIDTHS:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(channels * (CROP_SIZE // 4) ** 2, 10)

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(crops[:, None]).flatten(1)))

    @torch.inference_mode()
    def read(self, crops: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """The digit in each crop (float32 [16, 16] each): int64 [n]."""
        if len(crops) == 0:
            return np.zeros(0, dtype=np.int64)
        chunks = torch.from_numpy(np.stack(list(crops))).split(4096)
        return torch.cat([self(chunk).argmax(dim=-1) for chunk in chunks]).numpy()


def classifier_path() -> Path:
    """Where the shipped weights lie."""
    return Path(__file__).parent.parent / "assets" / "digit_classifier" / "model.safetensors"


@lru_cache(maxsize=1)
def load_classifier() -> DigitClassifier:
    """The shipped reader, in evaluation mode.

    Raises:
        FileNotFoundError, CheckpointError: the weights are absent, damaged or of another shape.
    """
    model = DigitClassifier()
    weights = load_safetensors(classifier_path())
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{classifier_path()} does not fit the digit classifier: {error}") from error
    return model.eval()


def rendered_crops(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(crops float32 [n, 4, 16, 16], digits int64 [n]): each image of the split at its four half-pixel phases, as
    the tracker cuts it out.
    """
    by_digit = digit_split(split)
    margin = 2
    crops = []
    for image in np.concatenate(by_digit):
        for sprite in digit_sprites()[image].reshape(4, SPRITE_SIZE, SPRITE_SIZE):
            frame = np.pad(sprite, margin).astype(np.float32) / 255
            crops.append(find_blobs(frame)[0].crop)
    digits = np.repeat(np.arange(10), [len(images) for images in by_digit])
    return np.stack(crops).reshape(-1, 4, CROP_SIZE, CROP_SIZE), digits


def train_classifier(*, seed: int = 0, steps: int = 4000, batch_size: int = 128) -> DigitClassifier:
    """Train on the training split; equal bits from run to run on one machine."""
    crops, digits = rendered_crops("train")
    images, labels = torch.from_numpy(crops), torch.from_numpy(digits)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        for _ in range(steps):
            rows = torch.randint(len(images), (batch_size,), generator=generator)
            phases = torch.randint(4, (batch_size,), generator=generator)
            logits = model(_augment(images[rows, phases], generator))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _augment(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale, shift, bend, blur, dim unevenly and add noise, each crop in its own way."""
    n = len(crops)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def smooth(channels: int, side: int) -> Tensor:
        """A random field of mean 0 and deviation about 1, [n, channels, 16, 16], that varies over 16 / side px."""
        coarse = torch.randn(n, channels, side, side, generator=generator)
        return F.interpolate(coarse, size=CROP_SIZE, mode="bilinear", align_corners=True)

    angle, shear, scale = uniform(-0.2, 0.2), uniform(-0.2, 0.2), uniform(0.88, 1.14, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([cos, shear - sin], dim=-1) * scale[:, :1], torch.stack([sin, cos], dim=-1) * scale[:, 1:]]
    shift = uniform(-2.5 / CROP_SIZE, 2.5 / CROP_SIZE, 2, 1)  # grid units are half the side: at most 1.25 px
    affine = torch.cat([torch.stack(rows, dim=1), shift], dim=-1)
    grid = F.affine_grid(affine, [n, 1, CROP_SIZE, CROP_SIZE], align_corners=False)
    bend = smooth(2, 5).movedim(1, -1) * uniform(0.0, 0.8 / CROP_SIZE, 1, 1, 1)  # about 0.4 px at most
    moved = F.grid_sample(crops[:, None], grid + bend, align_corners=False)
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16
    blurred = torch.lerp(moved, F.conv2d(moved, kernel, padding=1), uniform(0.0, 1.2, 1, 1, 1))
    gain = uniform(0.75, 1.15, 1, 1, 1) * (1 + smooth(1, 5) * uniform(0.0, 0.2, 1, 1, 1))
    noise = torch.randn(blurred.shape, generator=generator) * uniform(0.0, 0.1, 1, 1, 1)
    # Noise only where there is ink: the tracker hands over a blob on black.
    return ((blurred * gain + noise) * (blurred > 0.02)).clamp(0, 1)[:, 0]


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("usage: python -m lumos_engine.evals.classifier OUT.safetensors\n")
        return 2
    model = train_classifier()
    crops, digits = rendered_crops("test")
    accuracy = (model.read(crops.reshape(-1, CROP_SIZE, CROP_SIZE)) == digits.repeat(4)).mean()
    os.makedirs(os.path.dirname(os.path.abspath(argv[0])), exist_ok=True)
    save_safetensors(argv[0], model.state_dict())
    sys.stdout.write(f"{accuracy:.2%} of the test digits at four phases\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
