"""The denoising schedule of one frame: how many codes stay masked after each step, and the re-masking temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def num_masked_tokens(num_tokens: int, num_steps: int) -> list[int]:
    """Codes still masked after step s = 0 .. num_steps-1: ``floor(num_tokens * cos(pi/2 * (s+1)/num_steps))``.

    The arithmetic is fp32 on purpose: where the cosine hits a fraction exactly (ratio 2/3, say) fp32 and fp64 give
        different
    counts, and published results were sampled with the fp32 ones. Counts are not clamped yet: ``unmask_step`` keeps at
        least one
    masked and unmasks at least one. The last step unmasks everything, whatever the count says.

    Raises:
        ValueError: if either number is below 1.
    """
    if num_tokens < 1 or num_steps < 1:
        raise ValueError(f"num_tokens and num_steps must be at least 1, got {num_tokens} and {num_steps}")
    progress = torch.tensor([(step + 1) / num_steps for step in range(num_steps)], dtype=torch.float32)
    return torch.floor(num_tokens * torch.cos(progress * math.pi * 0.5)).to(torch.int64).tolist()


@dataclass(frozen=True)
class TemperatureSchedule:
    """Scale of the Gumbel noise that is added to log-confidences before re-masking.

    Step s of every frame has ``initial * (1 - (s+1)/num_steps)``. With ``compounding`` the factors multiply up and are
    never reset, as
    in the original code: the noise fades within the first generated frame and is exactly zero from its last step on.

    Attributes:
        initial: temperature before the first step, >= 0; 0 means re-masking by confidence alone.
        num_steps: denoising steps per frame.
        compounding: reproduce the original's product.
    """

    initial: float
    num_steps: int
    compounding: bool = False

    def at(self, step: int, *, first_generated: bool) -> float:
        """Temperature of ``step`` in a frame; ``first_generated``: it is the first frame that the call generates."""
        if not self.compounding:
            return self.initial * (1.0 - (step + 1) / self.num_steps)
        if not first_generated:
            return 0.0
        value = self.initial
        for earlier in range(step + 1):
            value *= 1.0 - (earlier + 1) / self.num_steps
        return value
