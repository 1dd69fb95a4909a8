"""Running the model on one frame and its history: through a paged KV cache, or by recomputing the whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..kv_cache import CacheStep, PagedKVCache
from .canvas import TokenCanvas

if TYPE_CHECKING:
    from ..model import LumosModel


class FrameForward(Protocol):
    """What the frame loop needs. ``query_tokens`` and ``cached_tokens`` describe the latest call, per sequence."""

    query_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]

    def hidden(self, frame: int, codes: Tensor | None = None) -> Tensor:
        """Final hidden states [sequences, n, width] of chosen codes of the frame, as the canvas stands.

        Args:
            codes: their places in raster order, int64 [samples, n]; all by default.
        """

    def commit(self, frame: int) -> None:
        """Take the frame, as the canvas stands, into the history of later frames."""


class CachedForward:
    """All sequences in one packed call; keys and values of the history come from the cache.

    The first call runs prompt, header, given frames and the frame in the making together and commits all but the last;
    later calls run one frame. The pages of the frame in the making stay open and are overwritten by each step. What sequences
    have in common before it (samples of one prompt, unconditional branches) runs once, and they hold its pages together.
    With a window, frames that left it give their pages back.

    Args:
        dropped: content tokens bool [content_tokens] whose keys a finished frame does not keep, or None.
        first: the first frame to be generated; earlier ones are on the canvas already.
        clean_frames: leading frames to which ``dropped`` does not apply.
    """

    def __init__(
        self,
        model: LumosModel,
        canvas: TokenCanvas,
        *,
        dropped: Tensor | None,
        first: int,
        clean_frames: int,
        page_size: int,
        num_pages: int | None,
    ) -> None:
        config = model.config
        weight = model.lm_head.weight
        self._model = model
        self._canvas = canvas
        self._dropped = dropped
        self._sequences = range(canvas.num_sequences)
        self._cache = PagedKVCache(
            canvas.layout,
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            page_size=page_size,
            num_pages=num_pages or self._pages_in_window(first, page_size),
            dtype=weight.dtype,
            device=weight.device,
        )
        self._open: CacheStep | None = None
        self.query_tokens: tuple[int, ...] = ()
        self.cached_tokens: tuple[int, ...] = ()
        self._share_prefix(first if dropped is None else clean_frames)
        if dropped is not None:  # dropped keys can only leave when their frame is committed: one frame a call
            for frame in range(clean_frames, first):
                self.commit(frame)

    def _pages_in_window(self, first: int, page_size: int) -> int | None:
        """Pages that are ever in use at a time where frames are evicted; None: those of the whole clip."""
        canvas = self._canvas
        if canvas.window_frames is None:
            return None
        begins = canvas.frame_begin(0)
        frame_pages = -(-(canvas.frame_begin(1)[0] - begins[0]) // page_size)
        num_frames = max(first, min(canvas.num_frames - 1, canvas.window_frames + canvas.sink_frames)) + 1
        return sum(-(-text // page_size) + num_frames * frame_pages for text in begins)

    def _share_prefix(self, num_frames: int) -> None:
        """Run and commit everything before frame ``num_frames`` once for all sequences that have the same tokens there."""
        canvas = self._canvas
        ends = canvas.frame_begin(num_frames)
        groups: dict[tuple[int, ...], list[int]] = {}
        for sequence, (begin, end) in enumerate(zip(canvas.layout.cu_seqlens.tolist(), ends, strict=False)):
            groups.setdefault(tuple(canvas.tokens[begin : begin + end].tolist()), []).append(sequence)
        if len(groups) == canvas.num_sequences:
            return
        leaders = [members[0] for members in groups.values()]
        cache_step = self._cache.begin(canvas.layout.step(leaders, 0, [ends[sequence] for sequence in leaders]))
        self._fill(cache_step)
        self._cache.commit(cache_step)
        for source, *targets in groups.values():
            self._cache.fork(source, targets)
        self._evict()

    def _evict(self) -> None:
        if self._canvas.window_frames is not None:
            for sequence in self._sequences:
                self._cache.evict(sequence, self._canvas.window_frames, self._canvas.sink_frames)

    @property
    def cache(self) -> PagedKVCache:
        return self._cache

    def _begin(self, frame: int) -> CacheStep:
        """Open everything from the end of the committed tokens to the end of ``frame``."""
        if self._open is None:
            begin = [self._cache.committed(sequence) for sequence in self._sequences]
            step = self._canvas.layout.step(list(self._sequences), begin, self._canvas.frame_begin(frame + 1))
            self._open = self._cache.begin(step)
        return self._open

    def _tokens(self, cache_step: CacheStep) -> Tensor:
        step = cache_step.step
        self.cached_tokens = step.begin
        self.query_tokens = tuple(end - begin for begin, end in zip(step.begin, step.end, strict=True))
        return self._canvas.tokens[step.slots_in_layout]

    def _fill(self, cache_step: CacheStep) -> None:
        tokens = self._tokens(cache_step)
        self._model.fill_cache(tokens, cache_step.step, cache=self._cache, cache_step=cache_step)

    def hidden(self, frame: int, codes: Tensor | None = None) -> Tensor:
        cache_step = self._begin(frame)
        step = cache_step.step
        tokens = self._tokens(cache_step)
        shift = step.cu_seqlens[:-1].to(torch.int64) - torch.tensor(step.begin, device=tokens.device)
        rows = self._canvas.code_index(frame, codes) + shift[:, None]
        hidden = self._model.hidden_states(tokens, step, rows=rows.flatten(), cache=self._cache, cache_step=cache_step)
        frame_begin = self._canvas.frame_begin(frame)
        if list(step.begin) != frame_begin:
            self._cache.commit(cache_step, end=frame_begin)
            self._open = None
            self._evict()
        return hidden.unflatten(0, rows.shape)

    def commit(self, frame: int) -> None:
        cache_step = self._begin(frame)
        self._fill(cache_step)
        keep = None
        if self._dropped is not None:
            visible = torch.ones(self._canvas.layout.num_tokens, dtype=torch.bool, device=self._dropped.device)
            visible[self._canvas.content_slots(frame)[:, self._dropped]] = False
            keep = visible[cache_step.step.slots_in_layout]
        self._cache.commit(cache_step, keep=keep)
        self._open = None
        self._evict()


class RecomputedForward:
    """The definition that :class:`CachedForward` must equal: every call runs everything up to the frame."""

    def __init__(self, model: LumosModel, canvas: TokenCanvas, *, dropped: Tensor | None, clean_frames: int) -> None:
        self._model = model
        self._canvas = canvas
        self._dropped = dropped
        self._clean_frames = clean_frames
        self.query_tokens: tuple[int, ...] = ()
        self.cached_tokens = (0,) * canvas.num_sequences

    def hidden(self, frame: int, codes: Tensor | None = None) -> Tensor:
        canvas = self._canvas
        self.query_tokens = tuple(canvas.frame_begin(frame + 1))
        layout = canvas.layout_of(frame + 1).to(canvas.tokens.device)
        lengths = torch.tensor(self.query_tokens, device=canvas.tokens.device)
        running = canvas.layout.index < lengths[canvas.layout.sequence_id]
        if self._dropped is not None:
            hidden = torch.zeros_like(running)
            for earlier in range(self._clean_frames, frame):
                hidden[canvas.content_slots(earlier)[:, self._dropped]] = True
            layout = layout.with_hidden(hidden[running])
        rows = canvas.code_index(frame, codes) + layout.cu_seqlens[:-1].to(torch.int64)[:, None]
        states = self._model.hidden_states(canvas.tokens[running], layout, rows=rows.flatten())
        return states.unflatten(0, rows.shape)

    def commit(self, frame: int) -> None:
        """Nothing to do: the next call reads the canvas."""
