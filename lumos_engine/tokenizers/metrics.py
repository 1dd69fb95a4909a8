"""How well a visual tokenizer reconstructs clips, and how it uses its codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .visual import VisualTokenizer

__all__ = ["ReconstructionReport", "evaluate"]


@dataclass(frozen=True)
class ReconstructionReport:
    """Measured on uint8 frames after encoding and decoding.

    Attributes:
        psnr: peak signal to noise ratio in dB, mean over clips.
        pooled_psnr: the same from the mean squared error of all clips together; never above ``psnr``.
        codes_used: number of different codes seen.
        num_codes: number of codes there are.
        most_common_share: share of positions with the most frequent code; with digits on black, the blank one.
    """

    psnr: float
    pooled_psnr: float
    codes_used: int
    num_codes: int
    most_common_share: float


def evaluate(tokenizer: VisualTokenizer, clips: Tensor, batch_size: int = 32) -> ReconstructionReport:
    """Reconstruct ``clips`` uint8 ``[N, T, H, W, C]`` in batches."""
    errors, counts = [], torch.zeros(tokenizer.num_codes, dtype=torch.int64)
    for chunk in clips.split(batch_size):
        codes = tokenizer.encode_batch(chunk)
        output = tokenizer.decode_batch(codes)[..., : chunk.shape[-1]].cpu()
        errors.append((output.double() - chunk.double()).square().flatten(1).mean(1))
        counts += codes.flatten().cpu().bincount(minlength=tokenizer.num_codes)
    error = torch.cat(errors).clamp(min=1e-3)  # a perfect clip counts as 78 dB

    def decibel(squared: Tensor) -> Tensor:
        return 10 * torch.log10(255.0**2 / squared)

    return ReconstructionReport(
        psnr=round(decibel(error).mean().item(), 3),
        pooled_psnr=round(decibel(error.mean()).item(), 3),
        codes_used=int((counts > 0).sum()),
        num_codes=tokenizer.num_codes,
        most_common_share=round((counts.max() / counts.sum()).item(), 4),
    )
