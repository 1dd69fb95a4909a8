"""The paged cache gives what recomputation gives, whatever the pages, the order of calls, and what was taken back."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine import Frame, PagedKVCache, SequenceLayout, Text, ops
from lumos_engine.kv_cache import CacheFull, CacheStep, PagePool
from lumos_engine.testing import tolerances

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 32, 2
PREFIX_AND_FRAMES = [Text(5), Frame(2, 3, newlines=True, header=3, footer=1), Frame(4, 20), Text(2)]

segments = st.one_of(
    st.builds(Text, st.integers(1, 90)),
    st.builds(Frame, st.integers(1, 9), st.integers(1, 9), newlines=st.booleans(), header=st.integers(0, 3)),
)


@st.composite
def layouts(draw: st.DrawFn) -> SequenceLayout:
    """Block-causal or windowed layouts."""
    sequences = draw(st.lists(st.lists(segments, min_size=1, max_size=4), min_size=1, max_size=3))
    if draw(st.booleans()):
        return SequenceLayout.from_segments(sequences)
    return SequenceLayout.frame_window(sequences, draw(st.integers(0, 2)), sink_frames=draw(st.integers(0, 1)))


def random_qkv(layout: SequenceLayout, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """q, k, v of each layer, [tokens, heads, head_dim]."""
    draw = torch.Generator().manual_seed(seed)
    sizes = (HEADS, KV_HEADS, KV_HEADS)
    return [
        tuple(torch.randn(layout.num_tokens, heads, HEAD_DIM, generator=draw) for heads in sizes) for _ in range(LAYERS)
    ]  # type: ignore[misc]


def make_cache(layout: SequenceLayout, **options: object) -> PagedKVCache:
    """A cache whose pages hold NaN until something is written there."""
    cache = PagedKVCache(layout, LAYERS, KV_HEADS, HEAD_DIM, **options)  # type: ignore[arg-type]
    cache.k_pages.fill_(math.nan)
    cache.v_pages.fill_(math.nan)
    return cache


def run(cache: PagedKVCache, cache_step: CacheStep, qkv: list) -> list[torch.Tensor]:
    """Write and attend in every layer with the step's rows of q, k, v."""
    rows = cache_step.step.slots_in_layout
    outputs = []
    for layer, (q, k, v) in enumerate(qkv):
        cache.write(layer, k[rows], v[rows], cache_step)
        outputs.append(cache.attend(layer, q[rows], cache_step))
    return outputs


def check_pages(cache: PagedKVCache) -> None:
    """Every page is either free or behind exactly one virtual page."""
    held = cache._table.pages[cache._table.pages >= 0].tolist()
    assert sorted(held + cache.pool._free) == list(range(cache.pool.num_pages))


def cuts(layout: SequenceLayout, sequence: int) -> list[int]:
    """Where a step may end: anywhere in text, at the end of each frame."""
    ends = []
    for segment, begin, end in layout.segments(sequence):
        ends += range(begin + 1, end + 1) if isinstance(segment, Text) else [end]
    return ends


@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", torch.float32), ("cpu", torch.float32), ("cpu", torch.bfloat16)], ids=str
)
@given(layout=layouts(), page_size=st.sampled_from([1, 7, 16, 64, 100]), seed=st.integers(0, 2**32))
def test_any_course_of_steps_equals_recomputation(
    backend: str, dtype: torch.dtype, layout: SequenceLayout, page_size: int, seed: int
) -> None:
    qkv, noise = ([[x.to(dtype) for x in layer] for layer in random_qkv(layout, seed)] for seed in (0, 1))
    random = Random(seed)
    with ops.use_backend(backend):
        expected = [ops.block_attention(q, k, v, layout)[0] for q, k, v in qkv]
        cache = make_cache(layout, page_size=page_size, dtype=dtype)
        random.shuffle(cache.pool._free)
        lengths = layout.cu_seqlens.diff().tolist()
        while unfinished := [s for s in range(layout.num_sequences) if cache.committed(s) < lengths[s]]:
            sequences = random.sample(unfinished, random.randint(1, len(unfinished)))
            begins = [cache.committed(s) for s in sequences]
            ends = [
                random.choice([cut for cut in cuts(layout, s) if cut > b])
                for s, b in zip(sequences, begins, strict=True)
            ]
            step = layout.step(sequences, begins, ends)
            cache_step = cache.begin(step)
            assert cache.begin(step) is cache_step
            check_pages(cache)
            if random.random() < 0.5:  # earlier denoising steps, and a range that is given up
                run(cache, cache_step, noise)
                if random.random() < 0.5:
                    cache.rollback(cache_step)
                    cache_step = cache.begin(step)
            for output, whole in zip(run(cache, cache_step, qkv), expected, strict=True):
                if backend == "cpu":
                    assert torch.equal(output, whole[step.slots_in_layout])
                else:
                    torch.testing.assert_close(output, whole[step.slots_in_layout], **tolerances.CLOSED_FORM)
            stops = [random.choice([b, *(c for c in cuts(layout, s) if b < c <= e)])
                     for s, b, e in zip(sequences, begins, ends, strict=True)]  # fmt: skip
            cache.commit(cache_step, end=stops if random.random() < 0.3 else None)
            check_pages(cache)
    for layer, (_, k, v) in enumerate(qkv):
        for sequence in range(layout.num_sequences):
            own = slice(*layout.cu_seqlens[sequence : sequence + 2].tolist())
            assert all(torch.equal(*pair) for pair in zip(cache.read(layer, sequence), (k[own], v[own]), strict=True))
    for sequence in range(layout.num_sequences):
        cache.release(sequence)
    assert cache.pool.num_free == cache.pool.num_pages


