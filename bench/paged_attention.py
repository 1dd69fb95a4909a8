"""paged_attention of one frame against a cache of finished ones, against torch's attention on contiguous and on gathered K/V.

    python bench/paged_attention.py --json out.json

64 tokens of text, 12 committed frames and the open one, whose keys are in the cache. Contiguous K/V are the least that any
cache has to do; gathering copies the pages in front of each call. FlexAttention reads pages through a block mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from machine_limit import limits
from script import parsed, report
from timing import interleaved, summary
from torch import Tensor
from torch.nn.attention.experimental._paged_attention import PagedAttention
from torch.nn.attention.flex_attention import create_block_mask, flex_attention, noop_mask

from lumos_engine import Frame, SequenceLayout, Text
from lumos_engine.kv_cache import PagedKVCache

TEXT_TOKENS = 64


def ours(arguments: argparse.Namespace, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    segments = [Text(TEXT_TOKENS)] + [Frame(1, arguments.frame_tokens)] * (arguments.frames + 1)
    layout = SequenceLayout.from_segments([segments])
    history = layout.num_tokens - arguments.frame_tokens
    cache = PagedKVCache(
        layout, 1, arguments.kv_heads, arguments.head_dim, page_size=arguments.page_size, dtype=q.dtype
    )
    for begin, end in ((0, history), (history, layout.num_tokens)):
        step = cache.begin(layout.step(0, begin, end))
        cache.write(0, k[begin:end], v[begin:end], step)
        if end == history:
            cache.commit(step)
    return partial(cache.attend, 0, q, step)


def peers(arguments: argparse.Namespace, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    tokens, size = len(k), arguments.page_size
    group = q.shape[1] > k.shape[1]
    heads_first = [x.transpose(0, 1)[None].contiguous() for x in (q, k, v)]
    num_pages = -(-tokens // size)
    table = torch.randperm(num_pages)
    pages = []
    for x in (k, v):
        stored = x.new_zeros(num_pages, size, *x.shape[1:])
        stored[table] = F.pad(x, (0, 0, 0, 0, 0, num_pages * size - tokens)).unflatten(0, (num_pages, size))
        pages.append(stored)

    def gathered() -> Tensor:
        keys, values = (stored[table].flatten(0, 1)[:tokens].transpose(0, 1)[None] for stored in pages)
        return F.scaled_dot_product_attention(heads_first[0], keys, values, enable_gqa=group)

    return {
        "SDPA contiguous": partial(F.scaled_dot_product_attention, *heads_first, enable_gqa=group),
        "SDPA gathered pages": gathered,
        "FlexAttention paged": paged_flex(*heads_first, group),
    }


def paged_flex(q: Tensor, k: Tensor, v: Tensor, group: bool) -> Callable[[], object]:
    """The paged example of torch: pages as large as a block of its mask."""
    tokens, page = k.shape[2], 128
    num_pages = -(-tokens // page)
    paged = PagedAttention(num_pages, page, 1, device="cpu")
    paged.reserve(torch.tensor([0]), torch.tensor(tokens))
    caches = [x.new_zeros(1, x.shape[1], num_pages * page, x.shape[3]) for x in (k, v)]
    paged.assign(torch.tensor([0]), torch.arange(tokens)[None], k, v, *caches)
    logical = create_block_mask(noop_mask, 1, None, q.shape[2], tokens, device="cpu", BLOCK_SIZE=page)
    physical = paged.convert_logical_block_mask(logical, torch.tensor([0]), torch.tensor([tokens]))
    compiled = torch.compile(flex_attention)
    return partial(compiled, q, *caches, block_mask=physical, enable_gqa=group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=12, help="committed ones")
    parser.add_argument("--frame-tokens", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    arguments = parsed(parser, 20)

    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    tokens = TEXT_TOKENS + arguments.frame_tokens * (arguments.frames + 1)
    q = torch.randn(arguments.frame_tokens, arguments.heads, arguments.head_dim).to(dtype)
    k, v = (torch.randn(tokens, arguments.kv_heads, arguments.head_dim).to(dtype) for _ in range(2))
    with torch.inference_mode():
        calls = {"ours": ours(arguments, q, k, v), **peers(arguments, q, k, v)}
        results: dict[str, Any] = summary(interleaved(calls, arguments.rounds), "ours")
    flop = 4 * arguments.head_dim * arguments.heads * arguments.frame_tokens * tokens
    for row in results.values():
        row["gflops"] = flop / row["median_ms"] / 1e6
    report(arguments, results, limit_gflops=limits(arguments.threads))


if __name__ == "__main__":
    main()
