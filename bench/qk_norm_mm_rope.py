"""qk_norm_mm_rope, forward, backward and fused with paged_write, against eager torch and torch.compile of it.

    python bench/qk_norm_mm_rope.py --tokens 7232 --heads 16 --kv-heads 16 --head-dim 128 --json out.json

The limit is the machine's copy speed, measured in the same rounds: ``share_of_copy`` is the memory traffic that an
operation needs at least, per second, divided by that of a plain copy of q and k into new memory. ``--device cuda`` times
the CUDA kernels on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from script import parsed, report
from timing import interleaved, repeated, summary
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import eager

PAGE_SIZE = 64
Pair = tuple[Tensor, Tensor]


def composition(q: Tensor, k: Tensor, q_w: Tensor, q_b: Tensor, k_w: Tensor, k_b: Tensor, positions: Tensor) -> Pair:
    """What one would write without a kernel."""
    q, k = eager.head_norm(q, q_w, q_b), eager.head_norm(k, k_w, k_b)
    return eager.mm_rope(q, positions), eager.mm_rope(k, positions)


def backward(function: Callable[..., Pair], leaves: list[Tensor], positions: Tensor) -> Callable[[], object]:
    results = function(*leaves, positions)
    grads = [torch.randn_like(r) for r in results]
    return lambda: torch.autograd.grad(results, leaves, grads, retain_graph=True)


def with_share(results: dict[str, Any], ours: str, traffic_bytes: int, copied_bytes: int) -> dict[str, Any]:
    """``traffic_bytes``: read and written by ``ours`` at least; ``copied_bytes``: read and written by the copy."""
    speed = copied_bytes / results["copy"]["median_ms"]
    return {**results, "share_of_copy": traffic_bytes / results[ours]["median_ms"] / speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7232)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="calls in a round; on a GPU 50, say")
    arguments = parsed(parser, 20)
    torch._functorch.config.donated_buffer = False  # else a compiled backward cannot run twice

    torch.manual_seed(0)
    device = arguments.device
    dtype, tokens, head_dim = getattr(torch, arguments.dtype), arguments.tokens, arguments.head_dim
    q, k, v = (
        torch.randn(tokens, heads, head_dim).to(device, dtype)
        for heads in (arguments.heads, arguments.kv_heads, arguments.kv_heads)
    )
    weights = [torch.randn(1, head_dim).to(device) for _ in range(4)]
    positions = torch.arange(tokens, dtype=torch.int32, device=device)[:, None].expand(-1, 3).contiguous()
    num_pages = -(-tokens // PAGE_SIZE)
    slots = (torch.randperm(num_pages)[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:tokens].to(device)
    k_pages, v_pages = (torch.zeros(num_pages, PAGE_SIZE, *k.shape[1:], dtype=dtype, device=device) for _ in range(2))
    compiled = torch.compile(composition)
    functions = {"ours": ops.qk_norm_mm_rope, "eager": composition, "compiled": compiled}

    def copy() -> list[Tensor]:
        return [x.clone() for x in (q, k)]

    def two_operations() -> None:
        _, rotated = ops.qk_norm_mm_rope(q, k, *weights, positions)
        ops.paged_write(rotated, v, k_pages, v_pages, slots)

    forward = {name: partial(function, q, k, *weights, positions) for name, function in functions.items()}
    leaves = [x.requires_grad_() for x in (q.clone(), k.clone(), *(w.clone() for w in weights))]
    backwards = {name: backward(function, leaves, positions) for name, function in functions.items()}
    writes: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.qk_norm_mm_rope_paged_write(q, k, v, *weights, positions, k_pages, v_pages, slots),
        "two operations": two_operations,
    }
    one_pass = q.nbytes + k.nbytes
    results = {}
    with torch.no_grad():
        for part, contestants, traffic in (
            ("forward", forward, 2 * one_pass),
            ("backward", backwards, 3 * one_pass),
            ("fused write", writes, 2 * one_pass + 2 * v.nbytes),
        ):
            timed = {
                name: repeated(call, arguments.repeats, device) for name, call in {**contestants, "copy": copy}.items()
            }
            results[part] = with_share(
                summary(interleaved(timed, arguments.rounds), "ours"), "ours", traffic, 2 * one_pass
            )
    report(arguments, results, gpu=torch.cuda.get_device_name() if device == "cuda" else None)


if __name__ == "__main__":
    main()
