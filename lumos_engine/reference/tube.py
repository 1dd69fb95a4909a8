"""Make a tube pattern per sequence and apply it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layout import Frame
from ..tubes import TubePattern

if TYPE_CHECKING:
    from ..layout import SequenceLayout


def tube_mask(
    tokens: Tensor,
    layout: SequenceLayout,
    u: Tensor,
    rank_uniforms: Tensor,
    mask_id: int,
    *,
    mode: str = "tube",
    min_ratio: float = 0.7,
) -> tuple[Tensor, Tensor]:
    """See ``lumos_engine.ops.tube_mask``."""
    masks = []
    for sequence in range(layout.num_sequences):
        frames = [s for s, _, _ in layout.segments(sequence) if isinstance(s, Frame)][layout.clean_frames[sequence] :]
        content = frames[0].content_tokens
        num_u = len(frames) if mode == "diffusion_forcing" else 1
        num_ranks = content if mode in ("tube", "tube_decay") else len(frames) * content
        ratio, ranks = u[:num_u], rank_uniforms[:num_ranks]
        u, rank_uniforms = u[num_u:], rank_uniforms[num_ranks:]
        pattern = TubePattern.from_uniforms(ratio.cpu(), ranks.cpu(), len(frames), content, mode, min_ratio)
        masks.append(pattern.token_mask(layout, sequence))
    mask = torch.cat(masks).to(tokens.device)
    return tokens.masked_fill(mask, mask_id), mask
