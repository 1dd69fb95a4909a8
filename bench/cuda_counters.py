"""What decides the speed of attention on CUDA, counted by the machine that executes the kernels' PTX: no GPU is needed.

    python bench/cuda_counters.py --frames 7 --json counters.json

Of each kernel and layout, on one head: matrix products (mma) issued over those that the visible pairs need, the warp instructions
of all other kinds for each needed mma, sectors over bytes asked of global memory, wavefronts of shared memory over the ideal.
``step``: one more frame against a cache of the others, on ``STEP_HEADS`` heads, with key splits and without.
``hidden``: 70 % of each frame's tokens hidden as history, behind the others as ``layout.with_tube`` orders them.

``estimate``: a roofline, no measurement: the share of the peak of mma that the needed products would reach if the call took as long as
the unit of the GPU that it keeps busy longest, which is named. Of each unit (``Gpu.cycles``) work and rate; moves, which mostly vanish in
ptxas, are not counted. Latency, the order of instructions and blocks that end unevenly are left out, so a GPU stays below.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.ops import attention  # noqa: F401  (registers torch.ops.lumos._block_attention)
from lumos_engine.testing import emulation, strategies
from lumos_engine.testing.strategies_cache import in_pages
from lumos_engine.tubes import TubePattern

MMA_PAIRS, MMA_DEPTH = 16 * 8, 16  # of m16n8k16
LAYOUTS = {
    "64 + {} x 1024": (64, Frame(32, 32)),
    "100 + {} x 1828": (100, Frame(32, 56, newlines=True, header=3, footer=1)),
}

STEP_FRAMES = {"64 + {} x 256": Frame(16, 16), "64 + {} x 1024": Frame(32, 32)}
STEP_HEADS, STEP_TEXT, UNSPLIT = 4, 64, 2**31 - 1


@dataclass(frozen=True)
class Gpu:
    """``mma_per_cycle``: m16n8k16 with fp32 sums by mma.sync, of one multiprocessor."""

    multiprocessors: int
    clock_ghz: float
    mma_per_cycle: float
    dram_gb_per_second: float

    def cycles(self, count: Counter[str], needed_bytes: int) -> dict[str, float]:
        """How long each unit is busy with what was counted, all multiprocessors alike; ``needed_bytes``: each tensor once."""
        of_one = {
            "tensor cores": count["mma"] / self.mma_per_cycle,
            "issue": (count["instructions"] - count["move"]) / ISSUED_PER_CYCLE,
            "special functions": 32 * count["special"] / SPECIAL_LANES_PER_CYCLE,
            "shared memory": 128 * count["wavefronts"] / SHARED_BYTES_PER_CYCLE,
        }
        of_all = {name: cycles / self.multiprocessors for name, cycles in of_one.items()}
        # All that is asked for goes to the L2 (cp.async.cg passes the first level by); what is read again stays there.
        of_all["L2"] = 32 * count["sectors"] / L2_BYTES_PER_CYCLE
        of_all["DRAM"] = needed_bytes / self.dram_gb_per_second * self.clock_ghz
        return of_all


# Of one multiprocessor, 8.0 and 9.0 alike: four schedulers of one warp instruction a cycle, 16 lanes of ex2 and its like (CUDA C++
# Programming Guide, "Arithmetic Instructions"), 32 banks of 4 bytes ("Shared Memory"). Of the whole GPU: the L2 as the A100's
# architecture paper has it; of the H100 NVIDIA gives none, it is taken to be no less.
ISSUED_PER_CYCLE, SPECIAL_LANES_PER_CYCLE, SHARED_BYTES_PER_CYCLE, L2_BYTES_PER_CYCLE = 4, 16, 128, 5120

# NVIDIA's papers on the architectures. A100 SXM, 40 GB: 312 TFLOP/s of dense bf16 at 1.41 GHz. H100 SXM: 989 TFLOP/s, at 4096 a cycle
# and multiprocessor 1.83 GHz, of which mma.sync reaches about 62 % (Luo et al., arXiv 2402.13499); the rest is for wgmma.
GPUS = {"A100": Gpu(108, 1.41, 0.5, 1555), "H100 (mma.sync)": Gpu(132, 1.83, 0.62, 3350)}

# All instructions of FlashAttention-2 2.7.4.post1 for each needed mma, by head_dim: bf16, one head, 1024 x 1024 tokens, its kernels before
# and after the main one and moves included. Its backward for sm_80, with the tiles that it takes on an A100, was compiled to PTX of 8.0
# by nvcc -O3 --use_fast_math and executed in this machine.
FLASH_ATTENTION_2 = {
    "backward": {64: {"causal": 5.78, "unmasked": 4.52}, 128: {"causal": 4.65, "unmasked": 3.67}},
}


def layouts(frames: int, share_hidden: float) -> Iterator[tuple[str, SequenceLayout]]:
    for name, (text, frame) in LAYOUTS.items():
        layout = SequenceLayout.from_segments([[Text(text), *[frame] * frames]])
        yield name.format(frames), layout
        content = frame.height * (frame.width + frame.newlines)
        masked = torch.zeros(1, content, dtype=torch.bool)
        masked[
            0, torch.randperm(content, generator=torch.Generator().manual_seed(0))[: int(share_hidden * content)]
        ] = True
        yield (
            name.format(frames) + " hidden",
            layout.with_tube(TubePattern(masked.expand(frames, -1), "tube", (share_hidden,))),
        )


def visible_pairs(layout: SequenceLayout) -> int:
    return sum(int(layout.visible(i).sum()) for i in range(layout.num_sequences))


def counted(launches: list[dict[str, Any]], needed_mma: float, needed_bytes: int) -> dict[str, Any]:
    """The numbers of one call, all its kernels together."""
    instructions: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for launch in launches:
        for line in launch["lines"]:
            instructions[line["class"]] += line["instructions"]
            sums["instructions"] += line["instructions"]
            if line["class"].startswith(("global", "async")):
                sums["bytes"] += line["bytes"]
                sums["sectors"] += line["sectors"]
            sums["wavefronts"] += line["wavefronts"]
            sums["ideal_wavefronts"] += line["ideal_wavefronts"]
    blocks = max(launches, key=lambda launch: sum(line["instructions"] for line in launch["lines"]))["grid"]
    estimates = {}
    for name, gpu in GPUS.items():
        needed_cycles = needed_mma / gpu.mma_per_cycle / gpu.multiprocessors
        busy = {unit: cycles / needed_cycles for unit, cycles in gpu.cycles(sums + instructions, needed_bytes).items()}
        binds = max(busy, key=busy.__getitem__)
        estimates[name] = {"of_peak": 1 / busy[binds], "binds": binds, "cycles_per_needed": busy}
    mma = instructions.pop("mma")
    move = instructions.pop("move", 0)
    return {
        "mma": mma,
        "needed_mma": needed_mma,
        "mma_per_needed": mma / needed_mma,
        "others_per_needed": (sums["instructions"] - mma) / needed_mma,
        "moves_per_needed": move / needed_mma,
        "by_class_per_needed": {name: count / needed_mma for name, count in sorted(instructions.items())},
        "sector_bytes_per_byte": 32 * sums["sectors"] / sums["bytes"],
        "blocks": prod(blocks),  # of the kernel with most instructions
        "wavefronts_per_ideal": sums["wavefronts"] / sums["ideal_wavefronts"],
        "estimate": estimates,
    }


def forward(layout: SequenceLayout, head_dim: int, dtype: torch.dtype) -> Callable[[], object]:
    q, k, v = (strategies.randn((layout.num_tokens, 1, head_dim), dtype, i) for i in range(3))
    return partial(ops.block_attention, q, k, v, layout)


def backward(layout: SequenceLayout, head_dim: int, dtype: torch.dtype) -> Callable[[], object]:
    """After a forward that is not counted."""
    q, k, v, grad = (strategies.randn((layout.num_tokens, 1, head_dim), dtype, i) for i in range(4))
    rows = layout.schedule()
    runs = (rows.tiles, rows.row_offsets, rows.row_runs, rows.col_offsets, rows.col_runs)
    schedule = (layout.intervals, layout.hidden, *runs, head_dim**-0.5)
    out, _, row_state = torch.ops.lumos._block_attention(q, k, v, *schedule)
    return partial(torch.ops.lumos._block_attention_backward, grad, q, k, v, out, row_state, *schedule)


def step(layout: SequenceLayout, head_dim: int, dtype: torch.dtype, split: bool) -> Callable[[], object]:
    """Its last frame."""
    q, k, v = (strategies.randn((layout.num_tokens, STEP_HEADS, head_dim), dtype, i) for i in range(3))
    last = layout.step(0, *layout.segments(0)[-1][1:])
    if not split:
        last = replace(last, split_tokens=torch.full_like(last.split_tokens, UNSPLIT))
    return partial(ops.paged_attention, q[last.slots_in_layout], *in_pages(k, v, layout, 64, last, 0).arguments())


# name: (call to count, products of the size of Q K^T that a visible pair needs, tensors of the size of q that it reads or writes)
KERNELS: dict[str, tuple[Callable[[SequenceLayout, int, torch.dtype], Callable[[], object]], int, int]] = {
    "forward": (forward, 2, 4),
    "backward": (backward, 5, 8),
    "step": (partial(step, split=True), 2, 2 * STEP_HEADS),
    "step unsplit": (partial(step, split=False), 2, 2 * STEP_HEADS),
}


def cases(kernel: str, frames: int, share_hidden: float) -> Iterator[tuple[str, SequenceLayout, int]]:
    """Name, layout, visible pairs of all heads."""
    if not kernel.startswith("step"):
        yield from ((name, layout, visible_pairs(layout)) for name, layout in layouts(frames, share_hidden))
        return
    for name, frame in STEP_FRAMES.items():
        layout = SequenceLayout.from_segments([[Text(STEP_TEXT), *[frame] * (frames + 1)]])
        yield name.format(frames), layout, STEP_HEADS * frame.num_tokens * layout.num_tokens  # the last frame sees all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--hidden", type=float, default=0.7, help="share of a frame's tokens")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    arguments = parser.parse_args()

    rows = []
    for kernel in arguments.kernels:
        make, products, tensors = KERNELS[kernel]
        for name, layout, pairs in cases(kernel, arguments.frames, arguments.hidden):
            for head_dim in arguments.head_dims:
                call = make(layout, head_dim, torch.bfloat16)
                needed_bytes = tensors * layout.num_tokens * head_dim * torch.bfloat16.itemsize
                with emulation.ptxvm(check_races=False) as machine, torch.no_grad():
                    call()
                    launches = machine.launches
                needed = products * pairs * head_dim / (MMA_PAIRS * MMA_DEPTH)
                numbers = counted(launches, needed, needed_bytes)
                row: dict[str, Any] = {"kernel": kernel, "layout": name, "head_dim": head_dim, **numbers}
                peer = FLASH_ATTENTION_2.get(kernel, {}).get(head_dim, {})
                every = row["mma_per_needed"] + row["others_per_needed"]
                row["of_flash_attention_2"] = {mask: every / count for mask, count in peer.items()}
                rows.append(row)
                print(
                    f"{kernel} {head_dim:3} {name:24} mma/needed {row['mma_per_needed']:.3f}  others/needed "
                    f"{row['others_per_needed']:.2f} (moves {row['moves_per_needed']:.2f})  sectors "
                    f"{row['sector_bytes_per_byte']:.3f}  wavefronts {row['wavefronts_per_ideal']:.3f}  blocks {row['blocks']}"
                )
                for gpu, estimate in row["estimate"].items():
                    busy = ", ".join(f"{unit} {cycles:.2f}" for unit, cycles in estimate["cycles_per_needed"].items())
                    print(
                        f"    estimate {gpu}: {estimate['of_peak']:.0%} of peak, bound by {estimate['binds']} ({busy})"
                    )
                print("    " + ", ".join(f"{kind} {share:.2f}" for kind, share in row["by_class_per_needed"].items()))
                for mask, share in row["of_flash_attention_2"].items():
                    print(f"    {share:.2f} of FlashAttention-2's instructions, {mask}")
    work = {(row["kernel"], row["head_dim"], row["layout"]): row["mma"] for row in rows}
    for (kernel, head_dim, name), mma in work.items():
        if name.endswith(" hidden"):
            whole = work[kernel, head_dim, name.removesuffix(" hidden")]
            print(f"{kernel} {head_dim:3} {name:24} {mma / whole:.3f} of the products without hidden keys")
    if arguments.json:
        arguments.json.write_text(json.dumps({"frames": arguments.frames, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
