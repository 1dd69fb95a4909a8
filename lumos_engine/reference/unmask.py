"""One denoising step of a frame: guidance, sampling, confidence; then re-masking."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Bound on the logits that are worked on at a time."""


def sample_codes(
    cond_logits: Tensor,
    uncond_logits: Tensor | None,
    known: Tensor,
    *,
    guidance_scale: float = 1.0,
    sampling_temperature: float = 1.0,
    uniforms: Tensor | None = None,
    sampled_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.sample_codes``."""
    sampled = torch.zeros(known.shape, dtype=torch.int64, device=known.device)
    confidence = torch.empty(known.shape, dtype=torch.float32, device=known.device)
    # Known rows are not looked at, whatever they hold. The others go in chunks: a row of a large vocabulary is long.
    unknown = (~known).flatten().nonzero()[:, 0]
    for rows in unknown.split(max(1, CHUNK_ELEMENTS // cond_logits.shape[-1])):
        logits = cond_logits.flatten(0, 1)[rows].float()
        if uncond_logits is not None:
            uncond = uncond_logits.flatten(0, 1)[rows].float()
            logits = guidance_scale * (logits - uncond) + uncond
        probabilities = torch.softmax(logits / sampling_temperature if sampling_temperature > 0 else logits, dim=-1)
        if sampled_ids is not None:
            chosen = sampled_ids.flatten()[rows]
        elif sampling_temperature > 0 and uniforms is not None:
            chosen = inverse_cdf(probabilities, uniforms.flatten()[rows])
        else:
            chosen = logits.argmax(-1)
        sampled.view(-1)[rows] = chosen
        confidence.view(-1)[rows] = probabilities.gather(-1, chosen[:, None])[:, 0]
    return sampled, confidence.masked_fill(known, torch.finfo(torch.float32).max)


def remask(
    confidence: Tensor,
    known: Tensor,
    *,
    num_masked: int | Tensor,
    temperature: float = 0.0,
    gumbel: Tensor | None = None,
) -> Tensor:
    """See ``lumos_engine.ops.remask``."""
    score = confidence.clamp(min=1e-20).log()
    if temperature > 0:
        assert gumbel is not None, "the caller checks it"
        score = score + temperature * gumbel
    score = score.masked_fill(known, torch.inf)
    num_unknown = (~known).sum(-1)
    count = torch.as_tensor(num_masked, device=known.device).expand(num_unknown.shape)
    count = torch.minimum(count, num_unknown - 1).clamp(min=1)
    ordered = torch.nn.functional.pad(score.sort(-1).values, (0, 1), value=torch.inf)
    cutoff = ordered.gather(-1, count.clamp(max=score.shape[-1])[..., None])
    return (score < cutoff) & ~known


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """First class whose cumulative probability exceeds the uniform of its row: [rows, classes], [rows] -> [rows].

    Sums are taken in fp64, so that their order decides nothing in practice. The uniform, at most 1 - 2^-24, is
    scaled by their total: no rounding lets it reach past the last class, or pick one of probability 0.
    """
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniforms.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
