"""Time and memory of block_attention against the length of a sequence, as plots in docs/.

    python bench/scaling.py --out docs

64 tokens of text and frames of 1024 (1k to 64k tokens), and 1 to 64 frames of 256; one head of 128, bf16, forward. The second
line of a plot of time is the needed work, the pairs of queries and keys that see each other, at the speed of the longest run:
where both lines agree, nothing else is done. Memory is the resident memory that a fresh process needs beyond its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from process_memory import resident_mb, resident_peak_mb
from timing import interleaved, machine, summary

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.demo.plot import line_plot

HEAD_DIM = 128
POINTS = (1, 2, 4, 8, 16, 32, 64)


def inputs(frames: int, frame_tokens: int) -> tuple[SequenceLayout, list[torch.Tensor], int]:
    """Layout, q, k, v, and how many pairs see each other."""
    layout = SequenceLayout.from_segments([[Text(64)] + [Frame(1, frame_tokens)] * frames])
    tensors = [torch.randn(layout.num_tokens, 1, HEAD_DIM).bfloat16() for _ in range(3)]
    _, history_begin, history_end, span_begin, span_end = layout.intervals.long().unbind(1)
    return layout, tensors, int((history_end - history_begin + span_end - span_begin).sum())


def peak_mb(frames: int, frame_tokens: int) -> float:
    before = resident_mb()
    layout, tensors, _ = inputs(frames, frame_tokens)
    ops.block_attention(*tensors, layout)
    return resident_peak_mb() - before


def measured_peak_mb(frames: int, frame_tokens: int) -> float:
    command = [sys.executable, sys.argv[0], "--memory-of", str(frames), str(frame_tokens)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(frame_tokens: int, most_frames: int, rounds: int) -> list[dict[str, float]]:
    rows = []
    for frames in (point for point in POINTS if point <= most_frames):
        layout, tensors, pairs = inputs(frames, frame_tokens)
        call = {"ours": partial(ops.block_attention, *tensors, layout)}
        median_ms = summary(interleaved(call, rounds, warmup=1), "ours")["ours"]["median_ms"]
        peak = measured_peak_mb(frames, frame_tokens)
        rows.append(
            {"frames": frames, "tokens": layout.num_tokens, "pairs": pairs, "median_ms": median_ms, "peak_mb": peak}
        )
    return rows


def write_plots(folder: Path, name: str, x: str, rows: list[dict[str, float]]) -> None:
    steps = [row[x] for row in rows]
    pace = rows[-1]["median_ms"] / rows[-1]["pairs"]
    lines = {"measured, ms": [row["median_ms"] for row in rows], "needed work": [pace * row["pairs"] for row in rows]}
    plots = {
        "time": line_plot(steps, lines, x_label=x, y_label="ms"),
        "memory": line_plot(steps, {"peak, MB": [row["peak_mb"] for row in rows]}, x_label=x, y_label="MB"),
    }
    for what, plot in plots.items():
        alone = plot.replace(
            "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" ', 1
        )
        (folder / f"scaling_{name}_{what}.svg").write_text(alone + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the plots")
    parser.add_argument("--most-frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", type=int, nargs=2, metavar=("FRAMES", "FRAME_TOKENS"), help="only print that")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_mb(*arguments.memory_of))
        return

    results = {}
    for name, x, frame_tokens in (("tokens", "tokens", 1024), ("frames", "frames", 256)):
        results[name] = measure(frame_tokens, arguments.most_frames, arguments.rounds)
        if arguments.out:
            write_plots(arguments.out, name, x, results[name])
    report = json.dumps({"machine": machine(), "results": results}, indent=2)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
