"""One denoising step of a frame: guidance, sampling, confidence, re-masking."""

from __future__ import annotations

import torch
from torch import Tensor


def unmask_step(
    cond_logits: Tensor,
    uncond_logits: Tensor | None,
    ids: Tensor,
    known: Tensor,
    *,
    guidance_scale: float = 1.0,
    sampling_temperature: float = 1.0,
    temperature: float = 0.0,
    num_masked: int | Tensor,
    uniforms: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    gumbel: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``lumos_engine.ops.unmask_step``."""
    logits = cond_logits.float()
    if uncond_logits is not None:
        uncond = uncond_logits.float()
        logits = guidance_scale * (logits - uncond) + uncond
    probabilities = torch.softmax(logits / sampling_temperature if sampling_temperature > 0 else logits, dim=-1)
    if sampled_ids is None:
        sampled_ids = logits.argmax(-1) if sampling_temperature == 0 else _inverse_cdf(probabilities, uniforms)
    # What a caller replays for known tokens is not looked at.
    sampled = sampled_ids.masked_fill(known, 0)
    confidence = probabilities.gather(-1, sampled[..., None])[..., 0]
    confidence = confidence.masked_fill(known, torch.finfo(torch.float32).max)

    score = confidence.clamp(min=1e-20).log()
    if temperature > 0:
        score = score + temperature * gumbel
    score = score.masked_fill(known, torch.inf)
    num_unknown = (~known).sum(-1)
    count = torch.as_tensor(num_masked, device=known.device).expand(num_unknown.shape)
    count = torch.minimum(count, num_unknown - 1).clamp(min=1)
    ordered = torch.nn.functional.pad(score.sort(-1).values, (0, 1), value=torch.inf)
    cutoff = ordered.gather(-1, count.clamp(max=score.shape[-1])[..., None])
    return torch.where(known, ids, sampled), confidence, (score < cutoff) & ~known


def _inverse_cdf(probabilities: Tensor, uniforms: Tensor | None) -> Tensor:
    """The first class whose cumulative probability exceeds the uniform; sums in fp64, so that their order does not matter in practice."""
    if uniforms is None:
        raise ValueError("unmask_step: neither uniforms nor sampled_ids is given and sampling_temperature is not 0")
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniforms.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)
