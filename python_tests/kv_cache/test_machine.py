"""Any course of operations on the cache, against a plain list of tensors for each sequence."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from lumos_engine import Frame, PagedKVCache, SequenceLayout, Text, ops
from lumos_engine.kv_cache import CacheFull, CacheStep
from lumos_engine.testing import tolerances

LAYERS, HEADS, KV_HEADS, HEAD_DIM, SEQUENCES = 2, 2, 1, 32, 3


class Copy:
    """What one sequence should hold: k and v [layers, 2, tokens, kv_heads, head_dim], NaN where nothing was written."""

    def __init__(self, num_tokens: int, dtype: torch.dtype) -> None:
        self.kv = torch.full((LAYERS, 2, num_tokens, KV_HEADS, HEAD_DIM), math.nan, dtype=dtype)
        self.kept = torch.ones(num_tokens, dtype=torch.bool)
        self.committed = 0

    def cloned(self, end: int) -> Copy:
        other = Copy(len(self.kept), self.kv.dtype)
        other.kv[:, :, :end], other.kept[:end], other.committed = self.kv[:, :, :end], self.kept[:end], end
        return other


class CacheMachine(RuleBasedStateMachine):
    """Sequences of equal segments in one cache; at most one step open at a time for each of them."""

    @initialize(
        text=st.integers(1, 40), side=st.integers(1, 6), frames=st.integers(2, 5), window=st.sampled_from([None, 0, 1, 2]),
        sinks=st.integers(0, 1), page_size=st.sampled_from([7, 16, 64, 256]), scarce=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 2**30),
    )  # fmt: skip
    def make(
        self, text: int, side: int, frames: int, window: int | None, sinks: int, page_size: int, scarce: bool,
        dtype: torch.dtype, seed: int,
    ) -> None:  # fmt: skip
        segments = [Text(text), *[Frame(side, 7, newlines=True, header=1)] * frames]
        self.window, self.sinks = window, sinks
        if window is None:
            self.layout = SequenceLayout.from_segments([segments] * SEQUENCES)
        else:
            self.layout = SequenceLayout.frame_window([segments] * SEQUENCES, window, sinks)
        self.frame_ends = [end for segment, _, end in self.layout.segments(0) if isinstance(segment, Frame)]
        self.cuts = sorted({1, (text + 1) // 2, text}) + self.frame_ends  # inside the text, and behind each frame
        self.random, self.torch_random = Random(seed), torch.Generator().manual_seed(seed)
        self.cache = PagedKVCache(self.layout, LAYERS, KV_HEADS, HEAD_DIM, page_size=page_size, dtype=dtype)
        if scarce:
            self.cache = PagedKVCache(
                self.layout, LAYERS, KV_HEADS, HEAD_DIM, page_size=page_size, dtype=dtype,
                num_pages=max(1, self.cache.pool.num_pages // 2),
            )  # fmt: skip
        self.random.shuffle(self.cache.pool._free)
        length = self.layout.num_tokens // SEQUENCES
        self.copies = [Copy(length, dtype) for _ in range(SEQUENCES)]
        self.steps: list[tuple[CacheStep, bool]] = []  # the open ones, and whether all of theirs was written
        self.poison()

    # ---- rules

    def idle(self) -> list[int]:
        busy = {s for step, _ in self.steps for s in step.step.sequences}
        return [s for s in range(SEQUENCES) if s not in busy]

    def unfinished(self) -> list[int]:
        return [s for s in self.idle() if self.copies[s].committed < self.cuts[-1]]

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), then_write=st.sampled_from([True, True, False]))
    def begin(self, data: st.DataObject, then_write: bool) -> None:
        sequences = data.draw(st.lists(st.sampled_from(self.unfinished()), min_size=1, max_size=2, unique=True))
        begins = [self.copies[s].committed for s in sequences]
        ends = [data.draw(st.sampled_from([c for c in self.cuts if c > b])) for b in begins]
        before = self.state()
        step = self.layout.step(sequences, begins, ends)
        try:
            self.steps.append((self.cache.begin(step), False))
        except CacheFull:
            assert self.state() == before
            return
        for s, b in zip(sequences, begins, strict=True):
            self.copies[s].kv[:, :, b:] = math.nan
        assert self.cache.begin(step) is self.steps[-1][0]
        if then_write:
            self.write_into(len(self.steps) - 1)

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), drop=st.booleans())
    def go_on(self, data: st.DataObject, drop: bool) -> None:
        """To the end of the next frame, as in generation: courses of single rules seldom get far."""
        s = data.draw(st.sampled_from(self.unfinished()))
        begin = self.copies[s].committed
        try:
            step = self.cache.begin(self.layout.step(s, begin, next(end for end in self.frame_ends if end > begin)))
        except CacheFull:
            return
        self.copies[s].kv[:, :, begin:] = math.nan
        self.steps.append((step, False))
        self.write_into(len(self.steps) - 1)
        self.attention_is_that_of_the_copies()
        self.commit_step(self.steps.pop()[0], None, drop)

    @precondition(lambda self: self.steps)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Also over what was written before, as every denoising step does."""
        self.write_into(data.draw(st.integers(0, len(self.steps) - 1)))

    def write_into(self, at: int) -> None:
        step = self.steps[at][0]
        shape = (LAYERS, 2, step.step.num_tokens, KV_HEADS, HEAD_DIM)
        values = torch.randn(shape, generator=self.torch_random).to(self.cache.dtype)
        for layer, (k, v) in enumerate(values):
            self.cache.write(layer, k, v, step)
        offsets = step.step.cu_seqlens.tolist()
        for i, (s, b, e) in enumerate(zip(step.step.sequences, step.step.begin, step.step.end, strict=True)):
            self.copies[s].kv[:, :, b:e] = values[:, :, offsets[i] : offsets[i + 1]]
        self.steps[at] = (step, True)

    @precondition(lambda self: any(written for _, written in self.steps))
    @rule(data=st.data(), partly=st.booleans(), drop=st.booleans())
    def commit(self, data: st.DataObject, partly: bool, drop: bool) -> None:
        step = self.take(data, written=True)
        inner = step.step
        ends = list(inner.end)
        if partly:
            ends = [
                data.draw(st.sampled_from([b, *(c for c in self.cuts if b < c <= e)]))
                for b, e in zip(inner.begin, inner.end, strict=True)
            ]
        self.commit_step(step, ends if partly else None, drop)

    def commit_step(self, step: CacheStep, ends: list[int] | None, drop: bool) -> None:
        inner = step.step
        keep = self.layout.frame_id[inner.slots_in_layout] < 0
        keep |= torch.rand(inner.num_tokens, generator=self.torch_random) < (0.4 if drop else 1.0)
        self.cache.commit(step, end=ends, keep=keep if drop else None)
        offsets = inner.cu_seqlens.tolist()
        for i, (s, b, e) in enumerate(zip(inner.sequences, inner.begin, ends or inner.end, strict=True)):
            copy = self.copies[s]
            copy.kept[b:e], copy.committed = keep[offsets[i] : offsets[i] + e - b], e
            copy.kv[:, :, e:] = math.nan

    @precondition(lambda self: self.steps)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        step, before = self.take(data), self.bits()
        self.cache.rollback(step)
        assert all(map(torch.equal, self.bits(), before)), "rollback touches no key or value"
        for s, b in zip(step.step.sequences, step.step.begin, strict=True):
            self.copies[s].kv[:, :, b:] = math.nan

    @precondition(lambda self: self.sources() and self.empty())
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(self.sources()))
        targets = data.draw(st.lists(st.sampled_from(self.empty()), min_size=1, unique=True))
        committed = self.copies[source].committed
        end = data.draw(st.sampled_from([None, *(c for c in self.cuts if c <= committed)]))
        before, bits = self.state(), self.bits()
        try:
            self.cache.fork(source, targets, end)
        except ValueError as error:  # the source gave up what the target's queries at ``end`` would see
            assert self.window is not None and "evicted" in str(error) and self.state() == before
            return
        assert all(map(torch.equal, self.bits(), bits)), "fork copies nothing"
        for target in targets:
            self.copies[target] = self.copies[source].cloned(committed if end is None else end)

    @precondition(lambda self: self.window is not None and self.idle())
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from(self.idle()))
        free, before = self.cache.pool.num_free, self.bits()
        assert self.cache.evict(s, self.window, self.sinks) == self.cache.pool.num_free - free
        assert all(map(torch.equal, self.bits(), before)), "evict moves no key or value"
        done = [end for end in self.frame_ends if end <= self.copies[s].committed]
        size = self.frame_ends[1] - self.frame_ends[0]
        for end in done[self.sinks : len(done) - self.window]:
            self.copies[s].kept[end - size : end] = False

    @rule(s=st.integers(0, SEQUENCES - 1), really=st.sampled_from([False, False, False, True]))
    def release(self, s: int, really: bool) -> None:
        if not really:  # else most courses would end early, again and again
            return
        self.steps = [pair for pair in self.steps if s not in pair[0].step.sequences]
        for other in {o for o in range(SEQUENCES) if self.cache._open[o] != self.cache._committed[o]}:
            if all(other not in step.step.sequences for step, _ in self.steps):
                self.cache.release(other)  # open in a step that is over now
                self.copies[other] = Copy(len(self.copies[other].kept), self.cache.dtype)
        self.cache.release(s)
        self.copies[s] = Copy(len(self.copies[s].kept), self.cache.dtype)

    # ---- what must hold after every rule

    @invariant()
    def pages_are_counted(self) -> None:
        held = Counter(self.cache._table.pages[self.cache._table.pages >= 0].tolist())
        pool = self.cache.pool
        assert [held[page] for page in range(pool.num_pages)] == [pool.references(p) for p in range(pool.num_pages)]
        assert sorted([*held, *pool._free]) == list(range(pool.num_pages)), "a page is free, or held"
        plan, table, size = self.cache._plan, self.cache._table, self.cache.page_size
        for s in range(SEQUENCES):
            tiles = plan.key_tiles(s, self.cache._open[s], table.lengths, 0).tolist()
            needed = {slot // size for first, count, *_ in tiles for slot in range(first, first + count)}
            assert set((table.pages[s] >= 0).nonzero()[0].tolist()) == needed, (
                "pages are held where tokens lie, only there"
            )
        memory = self.cache.memory()
        assert memory["pages_used"] == len(held) and memory["bytes_used"] == len(held) * memory["bytes_per_page"]
        assert memory["tokens_committed"] == sum(copy.committed for copy in self.copies)

    @invariant()
    def committed_tokens_are_those_written(self) -> None:
        self.poison()
        for s, copy in enumerate(self.copies):
            rows = copy.kept[: copy.committed].nonzero()[:, 0]
            for layer in range(LAYERS):
                for actual, expected in zip(self.cache.read(layer, s), copy.kv[layer][:, rows], strict=True):
                    tolerances.assert_bitwise_equal(actual, expected)

    @invariant()
    def attention_is_that_of_the_copies(self) -> None:
        for step, written in self.steps:
            if not written:
                continue
            inner = step.step
            q = torch.randn(self.layout.num_tokens, HEADS, HEAD_DIM, generator=self.torch_random).to(self.cache.dtype)
            hidden = torch.cat([~copy.kept for copy in self.copies])
            layout = self.layout.with_hidden(hidden) if bool(hidden.any()) else self.layout
            for layer in range(LAYERS):
                actual = self.cache.attend(layer, q[inner.slots_in_layout], step)
                k, v = torch.cat([copy.kv[layer] for copy in self.copies], 1)
                expected = ops.block_attention(q, k, v, layout)[0][inner.slots_in_layout]
                if bool(hidden.any()) or self.cache.dtype != torch.float32:
                    # Dropped tokens move others to other places of a tile, so sums have another order.
                    exact = ops.block_attention(*(x.double() for x in (q, k, v)), layout, backend="reference")[0]
                    exact = exact[inner.slots_in_layout]
                    tolerances.assert_within_bound(actual, exact, expected)
                if not bool(hidden.any()):
                    tolerances.assert_bitwise_equal(actual, expected)

    # ---- helpers

    def sources(self) -> list[int]:
        return [s for s in self.idle() if self.copies[s].committed]

    def empty(self) -> list[int]:
        return [s for s in self.idle() if not self.copies[s].committed]

    def take(self, data: st.DataObject, written: bool = False) -> CacheStep:
        choices = [i for i, (_, done) in enumerate(self.steps) if done or not written]
        return self.steps.pop(data.draw(st.sampled_from(choices)))[0]

    def bits(self) -> list[Tensor]:
        whole = torch.int16 if self.cache.dtype == torch.bfloat16 else torch.int32
        return [pages.view(whole).clone() for pages in (self.cache.k_pages, self.cache.v_pages)]

    def state(self) -> tuple[object, ...]:
        table = self.cache._table
        return (
            table.pages.tolist(), table.lengths.tolist(), table.evicted.tolist(), list(self.cache.pool._free),
            list(self.cache._committed), list(self.cache._open),
        )  # fmt: skip

    def poison(self) -> None:
        """NaN in every slot that no sequence uses: who reads one shows it."""
        plan, table, size = self.cache._plan, self.cache._table, self.cache.page_size
        used = np.zeros(self.cache.pool.num_pages * size, dtype=bool)
        for s in range(SEQUENCES):
            for first, count, *_ in plan.key_tiles(s, self.cache._open[s], table.lengths, 0).tolist():
                used[table.slots(s, first + np.arange(count))] = True
        unused = torch.from_numpy(~used)
        for pages in (self.cache.k_pages, self.cache.v_pages):
            pages.flatten(1, 2)[:, unused] = math.nan


def test_any_course_of_operations() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=60, stateful_step_count=30))


@pytest.mark.slow
def test_any_long_course_of_operations() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=400, stateful_step_count=60))
