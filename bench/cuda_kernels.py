"""mm_rope, paged_write and merge_attention on a GPU, against eager torch and torch.compile of it.

    python bench/cuda_kernels.py --tokens 7232 --heads 16 --head-dim 128 --json out.json

The limit is the GPU's copy speed, measured in the same rounds: ``share_of_copy`` is the memory traffic that an operation needs at least,
per second, divided by that of a plain copy of q and k into new memory. ``--device cpu`` times the same on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import interleaved, machine, repeated, summary
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import eager

PAGE_SIZE = 64


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """What one would write without a kernel."""
    k_pages.flatten(0, 1)[slots] = k
    v_pages.flatten(0, 1)[slots] = v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7232)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=50, help="calls in a round")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device, tokens = arguments.device, arguments.tokens
    shape, dtype = (tokens, arguments.heads, arguments.head_dim), getattr(torch, arguments.dtype)
    k, v = (torch.randn(shape).to(device, dtype) for _ in range(2))
    positions = torch.arange(tokens, dtype=torch.int32, device=device)[:, None].expand(-1, 3).contiguous()
    num_pages = -(-tokens // PAGE_SIZE)
    slots = (torch.randperm(num_pages)[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:tokens].to(device)
    pages = [torch.zeros(num_pages, PAGE_SIZE, *shape[1:], dtype=dtype, device=device) for _ in range(2)]

    lse_k, lse_v = (torch.randn(shape[:2]).to(device) for _ in range(2))

    bytes_moved = 2 * k.numel() * k.element_size()  # each element read and written
    cases: dict[str, tuple[int, dict[str, Callable[[], object]]]] = {
        "mm_rope": (
            bytes_moved,
            {
                "ours": partial(ops.mm_rope, k, positions),
                "eager": partial(eager.mm_rope, k, positions),
                "compiled": partial(torch.compile(eager.mm_rope), k, positions),
            },
        ),
        "paged_write": (
            2 * bytes_moved,
            {
                "ours": partial(ops.paged_write, k, v, *pages, slots),
                "eager": partial(write, k, v, *pages, slots),
                "compiled": partial(torch.compile(write), k, v, *pages, slots),
            },
        ),
        "merge_attention": (
            bytes_moved + bytes_moved // 2,  # two sides read, one result written
            {
                "ours": partial(ops.merge_attention, k, lse_k, v, lse_v),
                "eager": partial(eager.merge_attention, k, lse_k, v, lse_v),
                "compiled": partial(torch.compile(eager.merge_attention), k, lse_k, v, lse_v),
            },
        ),
    }
    results = {}
    with torch.inference_mode():
        for op, (traffic, calls) in cases.items():
            calls["copy"] = lambda: (k.clone(), v.clone())
            timed = {name: repeated(call, arguments.repeats, device) for name, call in calls.items()}
            found = summary(interleaved(timed, arguments.rounds), "ours")
            share = traffic / found["ours"]["median_ms"] / (2 * bytes_moved / found["copy"]["median_ms"])
            results[op] = {**found, "share_of_copy": share}
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    case = {name: value for name, value in vars(arguments).items() if name != "json"}
    report = json.dumps({"machine": {**machine(), "gpu": gpu}, "case": case, "results": results}, indent=2)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
