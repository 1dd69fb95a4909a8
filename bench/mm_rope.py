"""mm_rope against eager torch, torch.compile of it and a plain copy.

    python bench/mm_rope.py --tokens 7232 --heads 16 --head-dim 128 --json out.json

Every contestant reads x once and writes as much: ``gb_per_s`` counts both. Each makes a new tensor, as torch's operations do, but
"ours in place" and "copy into", which show what making one costs; ``share_of_copy`` divides the time of the copy by ours. The
copies run in rounds of their own: the peers' temporaries make the allocator return memory, whose pages then cost whoever comes next.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from script import parsed, report
from timing import interleaved, summary
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.reference.rotary import rotation_table


def composition(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """What one writes without a kernel, in the dtype of x; cosine and sine ``[tokens, 1, head_dim]`` are given."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=7232, help="64 of text and 7 equal frames")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    arguments = parsed(parser, 30)

    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    height = (arguments.tokens - 64) // (7 * 32)
    layout = SequenceLayout.from_segments([[Text(arguments.tokens - 7 * 32 * height)] + [Frame(height, 32)] * 7])
    x = torch.randn(arguments.tokens, arguments.heads, arguments.head_dim).to(dtype)
    inv_freq = ops.inverse_frequencies(arguments.head_dim)
    table = [t.to(dtype).repeat(1, 2)[:, None] for t in rotation_table(layout.positions, inv_freq, torch.float32)]
    target = torch.empty_like(x)
    ours = partial(ops.mm_rope, x, layout.positions, inv_freq)
    peers = {
        "ours": ours,
        "eager": partial(composition, x, *table),
        "compiled": partial(torch.compile(composition), x, *table),
    }
    copies = {
        "ours": ours,
        "ours in place": partial(ops.mm_rope, target, layout.positions, inv_freq, inplace=True),
        "copy": x.clone,
        "copy into": partial(target.copy_, x),
    }
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for part, calls in (("against peers", peers), ("against copies", copies)):
            results[part] = summary(interleaved(calls, arguments.rounds), "ours")
    for rows in results.values():
        for row in rows.values():
            row["gb_per_s"] = 2 * x.nbytes / row["median_ms"] / 1e6
    rows = results["against copies"]
    for name, copy in (("ours", "copy"), ("ours in place", "copy into")):
        rows[name]["share_of_copy"] = rows[copy]["median_ms"] / rows[name]["median_ms"]
    report(arguments, results)


if __name__ == "__main__":
    main()
