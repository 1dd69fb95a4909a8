"""Make a tube pattern per packed sequence and apply it to its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _registry as registry

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
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask a part of the content of every frame: the corruption of AR-DF training (arXiv 2507.08801, section 3.3).

    What ``TubePattern.from_uniforms(...).apply(...)`` does for one sequence, for all packed sequences at once and
    with equal results. In a teacher-forcing layout the clean copies stay as they are.

    Args:
        tokens: int64 ``[tokens]``.
        layout: every sequence holds frames, all of one size.
        u, rank_uniforms: float32 in [0, 1), the numbers that ``TubePattern.from_uniforms`` takes for each sequence,
            flat, one sequence after the other. With mode "tube" ``u`` is ``[sequences]`` and ``rank_uniforms``
            ``[sum of content tokens of a frame]``.
        mask_id: replaces the masked tokens.
        mode: "tube", "random", "diffusion_forcing" or "tube_decay".
        min_ratio: least share of masked positions.
        backend: ``"reference"`` or ``"cpu"``; default by device.

    Returns:
        The masked tokens int64 ``[tokens]`` and the mask bool ``[tokens]``.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device, unknown mode, uniforms outside [0, 1), or a
        sequence without frames or with frames of different sizes.
    """
    op = "tube_mask"
    registry.check_tensor(op, "tokens", tokens, dtype=torch.int64, shape=(layout.num_tokens,))
    chosen = registry.select_backend(op, tokens, backend)
    starts, spans, counts, num_u, num_ranks = _plan(layout, mode)
    for name, values, size in (("u", u, num_u), ("rank_uniforms", rank_uniforms, num_ranks)):
        registry.check_tensor(op, name, values, dtype=torch.float32, shape=(size,), device=tokens.device)
        if not bool(((values >= 0) & (values < 1)).all()):
            raise ValueError(f"{op}: {name} holds {float(values.min())}..{float(values.max())}; it must be in [0, 1)")
    if chosen == "reference":
        return registry.reference("tube").tube_mask(
            tokens, layout, u, rank_uniforms, mask_id, mode=mode, min_ratio=min_ratio
        )
    num_masked = _num_masked(u, counts, mode, min_ratio)
    return torch.ops.lumos._tube_mask(tokens, rank_uniforms, starts, spans, num_masked, mask_id)


def _plan(layout: SequenceLayout, mode: str) -> tuple[Tensor, Tensor, list[tuple[int, int]], int, int]:
    """Where ranks and frames lie.

    Returns:
        int64 ``[draws + 1]``, where each independent draw of ranks begins in the flat uniforms; int64 ``[frames,
        3]``: first packed slot of the content, number of content tokens, place in the flat uniforms of the rank of
        the first one; (positions ranked together, frames) of each sequence; how many ratios and how many ranks are
        needed in all.
    """
    from ..layout import Frame
    from ..tubes import MODES

    if mode not in MODES:
        raise ValueError(f"tube_mask: mode is {mode!r}; allowed: {', '.join(MODES)}")
    starts, spans, counts = [0], [], []
    for sequence in range(layout.num_sequences):
        frames = [(s, begin) for s, begin, _ in layout.segments(sequence) if isinstance(s, Frame)]
        frames = frames[layout.clean_frames[sequence] :]
        sizes = sorted({frame.content_tokens for frame, _ in frames})
        if len(sizes) != 1:
            found = f"frames of {' and '.join(map(str, sizes))} content tokens" if sizes else "no frame"
            raise ValueError(f"tube_mask: sequence {sequence} of layout has {found}; it must have frames of one size")
        content, first_slot = sizes[0], int(layout.cu_seqlens[sequence])
        advance = 0 if mode in ("tube", "tube_decay") else content
        spans += [
            (first_slot + begin + frame.header, content, starts[-1] + advance * i)
            for i, (frame, begin) in enumerate(frames)
        ]
        draws = len(frames) if mode == "diffusion_forcing" else 1
        size = content * len(frames) if mode == "random" else content
        starts += [starts[-1] + size * (i + 1) for i in range(draws)]
        counts.append((size, len(frames)))
    num_u = sum(frames for _, frames in counts) if mode == "diffusion_forcing" else len(counts)
    return torch.tensor(starts), torch.tensor(spans), counts, num_u, starts[-1]


def _num_masked(u: Tensor, counts: list[tuple[int, int]], mode: str, min_ratio: float) -> Tensor:
    """int64 [frames]: a content token of rank r is masked where r is below the number of its frame."""
    from ..tubes import mask_ratio, masked_counts

    per_frame = mode == "diffusion_forcing"
    ratios = mask_ratio(u.cpu(), min_ratio).split([frames if per_frame else 1 for _, frames in counts])
    numbers = [
        masked_counts(ratio, size, frames, mode).expand(frames)
        for ratio, (size, frames) in zip(ratios, counts, strict=True)
    ]
    return torch.cat(numbers).ceil().long()


def _tube_mask_cpu(
    tokens: Tensor, rank_uniforms: Tensor, starts: Tensor, spans: Tensor, num_masked: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    tokens, rank_uniforms = tokens.contiguous(), rank_uniforms.contiguous()
    out, mask = _tube_mask_fake(tokens, rank_uniforms, starts, spans, num_masked, mask_id)
    view = registry.view
    registry.extension().tube_mask(
        view(tokens), view(rank_uniforms), view(starts), view(spans), view(num_masked), mask_id, view(out), view(mask),
        torch.get_num_threads(),
    )  # fmt: skip
    return out, mask


def _tube_mask_fake(
    tokens: Tensor, rank_uniforms: Tensor, starts: Tensor, spans: Tensor, num_masked: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), tokens.new_empty(tokens.shape, dtype=torch.bool)


registry.define(
    "_tube_mask(Tensor tokens, Tensor rank_uniforms, Tensor starts, Tensor spans, Tensor num_masked, int mask_id) "
    "-> (Tensor, Tensor)",
    cpu=_tube_mask_cpu,
    fake=_tube_mask_fake,
)
