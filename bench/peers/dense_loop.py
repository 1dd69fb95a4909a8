"""The original's generation loop, written from its specification: what people run today.

Conditional and unconditional branch as two calls of batch 1; an L x L mask in fp32, built anew for each frame; keys and values
in tensors that grow by concatenation and shrink by cropping at every step; logits of the whole vocabulary for all tokens that
were run, in fp32; softmax and multinomial over full rows. The frame is committed by one more call with its history pattern
masked, after the last frame too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_engine import Vocabulary

from .plain_model import PlainModel

__all__ = ["generate"]

HISTORY_MASK_RATIO = 0.7
FRAME_HEADER = 3


class Branch:
    """One sequence: its ids, its positions, and keys and values of each layer."""

    def __init__(self, model: PlainModel, lead: Sequence[int], vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.tokens = torch.tensor(lead)
        self.positions = torch.arange(len(lead)).repeat(3, 1)
        self.first_content = len(lead) + FRAME_HEADER
        self.frames: list[tuple[int, int]] = []
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.mask = torch.empty(0)

    def append_frame(self, height: int, width: int) -> None:
        vocabulary, begin = self.vocabulary, len(self.tokens)
        row = [vocabulary.mask] * width + [vocabulary.newline]
        frame = torch.tensor([*vocabulary.frame_header(height, width), *(row * height), vocabulary.image_end])
        index = torch.arange(begin, begin + len(frame)).repeat(3, 1)
        place = torch.arange(height * (width + 1))
        grid = torch.stack((torch.full_like(place, len(self.frames)), place // (width + 1), place % (width + 1)))
        stride = torch.tensor(vocabulary.strides)[:, None]
        index[:, FRAME_HEADER:-1] = self.first_content + stride * grid
        self.tokens = torch.cat((self.tokens, frame))
        self.positions = torch.cat((self.positions, index), 1)
        self.frames.append((begin, begin + len(frame)))
        size = len(self.tokens)
        visible = torch.ones(size, size, dtype=torch.bool).tril()
        for first, last in self.frames:
            visible[first:last, first:last] = True
        self.mask = torch.zeros(1, 1, size, size).masked_fill(~visible, torch.finfo(torch.float32).min)

    def run(self, keep: bool) -> Tensor:
        """Logits fp32 [tokens run, vocabulary] of everything that the cache lacks; with ``keep`` it has it afterwards."""
        cached = self.cache[0][0].shape[2] if self.cache else 0
        grown: list[tuple[Tensor, Tensor]] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            if self.cache:
                k, v = (torch.cat((old, new), 2) for old, new in zip(self.cache[layer], (k, v), strict=True))
            grown.append((k, v))
            mask = self.mask[:, :, cached:].to(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)

        weight = self.model.lm_head.weight
        hidden = self.model(self.tokens[cached:], self.positions[:, cached:].T, attend, weight.dtype)
        logits = F.linear(hidden, weight).float()
        end = len(self.tokens) if keep else self.frames[-1][0]
        self.cache = [(k[:, :, :end], v[:, :, :end]) for k, v in grown]
        return logits


@torch.inference_mode()
def generate(
    model: PlainModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    header: Sequence[int],
    *,
    height: int,
    width: int,
    num_frames: int,
    steps: int,
    guidance_scale: float,
    greedy: bool = False,
) -> Tensor:
    """Codes int64 [num_frames, height, width]. ``greedy``: the most probable codes, and no noise in the re-masking."""
    branches = [Branch(model, lead, vocabulary) for lead in ([*prompt, *header], header)]
    newline = torch.arange(height * (width + 1)) % (width + 1) == width
    content = newline.numel()
    num_hidden = max(1, round(HISTORY_MASK_RATIO * content))
    hidden = (torch.arange(num_hidden).float() * (content / num_hidden)).round().long().clamp(max=content - 1)
    temperature = 0.0 if greedy else 1.0
    frames = []
    for _ in range(num_frames):
        for branch in branches:
            branch.append_frame(height, width)
        size = branches[0].frames[-1][1] - branches[0].frames[-1][0]
        codes_in_frame = FRAME_HEADER + (~newline).nonzero()[:, 0]
        num_codes = len(codes_in_frame)
        ids = torch.full((num_codes,), vocabulary.mask)
        for step in range(steps):
            cond, uncond = (branch.run(keep=False)[-size:][codes_in_frame] for branch in branches)
            logits = guidance_scale * (cond - uncond) + uncond
            logits[:, : vocabulary.visual_begin] = -torch.inf
            logits[:, vocabulary.visual_end :] = -torch.inf
            probabilities = logits.softmax(-1)
            sampled = probabilities.argmax(-1) if greedy else torch.multinomial(probabilities, 1)[:, 0]
            unknown = ids == vocabulary.mask
            ids = torch.where(unknown, sampled, ids)
            if step < steps - 1:
                done = torch.tensor((step + 1) / steps)
                count = math.floor(num_codes * float(torch.cos(done * math.pi / 2)))
                count = max(1, min(count, int(unknown.sum()) - 1))
                temperature *= 1 - (step + 1) / steps
                confidence = probabilities.gather(-1, ids[:, None])[:, 0].clamp(min=1e-20).log()
                if temperature:
                    confidence -= temperature * torch.empty_like(confidence).exponential_().log()
                confidence[~unknown] = torch.finfo(torch.float32).max
                ids = ids.masked_fill(confidence < confidence.sort().values[count], vocabulary.mask)
            for branch in branches:
                branch.tokens[-size + codes_in_frame] = ids
        frames.append((ids - vocabulary.visual_begin).view(height, width))
        for branch in branches:
            branch.tokens[-size + FRAME_HEADER + hidden] = vocabulary.mask
            branch.run(keep=True)
    return torch.stack(frames)
