"""Where the randomness of generation comes from: counter-based noise by default, or recorded numbers for a replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..noise import gumbel, philox_uniform

SAMPLING_STREAM = 0
REMASKING_STREAM = 1


class NoiseSource(Protocol):
    """What a denoising step asks for. ``samples`` counts the samples of the call; ``frame`` is the latent frame's
    ordinal in the video, given frames included; ``step`` counts from 0; ``num_tokens`` is the frame's number of visual
    codes, in raster order."""

    def sampled_ids(self, frame: int, step: int, num_tokens: int) -> Tensor | None:
        """Ids to take instead of sampling, int64 [samples, num_tokens] in the vocabulary's numbering (ids of tokens
        that are already known are ignored), or None to sample with :meth:`uniforms`."""

    def uniforms(self, frame: int, step: int, num_tokens: int) -> Tensor:
        """Uniform numbers in [0, 1) that choose one code each, fp32 [samples, num_tokens]."""

    def gumbel(self, frame: int, step: int, num_tokens: int) -> Tensor:
        """Gumbel noise of the re-masking, fp32 [samples, num_tokens]."""


class PhiloxNoise:
    """Noise as a function of (seed, sample, frame, step, token) alone: independent of batch, order of calls, device and
    threads.

    Args:
        keys: one (seed, sample number) per sample of the call; seeds are 0 .. 2^63-1.
    """

    def __init__(self, keys: Sequence[tuple[int, int]]) -> None:
        self._seeds = [seed for seed, _ in keys]
        self._samples = [sample for _, sample in keys]

    def sampled_ids(self, frame: int, step: int, num_tokens: int) -> Tensor | None:
        return None

    def uniforms(self, frame: int, step: int, num_tokens: int) -> Tensor:
        return philox_uniform(self._seeds, self._samples, frame, step, num_tokens, SAMPLING_STREAM)

    def gumbel(self, frame: int, step: int, num_tokens: int) -> Tensor:
        return gumbel(self._seeds, self._samples, frame, step, num_tokens, REMASKING_STREAM)


class ReplayNoise:
    """Recorded ids and Gumbel noise, for instance those of a run of the original code.

    Args:
        sampled_ids: int64 [samples, frames, steps, num_tokens], or None to sample with uniforms of ``otherwise``.
        gumbel: fp32 of the same shape, or None to take that of ``otherwise``.
        first_frame: ordinal of the first recorded frame (the number of given frames).
        otherwise: source of what is not recorded.

    Raises:
        ValueError: if neither is recorded, a shape is not 4-dimensional, or a part is needed that neither the record
            nor ``otherwise`` holds.
    """

    def __init__(
        self,
        sampled_ids: Tensor | None = None,
        gumbel: Tensor | None = None,
        *,
        first_frame: int = 0,
        otherwise: NoiseSource | None = None,
    ) -> None:
        records = {"sampled_ids": sampled_ids, "gumbel": gumbel}
        if sampled_ids is None and gumbel is None:
            raise ValueError("ReplayNoise needs sampled_ids, gumbel or both")
        for name, record in records.items():
            if record is not None and record.dim() != 4:
                raise ValueError(
                    f"{name} must be [samples, frames, steps, num_tokens], got shape {tuple(record.shape)}"
                )
        self._records = records
        self._first_frame = first_frame
        self._otherwise = otherwise

    def _recorded(self, name: str, frame: int, step: int, num_tokens: int) -> Tensor | None:
        record = self._records[name]
        if record is None:
            return None
        row = frame - self._first_frame
        if not (0 <= row < record.shape[1] and step < record.shape[2] and num_tokens == record.shape[3]):
            raise ValueError(
                f"no recorded {name} for frame {frame}, step {step}, {num_tokens} tokens: the record begins at frame "
                f"{self._first_frame} and has shape {tuple(record.shape)}"
            )
        return record[:, row, step]

    def _fallback(self, name: str) -> NoiseSource:
        if self._otherwise is None:
            raise ValueError(f"{name} is not recorded and ReplayNoise was given no other source for it")
        return self._otherwise

    def sampled_ids(self, frame: int, step: int, num_tokens: int) -> Tensor | None:
        return self._recorded("sampled_ids", frame, step, num_tokens)

    def uniforms(self, frame: int, step: int, num_tokens: int) -> Tensor:
        return self._fallback("sampled_ids").uniforms(frame, step, num_tokens)

    def gumbel(self, frame: int, step: int, num_tokens: int) -> Tensor:
        recorded = self._recorded("gumbel", frame, step, num_tokens)
        return self._fallback("gumbel").gumbel(frame, step, num_tokens) if recorded is None else recorded
