"""TubePattern: which content tokens of each frame are masked, in AR-DF training and in history (arXiv 2507.08801, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .layout import Frame, SequenceLayout
from .layout.segments import checked_int

MODES = ("tube", "random", "diffusion_forcing", "tube_decay")

# Streams of the counter-based generator: the ratio and the ranks of one sample never share a draw.
_RATIO_STREAM, _RANK_STREAM = 16, 17


def mask_ratio(u: torch.Tensor | float, min_ratio: float = 0.7) -> torch.Tensor:
    """max(cos(pi u / 2), min_ratio) in fp32, for u uniform in [0, 1); any shape."""
    u = torch.as_tensor(u, dtype=torch.float32)
    return torch.clamp(torch.cos(u * math.pi * 0.5), min=_checked_ratio("min_ratio", min_ratio))


def masked_counts(ratio: torch.Tensor, size: int, num_frames: int, mode: str) -> torch.Tensor:
    """How many of `size` positions each ratio [n] masks, fp32: max(1, round(size ratio)), to nearest even; a position of rank r is
    masked where r < count. In mode "tube_decay" [frames] for ratio [1], rising linearly to `size`, not rounded again."""
    count = (size * ratio).round().clamp(min=1)
    return torch.linspace(float(count), size, num_frames) if mode == "tube_decay" else count


@dataclass(frozen=True, eq=False)
class TubePattern:
    """Masked content positions, newline tokens included.

    masked: bool [frames, content_tokens], one row per frame; in mode "tube" and "history" all rows are equal.
    mode: one of MODES, or "history". ratio: the mask ratio of each draw, before rounding to a count (one per frame in
    mode "diffusion_forcing", else one).
    """

    masked: torch.Tensor
    mode: str
    ratio: tuple[float, ...]

    @property
    def num_frames(self) -> int:
        return self.masked.shape[0]

    @property
    def content_tokens(self) -> int:
        return self.masked.shape[1]

    @classmethod
    def sample(
        cls,
        num_frames: int,
        content_tokens: int,
        mode: str = "tube",
        min_ratio: float = 0.7,
        *,
        uniforms: tuple[torch.Tensor, torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        noise: tuple[int, int] | None = None,
    ) -> TubePattern:
        """Draw a pattern. At most one source may be given.

        uniforms: (u, rank_uniforms) as `from_uniforms` takes them. noise: (seed, sample) of the counter-based generator,
        the same pattern everywhere. generator: a CPU torch.Generator; without any source, torch's global one. From a torch generator
        the numbers are drawn in the order of the original: one u, in mode "diffusion_forcing" then one u per frame instead of
        it, then the ranks, per frame in that mode and at once in the others.
        Raises ValueError or TypeError naming the argument.
        """
        frames = checked_int("num_frames", num_frames, 1)
        content = checked_int("content_tokens", content_tokens, 1)
        per_frame = _checked_mode(mode) == "diffusion_forcing"
        if sum(source is not None for source in (uniforms, generator, noise)) > 1:
            raise ValueError("uniforms, generator and noise exclude each other; give at most one")
        if uniforms is not None:
            u, ranks = uniforms
        elif noise is not None:
            from .noise import philox_uniform

            seed, index = noise
            num_ranks = content if mode in ("tube", "tube_decay") else frames * content
            u = philox_uniform(seed, index, 0, 0, frames if per_frame else 1, _RATIO_STREAM)
            ranks = philox_uniform(seed, index, 0, 0, num_ranks, _RANK_STREAM)
        else:
            u = torch.rand(1, generator=generator)
            if per_frame:
                u = torch.rand(frames, generator=generator)
                ranks = torch.cat([torch.rand(1, content, generator=generator) for _ in range(frames)])
            else:
                ranks = torch.rand(1, frames * content if mode == "random" else content, generator=generator)
        return cls.from_uniforms(u, ranks, frames, content, mode, min_ratio)

    @classmethod
    def from_uniforms(
        cls,
        u: torch.Tensor,
        rank_uniforms: torch.Tensor,
        num_frames: int,
        content_tokens: int,
        mode: str = "tube",
        min_ratio: float = 0.7,
    ) -> TubePattern:
        """The pattern that uniforms in [0, 1) make. With n positions, m = max(1, round(n p)), p = mask_ratio(u) and r = argsort
        of the rank uniforms, position j is masked where r[j] < m: an exact count.

        tube: u [1], ranks [content_tokens]; one pattern for all frames.
        random: u [1], ranks [frames * content_tokens]; one draw over the whole video.
        diffusion_forcing: u [frames], ranks [frames, content_tokens]; a ratio and a draw per frame.
        tube_decay: as tube, the count rising linearly from m in the first frame to content_tokens in the last.
        Ranks may have any shape of the right size. Raises ValueError or TypeError naming the argument.
        """
        frames = checked_int("num_frames", num_frames, 1)
        content = checked_int("content_tokens", content_tokens, 1)
        per_frame = _checked_mode(mode) == "diffusion_forcing"
        u = _checked_uniforms("u", u, frames if per_frame else 1)
        shared = mode in ("tube", "tube_decay")
        rank_uniforms = _checked_uniforms("rank_uniforms", rank_uniforms, content if shared else frames * content)
        ratio = mask_ratio(u, min_ratio)
        size = frames * content if mode == "random" else content
        order = rank_uniforms.view(-1, size).argsort(dim=-1, stable=True)
        masked = order < masked_counts(ratio, size, frames, mode)[:, None]
        if mode == "tube":
            masked = masked.expand(frames, content)
        return cls(masked.reshape(frames, content).contiguous(), mode, tuple(ratio.tolist()))

    @classmethod
    def history(cls, content_tokens: int, ratio: float = 0.7, num_frames: int = 1) -> TubePattern:
        """The evenly spaced pattern of finished frames at generation: n = max(1, round(ratio content_tokens)) positions
        round(i content_tokens / n), the same in every frame. ratio in 0..1; 0 masks nothing."""
        content = checked_int("content_tokens", content_tokens, 1)
        frames = checked_int("num_frames", num_frames, 1)
        ratio = _checked_ratio("ratio", ratio)
        masked = torch.zeros(frames, content, dtype=torch.bool)
        if ratio:
            n = max(1, round(ratio * content))
            places = (torch.arange(n) * (content / n)).round().long()
            masked[:, places] = True
        return cls(masked, "history", (ratio,))

    def token_mask(self, layout: SequenceLayout, sequence: int) -> torch.Tensor:
        """bool [tokens of `sequence`]: the masked tokens, on the layout's device, in the order of the segments.

        The pattern has a row for each frame of the sequence; in a teacher-forcing layout for each noisy frame, clean copies
        stay unmasked. ValueError where the number or the size of the frames differs.
        """
        return self._spread(layout, sequence, slice(layout.clean_frames[sequence], None))

    def history_mask(self, layout: SequenceLayout, sequence: int) -> torch.Tensor:
        """As `token_mask`, of the frames that later ones see: in a teacher-forcing layout the clean copies, the noisy
        frames stay unmasked."""
        return self._spread(layout, sequence, slice(layout.clean_frames[sequence] or None))

    def _spread(self, layout: SequenceLayout, sequence: int, copies: slice) -> torch.Tensor:
        segments = layout.segments(sequence)
        frames = [(s, begin) for s, begin, _ in segments if isinstance(s, Frame)]
        num_frames = len(frames) - layout.clean_frames[sequence]
        if num_frames != self.num_frames:
            raise ValueError(f"pattern has {self.num_frames} frames, sequence {sequence} of layout has {num_frames}")
        mask = torch.zeros(segments[-1][2], dtype=torch.bool)
        for row, (frame, begin) in zip(self.masked, frames[copies], strict=False):  # the last frame has no clean copy
            if frame.content_tokens != self.content_tokens:
                raise ValueError(
                    f"pattern has {self.content_tokens} content tokens a frame, {frame} in sequence {sequence} of layout "
                    f"has {frame.content_tokens}"
                )
            first = begin + frame.header
            mask[first : first + frame.content_tokens] = row
        return mask.to(layout.positions.device)

    def apply(self, tokens: torch.Tensor, layout: SequenceLayout, sequence: int, mask_id: int) -> torch.Tensor:
        """A copy of `tokens` with the masked ones replaced by `mask_id`.

        tokens: integer tensor with the tokens of `sequence` alone or of the whole layout. Errors as in `token_mask`.
        """
        if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
            got = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise TypeError(f"tokens must be an integer tensor, got {got}")
        mask = self.token_mask(layout, sequence).to(tokens.device)
        out = tokens.clone()
        if tokens.shape == mask.shape:
            return out.masked_fill_(mask, mask_id)
        if tokens.shape != (layout.num_tokens,):
            raise ValueError(
                f"tokens must have shape ({len(mask)},) (sequence {sequence}) or ({layout.num_tokens},) (the layout), got "
                f"{tuple(tokens.shape)}"
            )
        begin = int(layout.cu_seqlens[sequence])
        out[begin : begin + len(mask)].masked_fill_(mask, mask_id)
        return out


def _checked_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def _checked_ratio(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}")
    return float(value)


def _checked_uniforms(name: str, tensor: torch.Tensor, size: int) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a float32 tensor, got {got}")
    if tensor.numel() != size:
        raise ValueError(f"{name} must hold {size} values, got shape {tuple(tensor.shape)}")
    if not bool(((tensor >= 0) & (tensor < 1)).all()):
        raise ValueError(f"{name} must be in [0, 1), got values {float(tensor.min())}..{float(tensor.max())}")
    return tensor.detach().reshape(-1)
