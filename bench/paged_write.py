"""paged_write of the keys and values of one step into scattered pages, against torch's index_put and a plain copy.

    python bench/paged_write.py --tokens 7232 --kv-heads 16 --head-dim 128 --json out.json

Every contestant reads k and v once and writes as much, into memory that is there; ``share_of_copy`` divides the time of the
copy by ours.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from script import parsed, report
from timing import interleaved, summary

from lumos_engine import ops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7232)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    arguments = parsed(parser, 30)

    torch.manual_seed(0)
    dtype, tokens, size = getattr(torch, arguments.dtype), arguments.tokens, arguments.page_size
    k, v = (torch.randn(tokens, arguments.kv_heads, arguments.head_dim).to(dtype) for _ in range(2))
    num_pages = -(-tokens // size)
    slots = (torch.randperm(num_pages)[:, None] * size + torch.arange(size)).flatten()[:tokens]
    k_pages, v_pages = (torch.zeros(num_pages, size, *k.shape[1:], dtype=dtype) for _ in range(2))
    targets = torch.empty_like(k), torch.empty_like(v)

    def index_put() -> None:
        for pages, x in ((k_pages, k), (v_pages, v)):
            pages.flatten(0, 1)[slots] = x

    def copy() -> None:
        for target, x in zip(targets, (k, v), strict=True):
            target.copy_(x)

    calls = {"ours": partial(ops.paged_write, k, v, k_pages, v_pages, slots), "index_put": index_put, "copy": copy}
    with torch.inference_mode():
        results: dict[str, Any] = summary(interleaved(calls, arguments.rounds), "ours")
    for row in results.values():
        row["gb_per_s"] = 4 * k.nbytes / row["median_ms"] / 1e6
    results["ours"]["share_of_copy"] = results["copy"]["median_ms"] / results["ours"]["median_ms"]
    report(arguments, results)


if __name__ == "__main__":
    main()
