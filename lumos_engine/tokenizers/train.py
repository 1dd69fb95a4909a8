"""Training of the visual tokenizer: reconstruction loss, AdamW, a learning rate that decays for most of the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..io.atomic import write_json_atomic
from ..io.lock import owned_folder
from .autoencoder import VisualAutoencoder, VisualTokenizerConfig
from .clips import ClipSource, open_clips
from .metrics import ReconstructionReport, evaluate
from .visual import VisualTokenizer

__all__ = ["TokenizerTrainConfig", "TrainProgress", "reconstruction_loss", "train_tokenizer"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TokenizerTrainConfig:
    """How a visual tokenizer is trained. The shipped one differs in ``foreground_weight`` 5 and ``weights`` "bf16".

    Attributes:
        steps: optimiser steps.
        max_minutes: stop (with the learning rate fully decayed) after this time even if steps are left; None: never.
        batch_size: clips per step.
        num_frames: frames of a training clip, 1 + a multiple of the compression; images stand still.
        height: rows of a training clip, px; footage is scaled and cropped to fit.
        width: columns of a training clip, px.
        fps: frame rate at which footage is sampled.
        learning_rate: peak, after the warm-up.
        warmup_steps: steps of linear growth of the learning rate.
        decay_share: share of the run, at its end, over which the learning rate falls linearly to zero.
        weight_decay: of AdamW, on matrices and kernels.
        foreground_weight: weight of a white pixel, that of a black one being 1 (in between: linear); 1 for real footage.
        mse_weight: of the squared error in the loss, pixels in [-1, 1].
        l1_weight: of the absolute error in the loss.
        clip_norm: largest norm of the gradient.
        precision: "bf16" (autocast) or "fp32".
        weights: type in which weights are stored, "fp32" or "bf16".
        seed: of weights, clips and their order.
        eval_clips: held-back clips on which PSNR is measured.
        eval_every: steps between evaluations; each writes a checkpoint.
        log_every: steps between lines of the log.
        model: sizes of the network.
    """

    steps: int = 2400
    max_minutes: float | None = None
    batch_size: int = 32
    num_frames: int = 13
    height: int = 32
    width: int = 32
    fps: float = 12.0
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_share: float = 0.6
    weight_decay: float = 0.01
    foreground_weight: float = 1.0
    mse_weight: float = 10.0
    l1_weight: float = 0.5
    clip_norm: float = 1.0
    precision: str = "bf16"
    weights: str = "fp32"
    seed: int = 0
    eval_clips: int = 256
    eval_every: int = 500
    log_every: int = 50
    model: VisualTokenizerConfig = field(default_factory=VisualTokenizerConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_frames", "height", "width", "eval_clips", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "fps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, got {self.max_minutes}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share must be within [0, 1], got {self.decay_share}")
        for name in ("warmup_steps", "weight_decay", "mse_weight", "l1_weight", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.foreground_weight > 0:
            raise ValueError(f"foreground_weight must be positive, got {self.foreground_weight}")
        for name in ("precision", "weights"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, got {getattr(self, name)!r}")
        self.model.latent_shape(self.num_frames, self.height, self.width)


@dataclass(frozen=True)
class TrainProgress:
    """State of a run after a step; ``report`` is set when the held-back clips were evaluated."""

    step: int
    fraction: float
    loss: float
    learning_rate: float
    clips_per_second: float
    report: ReconstructionReport | None = None


def reconstruction_loss(output: Tensor, target: Tensor, config: TokenizerTrainConfig) -> Tensor:
    """Weighted mean of ``mse_weight * error^2 + l1_weight * |error|``; frames ``[..., H, W]`` in [-1, 1]; scalar."""
    error = (output.float() - target).abs()
    per_pixel = config.mse_weight * error.square() + config.l1_weight * error
    weight = 1 + (config.foreground_weight - 1) * (target + 1) / 2
    return (per_pixel * weight).sum() / weight.sum()


def learning_rate_factor(step: int, fraction: float, config: TokenizerTrainConfig) -> float:
    """Linear warm-up, constant, linear decay to zero over the last ``decay_share`` of the run."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * (min(1.0, (1 - fraction) / config.decay_share) if config.decay_share else 1.0)