def test_prefix_and_frame_in_one_step_then_only_the_prefix_stays() -> None:
    layout = SequenceLayout.from_segments([PREFIX_AND_FRAMES, PREFIX_AND_FRAMES[1:]])
    cache = make_cache(layout, page_size=4)
    first = cache.begin(layout.step([0, 1], [0, 0], [17, 12]))
    qkv = random_qkv(layout)
    run(cache, first, qkv)
    cache.commit(first, end=[5, 0])
    assert [cache.committed(s) for s in (0, 1)] == [5, 0]
    assert cache.memory()["pages_used"] == 2
    frame = cache.begin(layout.step([0, 1], [5, 0], [17, 12]))
    assert cache.memory()["pages_used"] == 2 + 3 + 3
    run(cache, frame, qkv)
    cache.commit(frame)
    assert torch.equal(cache.read(1, 0)[0], qkv[1][1][:17])


@pytest.mark.parametrize("sorted_first", [True, False])
def test_dropped_tokens_are_not_seen_and_their_pages_are_free(sorted_first: bool) -> None:
    plain = SequenceLayout.from_segments([[Text(5), Frame(4, 20), Frame(2, 3)]])
    hidden = torch.zeros(plain.num_tokens, dtype=torch.bool)
    hidden[5 + 10 : 5 + 80] = True
    if not sorted_first:
        hidden[5:85] = hidden[5:85][torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    q, k, v = random_qkv(plain)[0]
    cache = make_cache(plain, page_size=4)
    for begin, end in ((0, 85), (85, 91)):
        cache_step = cache.begin(plain.step([0], [begin], [end]))
        output = run(cache, cache_step, [(q, k, v)] * LAYERS)[0]
        cache.commit(cache_step, keep=~hidden[begin:end])
        check_pages(cache)
    expected = ops.block_attention(q, k, v, plain.with_hidden(hidden))[0]
    torch.testing.assert_close(output, expected[85:], **tolerances.REORDERED)
    assert torch.equal(cache.read(0, 0)[0], k[~hidden])
    assert cache.memory()["pages_used"] == 2 + 3 + 2


def test_keep_is_checked_before_anything_changes() -> None:
    layout = SequenceLayout.from_segments([[Text(5), Frame(2, 3), Text(2)]])
    intervals = layout.intervals.clone()
    intervals[11:, 2] = 7  # the last text ends its history inside the frame
    partial = SequenceLayout.from_intervals([13], intervals, segments=layout.sequences)
    for chosen, dropped, message in ((layout, 2, "drops text"), (partial, 6, "sees only a part")):
        cache = make_cache(chosen)
        cache_step = cache.begin(chosen.step([0], [0], [13]))
        with pytest.raises(ValueError, match=message):
            cache.commit(cache_step, keep=torch.arange(13) != dropped)
        with pytest.raises(ValueError, match=r"keep must be bool \[13\], got torch.bool \[12\]"):
            cache.commit(cache_step, keep=torch.ones(12, dtype=torch.bool))
        assert cache.committed(0) == 0
        cache.commit(cache_step)


def test_an_exhausted_pool_says_what_is_missing_and_changes_nothing() -> None:
    layout = SequenceLayout.from_segments([[Text(5), Frame(2, 4)]] * 2)
    cache = make_cache(layout, page_size=4, num_pages=6)
    cache.commit(cache.begin(layout.step([0], [0], [13])))
    with pytest.raises(CacheFull, match="needs 4 more pages, 2 of 6 are free"):
        cache.begin(layout.step([1], [0], [13]))
    assert issubclass(CacheFull, RuntimeError) and cache.pool.num_free == 2
    cache.release(0)
    cache.begin(layout.step([1], [0], [13]))


def test_steps_that_are_over_or_do_not_fit_are_refused() -> None:
    layout = SequenceLayout.from_segments([PREFIX_AND_FRAMES, [Text(3)]])
    cache = make_cache(layout)
    step = layout.step([0, 1], [0, 0], [5, 3])
    cache_step = cache.begin(step)
    with pytest.raises(RuntimeError, match=r"tokens 0\.\.4 of sequence 0 are open"):
        cache.begin(layout.step([0], [0], [17]))
    with pytest.raises(ValueError, match=r"end 6 of sequence 0 is outside its open range 0\.\.5"):
        cache.commit(cache_step, end=[6, 3])
    with pytest.raises(ValueError, match="one index for each of the 2 sequences, got 1"):
        cache.commit(cache_step, end=[5])
    cache.commit(cache.begin(layout.step([1], [0], [3])))  # the same open range in another company
    k = torch.zeros(8, KV_HEADS, HEAD_DIM)
    for use in (
        lambda: cache.write(0, k, k, cache_step),
        lambda: cache.commit(cache_step),
        lambda: cache.rollback(cache_step),
    ):
        with pytest.raises(RuntimeError, match="no longer open"):
            use()
    cache.commit(cache.begin(layout.step([0], [0], [5])))
    with pytest.raises(ValueError, match="begins at token 0 of sequence 0, whose cache ends at 5"):
        cache.begin(layout.step([0], [0], [5]))
    with pytest.raises(ValueError, match="another layout"):
        other = SequenceLayout.from_segments([[Text(9)]])
        cache.begin(other.step([0], [0], [9]))
    frame = cache.begin(layout.step([0], [5], [97]))
    with pytest.raises(ValueError, match="end 18 of sequence 0 lies inside a frame"):
        cache.commit(frame, end=[18])


def test_reuse_under_another_key_names_the_field() -> None:
    layout = SequenceLayout.from_segments([[Text(3)]])
    cache = make_cache(layout, key={"weights": "abc", "branch": "guided"})
    cache.check_key({"weights": "abc", "layout": layout.key})
    with pytest.raises(ValueError, match="made with branch 'guided', it cannot serve 'plain'"):
        cache.check_key({"weights": "abc", "branch": "plain"})
    with pytest.raises(ValueError, match="key None"):
        cache.check_key("abc")


@pytest.mark.parametrize("name", ["num_layers", "kv_heads", "head_dim", "page_size", "num_pages"])
def test_sizes_must_be_positive(name: str) -> None:
    sizes = {"num_layers": 1, "kv_heads": 1, "head_dim": 32, "page_size": 4, "num_pages": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        PagedKVCache(SequenceLayout.from_segments([[Text(3)]]), **sizes)  # type: ignore[arg-type]


def test_layouts_and_dtypes_that_a_cache_cannot_hold() -> None:
    layout = SequenceLayout.from_segments([[Text(3)]])
    with pytest.raises(ValueError, match="layout has hidden keys"):
        PagedKVCache(layout.with_hidden(torch.ones(3, dtype=torch.bool)), 1, 1, 32)
    with pytest.raises(TypeError, match=r"floating-point, got torch\.int32"):
        PagedKVCache(layout, 1, 1, 32, dtype=torch.int32)


def test_a_page_cannot_be_freed_twice() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    pool.free(pages)
    for wrong in (pages, [pages[0], pages[0]], [-1], [4]):
        with pytest.raises(RuntimeError, match="cannot be freed"):
            pool.free(wrong)
    assert pool.num_free == 4


def test_memory_counts_bytes_of_all_layers() -> None:
    layout = SequenceLayout.from_segments([[Text(5)]])
    cache = PagedKVCache(layout, 3, 2, 32, page_size=4, dtype=torch.bfloat16)
    cache.commit(cache.begin(layout.step([0], [0], [3])))
    page = 2 * 3 * 4 * 2 * 32 * 2
    assert cache.memory() == {"bytes_total": 2 * page, "bytes_used": page, "bytes_per_page": page, "pages_total": 2,
                              "pages_used": 1, "tokens_committed": 3}  # fmt: skip


def test_forks_share_pages_until_one_of_them_goes_on_inside_a_page() -> None:
    layout = SequenceLayout.from_segments([[Text(9), Frame(2, 3)]] * 3)
    cache = make_cache(layout, page_size=4)
    qkv = random_qkv(layout)
    first = cache.begin(layout.step([0], [0], [6]))
    run(cache, first, qkv)
    cache.commit(first)
    cache.fork(0, [1, 2])
    assert cache.memory()["pages_used"] == 2 and [cache.committed(s) for s in range(3)] == [6, 6, 6]
    together = cache.begin(layout.step([0, 1, 2], [6, 6, 6], [9, 9, 9]))
    assert cache.memory()["pages_used"] == 1 + 3 * 2  # the page that token 6 lies in, and one more: two of three copied
    run(cache, together, qkv)
    cache.commit(together)
    k = [cache.read(1, s)[0] for s in range(3)]
    assert torch.equal(k[0][:6], k[1][:6]) and torch.equal(k[0][:6], k[2][:6])
    for s in range(3):
        begin = int(layout.cu_seqlens[s])
        assert torch.equal(k[s][6:], qkv[1][1][begin + 6 : begin + 9])
    cache.release(0)
    assert torch.equal(cache.read(1, 1)[0], k[1])


def test_forks_that_cannot_be_name_the_reason_and_change_nothing() -> None:
    other_frame, longer = [Text(5), Frame(3, 2), Frame(3, 2)], [Text(5), Frame(2, 3), Frame(2, 3)]
    layout = SequenceLayout.frame_window([longer, longer, other_frame, [Text(5)]], 1)
    cache = make_cache(layout)
    done = cache.begin(layout.step([0], [0], [17]))
    with pytest.raises(RuntimeError, match=r"tokens 0\.\.16 of sequence 0 are open"):
        cache.fork(0, 1, 0)
    cache.commit(done)
    for targets, end, message in (
        ([1], 18, r"end must be in 0\.\.17, what sequence 0 committed; got 18"),
        ([1, 1], None, r"targets must be different sequences other than 0, got \[1, 1\]"),
        ([0], None, r"targets must be different sequences other than 0, got \[0\]"),
        ([1], 7, "fork at token 7 of sequence 0 lies inside a frame"),
        ([2], 11, "sequences 0 and 2 differ in the positions of their first 11 tokens"),
        ([3], 11, "sequence 3 has 5 tokens, fewer than the 11 to fork"),
        ([4], None, r"sequence must be in 0\.\.3, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.fork(0, targets, end)
        check_pages(cache)
    cache.fork(0, 3, 5)
    with pytest.raises(ValueError, match="sequence 3 holds 5 tokens; release it before a fork"):
        cache.fork(0, 3, 5)


def test_what_a_later_query_sees_is_not_evicted() -> None:
    segments = [Text(5), *[Frame(2, 3)] * 4]
    layout = SequenceLayout.frame_window([segments, segments], 2)
    cache = make_cache(layout, page_size=4)
    step = cache.begin(layout.step([0], [0], [23]))
    with pytest.raises(RuntimeError, match=r"tokens 0\.\.22 of sequence 0 are open"):
        cache.evict(0, 2)
    run(cache, step, random_qkv(layout))
    cache.commit(step)
    with pytest.raises(
        ValueError,
        match=r"window_frames=1 and sink_frames=0 gives up tokens 5\.\.16 of sequence 0, which token 23 still",
    ):
        cache.evict(0, 1)
    with pytest.raises(ValueError, match="window_frames"):
        cache.evict(0, -1)
    assert cache.evict(0, 2) == 2 and cache.evict(0, 2) == 0
    assert len(cache.read(0, 0)[0]) == 5 + 12
    with pytest.raises(ValueError, match="fork shares evicted tokens"):
        cache.fork(0, 1, 17)
    cache.fork(0, 1)


@pytest.mark.parametrize("field", ["weights", "branch", "positions", "layout"])
def test_every_field_of_the_key_is_compared(field: str) -> None:
    segments = [[Text(3), Frame(2, 2)]]
    layout = SequenceLayout.from_segments(segments)
    cache = make_cache(layout, key={"weights": "abc", "branch": "guided"})
    other = make_cache(
        SequenceLayout.from_segments(segments, strides=(1, 1, 1)), key={"weights": "x", "branch": "plain"}
    )
    cache.check_key(cache.key)
    with pytest.raises(ValueError, match=f"the cache was made with {field} .*, it cannot serve"):
        cache.check_key({**cache.key, field: other.key[field]})
