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
            ``[sum of content tokens of a frame]``. ``u`` may stay on the CPU; from a GPU it is fetched, so that the host
            waits for it: the counts that it makes are computed there, with equal bits for every backend.
        mask_id: replaces the masked tokens.
        mode: "tube", "random", "diffusion_forcing" or "tube_decay".
        min_ratio: least share of masked positions.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        The masked tokens int64 ``[tokens]`` and the mask bool ``[tokens]``.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device, unknown mode, uniforms outside [0, 1), or a
        sequence without frames or with frames of different sizes. On CUDA the host does not look at
        ``rank_uniforms``: any numbers have an order.
    """
    op = "tube_mask"
    registry.check_tensor(op, "tokens", tokens, dtype=torch.int64, shape=(layout.num_tokens,))
    chosen = registry.select_backend(op, tokens, backend)
    starts, spans, counts, num_u, num_ranks = _plan(layout, mode)
    host = torch.device("cpu")
    u_device = host if isinstance(u, Tensor) and u.device == host else tokens.device
    registry.check_tensor(op, "u", u, dtype=torch.float32, shape=(num_u,), device=u_device)
    registry.check_tensor(
        op, "rank_uniforms", rank_uniforms, dtype=torch.float32, shape=(num_ranks,), device=tokens.device
    )
    u = u.cpu()
    for name, values in (("u", u), ("rank_uniforms", rank_uniforms))[: 1 if chosen == "cuda" else 2]:
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
    ratios = mask_ratio(u, min_ratio).split([frames if per_frame else 1 for _, frames in counts])
    numbers = [
        masked_counts(ratio, size, frames, mode).expand(frames)
        for ratio, (size, frames) in zip(ratios, counts, strict=True)
    ]
    return torch.cat(numbers).ceil().long()


def _tube_mask(
    tokens: Tensor, rank_uniforms: Tensor, starts: Tensor, spans: Tensor, num_masked: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    tokens, rank_uniforms = tokens.contiguous(), rank_uniforms.contiguous()
    out, mask = _tube_mask_fake(tokens, rank_uniforms, starts, spans, num_masked, mask_id)
    longest_draw = max(starts.diff().tolist(), default=0)
    plan = (x.to(tokens.device, non_blocking=True) for x in (starts, spans, num_masked))
    order = torch.empty_like(rank_uniforms, dtype=torch.int32)
    registry.call("tube_mask", tokens, rank_uniforms, *plan, mask_id, order, longest_draw, out, mask)
    return out, mask


def _tube_mask_fake(
    tokens: Tensor, rank_uniforms: Tensor, starts: Tensor, spans: Tensor, num_masked: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), tokens.new_empty(tokens.shape, dtype=torch.bool)


# starts, spans and num_masked lie on the CPU.
registry.define(
    "_tube_mask(Tensor tokens, Tensor rank_uniforms, Tensor starts, Tensor spans, Tensor num_masked, int mask_id) "
    "-> (Tensor, Tensor)",
    cpu=_tube_mask,
    cuda=_tube_mask,
    fake=_tube_mask_fake,
)
