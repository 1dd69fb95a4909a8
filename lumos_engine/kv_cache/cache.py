"""A paged KV cache for iterative refinement: write a frame again and again, then commit it or take it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .drop import dropped_tokens
from .evict import evicted_rows
from .fork import check_fork
from .key import key_fields, layout_fields, require_equal
from .pages import PagePool
from .plan import CachePlan
from .step import CacheStep, make_cache_step
from .table import PageTable

if TYPE_CHECKING:
    from ..layout import LayoutStep, SequenceLayout

__all__ = ["PagedKVCache"]


class PagedKVCache:
    """Keys (rotated) and values of all layers and sequences of one layout, in pages that all layers share the table of.

    A token range of a sequence is *open* between :meth:`begin` and :meth:`commit` or :meth:`rollback`; what was committed is
    never written again. Every segment starts on a fresh page. Sequences that begin alike can hold the same pages (:meth:`fork`).
    No gradient flows through a cache.

    Args:
        layout: the whole sequences as they will be in the end, without hidden keys: tokens that later queries shall not see
            are dropped when their frame is committed.
        page_size: tokens of a page. num_pages: in the pool; None is just enough for all of ``layout``.
        dtype: of keys and values.
        key: what made the cache (weights, guidance branch, ...): one string, or named fields; see :meth:`check_key`.

    Raises:
        TypeError: a dtype that is not floating-point. ValueError: a size that is not positive; a layout with hidden keys.
    """

    def __init__(
        self,
        layout: SequenceLayout,
        num_layers: int,
        kv_heads: int,
        head_dim: int,
        *,
        page_size: int = 64,
        num_pages: int | None = None,
        dtype: torch.dtype = torch.float32,
        key: Mapping[str, object] | str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"num_layers": num_layers, "kv_heads": kv_heads, "head_dim": head_dim, "page_size": page_size}
        for name, size in {**sizes, "num_pages": 1 if num_pages is None else num_pages}.items():
            if size <= 0:
                raise ValueError(f"{name} must be positive, got {size}")
        if layout.hidden is not None:
            raise ValueError("layout has hidden keys: give a cache the layout without them and drop tokens at commit")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype of a cache must be floating-point, got {dtype}")
        self.layout, self.page_size, self.dtype, self.device = layout, page_size, dtype, torch.device(device)
        self.key: dict[str, object] = {**layout_fields(layout), **key_fields(key)}
        self._plan = CachePlan(layout, page_size)
        self.pool = PagePool(int(self._plan.pages_per_sequence.sum()) if num_pages is None else num_pages)
        shape = (num_layers, self.pool.num_pages, page_size, kv_heads, head_dim)
        with torch.inference_mode(False):  # a cache made while generating stays writable afterwards
            # Not zeros: the memory of pages that are never used is then never touched, and no slot is read unwritten.
            self.k_pages = torch.empty(shape, dtype=dtype, device=device)
            self.v_pages = torch.empty(shape, dtype=dtype, device=device)
        self._table = PageTable(self._plan, self.pool)
        self._committed = [0] * layout.num_sequences
        self._open = [0] * layout.num_sequences  # end of the open range; equal to committed when there is none
        self._epoch = [0] * layout.num_sequences
        self._steps: dict[tuple[tuple[int, ...], ...], CacheStep] = {}

    def committed(self, sequence: int) -> int:
        """How many tokens of ``sequence`` are committed, dropped ones included."""
        return self._committed[self._checked(sequence)]

    def check_key(self, key: Mapping[str, object] | str) -> None:
        """Raise ValueError, naming the first field that differs, unless the cache was made with this key.

        Besides the fields that it was made with, every cache has ``positions`` and ``layout`` (``SequenceLayout.key``).
        """
        require_equal(self.key, key_fields(key))

    def begin(self, step: LayoutStep) -> CacheStep:
        """Open the ranges of ``step`` and take pages for them. A range that is open already keeps its pages, and asking
        again for the same ranges costs next to nothing. A page that is shared is copied before its free slots are used.

        Raises:
            CacheFull: the pool has too few free pages; nothing has changed.
            ValueError: a step of another layout, or one that does not begin where its sequence's committed tokens end.
            RuntimeError: another range of the sequence is open.
        """
        ranges = (tuple(step.sequences), tuple(step.begin), tuple(step.end))
        made = self._steps.get(ranges)
        if made is not None and step.layout is made.step.layout and self._is_current(made):
            return made
        if step.layout.key != self.layout.key:
            raise ValueError("the step belongs to another layout than the cache")
        for sequence, begin, end in zip(*ranges, strict=True):
            committed, opened = self._committed[sequence], self._open[sequence]
            if begin != committed:
                raise ValueError(
                    f"the step begins at token {begin} of sequence {sequence}, whose cache ends at {committed}"
                )
            if opened not in (committed, end):
                raise RuntimeError(
                    f"tokens {committed}..{opened - 1} of sequence {sequence} are open: commit or roll them back "
                    f"before beginning with {begin}..{end - 1}"
                )
        fresh = [
            (sequence, begin, end) for sequence, begin, end in zip(*ranges, strict=True) if self._open[sequence] != end
        ]
        for old, new, used in self._table.open(fresh):
            for pages in (self.k_pages, self.v_pages):
                pages[:, new, :used] = pages[:, old, :used]
        for sequence, _, end in fresh:
            self._open[sequence] = end
        self._steps = {ranges: made for ranges, made in self._steps.items() if self._is_current(made)}
        self._steps[ranges] = make_cache_step(
            self._plan, self._table, step, tuple(self._epoch[sequence] for sequence in step.sequences), self.device
        )
        return self._steps[ranges]

    def write(self, layer: int, k: Tensor, v: Tensor, cache_step: CacheStep) -> None:
        """Put rotated keys and values, [tokens of the step, kv_heads, head_dim], of one layer into the open range."""
        self._require_current(cache_step)
        ops.paged_write(k.detach(), v.detach(), self.k_pages[layer], self.v_pages[layer], cache_step.slots)

    def write_normed(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        norms: tuple[Tensor, Tensor, Tensor, Tensor],
        positions: Tensor,
        inv_freq: Tensor,
        cache_step: CacheStep,
        *,
        parity: bool = False,
    ) -> Tensor:
        """``ops.qk_norm_mm_rope`` of q and k, :meth:`write` of its k and of v, all in one pass; returns its q.

        norms: weight and bias of the norm of q, then of k.
        """
        self._require_current(cache_step)
        return ops.qk_norm_mm_rope_paged_write(
            q, k, v, *norms, positions, self.k_pages[layer], self.v_pages[layer], cache_step.slots, inv_freq,
            parity=parity,
        )  # fmt: skip

    @torch.no_grad()
    def attend(self, layer: int, q: Tensor, cache_step: CacheStep, scale: float | None = None) -> Tensor:
        """Attention of q [tokens of the step, heads, head_dim] to the committed and open keys that the layout lets it see."""
        self._require_current(cache_step)
        out, _ = ops.paged_attention(
            q, self.k_pages[layer], self.v_pages[layer], cache_step.page_table, cache_step.key_tiles, cache_step.step,
            scale=scale,
        )  # fmt: skip
        return out

    def commit(self, cache_step: CacheStep, end: Sequence[int] | None = None, keep: Tensor | None = None) -> None:
        """Keep the open tokens of the step's sequences, and close their ranges.

        Args:
            end: per sequence of the step, commit only the tokens before this index and give the rest back (a prefix
                that ran together with a frame still in the making). None commits everything.
            keep: bool [tokens of the step], False for frame tokens whose slots later queries shall not see; whole pages
                that this frees go back to the pool. Kept tokens that lie in front of the others in their frame are not
                moved.

        Raises:
            RuntimeError: the step is no longer open.
            ValueError: ``end`` outside the step or inside a frame; ``keep`` of another shape, or dropping text, or frames
                that a later query sees in part. Nothing has changed then.
        """
        self._require_current(cache_step)
        step = cache_step.step
        ends = list(step.end) if end is None else list(end)
        if len(ends) != len(step.sequences):
            raise ValueError(
                f"end must hold one index for each of the {len(step.sequences)} sequences, got {len(ends)}"
            )
        for sequence, first, stop, last in zip(step.sequences, step.begin, ends, step.end, strict=True):
            if not first <= stop <= last:
                raise ValueError(f"end {stop} of sequence {sequence} is outside its open range {first}..{last}")
            if self._plan.cuts_frame(sequence, stop):
                raise ValueError(f"end {stop} of sequence {sequence} lies inside a frame")
        dropped = [] if keep is None else dropped_tokens(self.layout, self._plan, step, ends, keep)
        for sequence, stop in zip(step.sequences, ends, strict=True):
            self._table.free(
                sequence, self._plan.pages_to(sequence, stop), self._plan.pages_to(sequence, self._open[sequence])
            )
            self._close(sequence, stop)
        self._drop(dropped, cache_step.slots)

    def rollback(self, cache_step: CacheStep) -> None:
        """Forget the open tokens of the step's sequences: only the page table changes. RuntimeError if it is not open."""
        self._require_current(cache_step)
        self.commit(cache_step, end=cache_step.step.begin)

    def fork(self, source: int, targets: int | Sequence[int], end: int | None = None) -> None:
        """Let ``targets`` hold tokens 0..end-1 of ``source`` as if they had committed them: the same pages, copied only where
        one of the holders goes on with text inside the last of them. What ``source`` dropped or evicted is gone there too.

        Args:
            targets: sequences that hold nothing yet. That they have the same token ids is the caller's promise.
            end: None is everything that ``source`` committed.

        Raises:
            RuntimeError: a range of ``source`` or of a target is open. ValueError: a target that holds tokens already, or
                whose segments, positions or visibility up to ``end`` differ; ``end`` that is not committed, or inside a
                frame. Nothing has changed then.
        """
        others = [targets] if isinstance(targets, int) else list(targets)
        end = self.committed(source) if end is None else end
        if not 0 <= end <= self._committed[source]:
            raise ValueError(
                f"end must be in 0..{self._committed[source]}, what sequence {source} committed; got {end}"
            )
        if len({source, *others}) != len(others) + 1:
            raise ValueError(f"targets must be different sequences other than {source}, got {others}")
        self._require_closed(source)
        for target in others:
            if self.committed(target):
                raise ValueError(f"sequence {target} holds {self._committed[target]} tokens; release it before a fork")
            self._require_closed(target)
            check_fork(self.layout, self._plan, self._table, source, target, end)
        for target in others:
            self._table.fork(source, target, end)
            self._close(target, end)

    def evict(self, sequence: int, window_frames: int, sink_frames: int = 0) -> int:
        """Give up what lies between the first ``sink_frames`` committed frames and the latest ``window_frames``. Pages leave
        the table; no key or value moves. What precedes the first frame stays.

        Returns:
            How many pages are free that were not.

        Raises:
            RuntimeError: a range of the sequence is open. ValueError: a later query of the layout sees what would go: make
                the layout by ``frame_window``. Nothing has changed then.
        """
        self._checked(sequence)
        self._require_closed(sequence)
        committed, free = self._committed[sequence], self.pool.num_free
        self._table.evict(evicted_rows(self.layout, self._plan, sequence, committed, window_frames, sink_frames))
        self._close(sequence, committed)
        return self.pool.num_free - free

    def release(self, sequence: int) -> None:
        """Forget all of ``sequence``, committed or open; it may begin again at token 0."""
        self._table.release(self._checked(sequence))
        self._close(sequence, 0)

    def read(self, layer: int, sequence: int) -> tuple[Tensor, Tensor]:
        """Committed keys and values of one layer, [tokens kept, kv_heads, head_dim] each, copied."""
        tiles = self._plan.key_tiles(self._checked(sequence), self._committed[sequence], self._table.lengths, 0)
        counts = tiles[:, 1]
        first = np.repeat(tiles[:, 0] - (np.cumsum(counts) - counts), counts)
        virtual = first + np.arange(counts.sum())
        slots = torch.from_numpy(self._table.slots(sequence, virtual)).to(self.device)
        k, v = (pages[layer].flatten(0, 1)[slots] for pages in (self.k_pages, self.v_pages))
        return k, v

    def memory(self) -> dict[str, int]:
        """Bytes and pages: ``bytes_per_page`` counts keys and values of all layers; a page that several sequences hold counts
        once, its tokens for each of them."""
        total = self.k_pages.nbytes + self.v_pages.nbytes
        per_page = total // self.pool.num_pages
        used = self.pool.num_pages - self.pool.num_free
        return {
            "bytes_total": total,
            "bytes_used": used * per_page,
            "bytes_per_page": per_page,
            "pages_total": self.pool.num_pages,
            "pages_used": used,
            "tokens_committed": sum(self._committed),
        }

    def _checked(self, sequence: int) -> int:
        if not 0 <= sequence < len(self._committed):
            raise ValueError(f"sequence must be in 0..{len(self._committed) - 1}, got {sequence}")
        return sequence

    def _require_closed(self, sequence: int) -> None:
        committed, opened = self._committed[sequence], self._open[sequence]
        if opened != committed:
            raise RuntimeError(
                f"tokens {committed}..{opened - 1} of sequence {sequence} are open: commit or roll them back first"
            )

    def _is_current(self, cache_step: CacheStep) -> bool:
        return all(
            self._epoch[s] == epoch for s, epoch in zip(cache_step.step.sequences, cache_step.epochs, strict=True)
        )

    def _require_current(self, cache_step: CacheStep) -> None:
        if not self._is_current(cache_step):
            raise RuntimeError(
                "the cache step is no longer open: a sequence of it was committed, rolled back, forked, evicted or released"
            )

    def _close(self, sequence: int, committed: int) -> None:
        self._committed[sequence] = self._open[sequence] = committed
        self._epoch[sequence] += 1

    def _drop(self, dropped: list[tuple[int, np.ndarray]], slots: Tensor) -> None:
        """Move the kept slots of each segment to its front where they are not there already; free the pages behind."""
        sources, targets = [], []
        for row, kept in dropped:
            source = slots[torch.from_numpy(kept)].cpu().numpy()
            first = int(self._plan.first_page[row]) * self.page_size
            target = self._table.slots(int(self._plan.sequence[row]), first + np.arange(len(source)))
            moved = source != target
            sources.append(source[moved])
            targets.append(target[moved])
            self._table.shorten(row, len(source))
        if sum(map(len, sources)):
            old, new = (torch.from_numpy(np.concatenate(part)).to(self.device) for part in (sources, targets))
            for layer in (*self.k_pages, *self.v_pages):
                rows = layer.flatten(0, 1)
                rows[new] = rows[old]