def train_tokenizer(
    data: str,
    out: str | Path,
    config: TokenizerTrainConfig,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
) -> ReconstructionReport:
    """Train on ``data`` (``"moving-digits"`` or a folder of videos and images) and write the tokenizer to folder ``out``.

    ``out`` receives ``config.json`` and ``model.safetensors`` (at each evaluation and at the end, also when interrupted by
    Ctrl-C), ``train.jsonl`` (one line per log interval) and ``training.json`` (configuration and result). With ``steps`` alone as
    bound, the result is a function of ``config`` on one machine and thread count.

    Raises:
        ValueError: the data set does not exist or holds nothing that fits.
        RuntimeError: the loss is no longer finite; the message names the step, the last checkpoint stays.
        OSError: ``out`` cannot be written, or another process writes there.
    """
    source = open_clips(
        data,
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
        fps=config.fps,
        channels=config.model.channels,
        temporal_stride=config.model.compression[0],
        seed=config.seed,
    )
    out = Path(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VisualAutoencoder(config.model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    tokenizer = VisualTokenizer(model)
    held_back = source.held_back(config.eval_clips)

    def finish(step: int, minutes: float) -> ReconstructionReport:
        tokenizer.save_pretrained(out, _DTYPES[config.weights])
        # What is measured is what was written, not the weights before they were rounded to the stored type.
        report = evaluate(VisualTokenizer.from_pretrained(out), held_back, config.batch_size)
        summary = {"data": data, "step": step, "minutes": round(minutes, 2), **asdict(report)}
        write_json_atomic(out / "training.json", {"result": summary, "config": _plain(config)})
        return report

    with owned_folder(out), open(out / "train.jsonl", "w", encoding="utf-8") as log:
        return _loop(model, source, config, log, on_progress, finish)


def _loop(
    model: VisualAutoencoder,
    source: ClipSource,
    config: TokenizerTrainConfig,
    log: IO[str],
    on_progress: Callable[[TrainProgress], None],
    finish: Callable[[int, float], ReconstructionReport],
) -> ReconstructionReport:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    batches = source.batches(config.batch_size)
    losses: list[float] = []
    begin = time.monotonic()
    busy_s = share = 0.0
    step = last_saved = 0

    def minutes() -> float:
        return (time.monotonic() - begin) / 60

    try:
        while share < 1:
            rate = config.learning_rate * learning_rate_factor(step, share, config)
            before = time.monotonic()
            losses.append(_step(model, optimizer, next(batches), rate, config))
            busy_s += time.monotonic() - before
            if not math.isfinite(losses[-1]):
                raise RuntimeError(f"loss is {losses[-1]} at step {step}: lower learning_rate or use precision fp32")
            step += 1
            share = min(1.0, max(step / config.steps, minutes() / (config.max_minutes or math.inf)))
            report = None
            if share == 1 or step % config.eval_every == 0:
                report, last_saved = finish(step, minutes()), step
            if report or step % config.log_every == 0:
                speed = config.batch_size * len(losses) / busy_s
                progress = TrainProgress(step, share, sum(losses) / len(losses), rate, speed, report)
                log.write(json.dumps(_plain(progress)) + "\n")
                log.flush()
                on_progress(progress)
                losses, busy_s = [], 0.0
    except KeyboardInterrupt:
        if step > last_saved:
            finish(step, minutes())
        raise
    assert report is not None  # a run has at least one step, and the last one evaluates
    return report


def _step(
    model: VisualAutoencoder,
    optimizer: torch.optim.Optimizer,
    frames: Tensor,
    rate: float,
    config: TokenizerTrainConfig,
) -> float:
    """One update on float frames ``[B, T, C, H, W]``; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        output = model(frames)
    loss = reconstruction_loss(output, frames, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them."""
    return {k: v for k, v in asdict(value).items() if v is not None}
