"""block_attention, forward and backward, on 64 tokens of text and 7 frames, against torch's ways to compute the same.

    python bench/block_attention.py --json out.json
    python bench/block_attention.py --frame-tokens 1024 --head-dims 128 --dtypes bfloat16 --parts forward --rounds 3
    python bench/block_attention.py --avx2       # everything, ours and the peers, on AVX2 in a process of its own
    python bench/block_attention.py --plug my_module:my_attention   # my_attention(q, k, v, layout) -> out or (out, ...)

FLOP are the useful ones: 4 (backward 10) times head_dim for each pair of a query and a key that it sees. ``of_limit`` divides
by the most that this processor does in the same dtype (machine_limit.py, run right before). Rows with ``hidden`` are training
with history "drop": that share of the tokens of each frame is hidden from later frames. Peers get their tensors heads first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from machine_limit import limits
from peers.attention import attentions, heads_first
from timing import interleaved, machine, summary
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.tubes import TubePattern

TEXT_TOKENS, NUM_FRAMES = 64, 7
HIDDEN = 0.8
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "LUMOS_CPU_ISA": "avx2",
}


@dataclass(frozen=True)
class Case:
    part: str
    dtype: str
    frame_tokens: int
    head_dim: int
    hidden: float


def make_layout(case: Case) -> SequenceLayout:
    layout = SequenceLayout.from_segments([[Text(TEXT_TOKENS)] + [Frame(1, case.frame_tokens)] * NUM_FRAMES])
    if not case.hidden:
        return layout
    return layout.with_tube(TubePattern.history(case.frame_tokens, case.hidden, NUM_FRAMES))


def visible_pairs(layout: SequenceLayout) -> int:
    hidden = torch.zeros(layout.num_tokens, dtype=torch.bool) if layout.hidden is None else layout.hidden
    shown_before = torch.nn.functional.pad((~hidden).cumsum(0), (1, 0))
    sink_end, history_begin, history_end, span_begin, span_end = layout.intervals.long().unbind(1)
    history = shown_before[history_end] - shown_before[history_begin] + shown_before[sink_end]
    return int((history + span_end - span_begin).sum())


def ours(layout: SequenceLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.block_attention(q, k, v, layout)[0]


def plugged(name: str) -> Callable[[SequenceLayout, Tensor, Tensor, Tensor], Tensor]:
    module, function = name.split(":")
    call = getattr(importlib.import_module(module), function)

    def run(layout: SequenceLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = call(q, k, v, layout)
        return result if isinstance(result, Tensor) else result[0]

    return run


def backward(run: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = run(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def contestants(case: Case, layout: SequenceLayout, arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    for_peers = [heads_first(layout.num_tokens, arguments.heads, case.head_dim, dtype) for _ in range(4)]
    packed = [x.contiguous() for x in for_peers]
    runs: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {"ours": (partial(ours, layout), packed)}
    for name in arguments.plug:
        runs[name] = (partial(plugged(name), layout), packed)
    for name, make in attentions(backward=case.part == "backward").items():
        if arguments.peers is None or name in arguments.peers:
            runs[name] = (make(layout), for_peers)
    if case.part == "backward":
        return {name: backward(run, tensors[:3], tensors[3]) for name, (run, tensors) in runs.items()}
    return {name: partial(run, *tensors[:3]) for name, (run, tensors) in runs.items()}


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    layout = make_layout(case)
    with torch.set_grad_enabled(case.part == "backward"):
        calls = contestants(case, layout, arguments)
        results: dict[str, Any] = summary(interleaved(calls, arguments.rounds, warmup=1), "ours")
    flop = (10 if case.part == "backward" else 4) * case.head_dim * arguments.heads * visible_pairs(layout)
    for row in results.values():
        row["gflops"] = flop / row["median_ms"] / 1e6
    peers = {name: row for name, row in results.items() if name != "ours"}
    best = min(peers, key=lambda name: peers[name]["median_ms"], default=None)
    report: dict[str, Any] = {"case": asdict(case), "results": results, "best_peer": best}
    limit = limits(arguments.threads).get(limit_name(case.dtype))
    if limit:
        report["limit_gflops"] = limit
        report["of_limit"] = results["ours"]["gflops"] / limit
    return report


def limit_name(dtype: str) -> str:
    if os.environ.get("LUMOS_CPU_ISA") == "avx2":
        return "avx2_fp32"
    known = limits(torch.get_num_threads())
    if dtype == "bfloat16" and "amx_bf16" in known:
        return "amx_bf16"
    return "avx512_fp32" if "avx512_fp32" in known else "avx2_fp32"


def line(report: dict[str, Any]) -> str:
    case, results, best = report["case"], report["results"], report["best_peer"]
    rows = ", ".join(f"{name} {row['gflops']:.0f} GFLOP/s ({row['times_ours']:.2f})" for name, row in results.items())
    ratio = f"{results[best]['times_ours']:.2f} times the best peer" if best else "no peer"
    share = f", {100 * report['of_limit']:.0f} % of the limit" if "of_limit" in report else ""
    hidden = f" hidden {case['hidden']:g}" if case["hidden"] else ""
    return (
        f"{case['part']} {case['dtype']} {case['frame_tokens']} tokens a frame, head_dim {case['head_dim']}{hidden}: "
        f"{ratio}{share} | {rows}"
    )


def cases(arguments: argparse.Namespace) -> list[Case]:
    plain = [
        Case(part, dtype, frame_tokens, head_dim, 0.0)
        for part, dtype, head_dim, frame_tokens in product(
            arguments.parts, arguments.dtypes, arguments.head_dims, arguments.frame_tokens
        )
    ]
    if not arguments.hidden:
        return plain
    return plain + [
        Case(part, dtype, arguments.frame_tokens[-1], arguments.head_dims[-1], HIDDEN)
        for part, dtype in product(arguments.parts, arguments.dtypes)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame-tokens", type=int, nargs="+", default=[256, 1024, 1828])
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--parts", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    parser.add_argument("--no-hidden", dest="hidden", action="store_false", help="leave out the rows of hidden tokens")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="*", choices=tuple(attentions(False)), help="only these; default all")
    parser.add_argument("--plug", action="append", default=[], help="module:function, another contestant")
    parser.add_argument("--avx2", action="store_true", help="on AVX2, in a process of its own")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    if arguments.avx2 and any(os.environ.get(name) != value for name, value in AVX2.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2})
    torch.set_num_threads(arguments.threads)
    torch._functorch.config.donated_buffer = False  # else a compiled backward cannot run twice

    reports = []
    for case in cases(arguments):
        reports.append(measure(case, arguments))
        print(line(reports[-1]), flush=True)
    if arguments.json:
        report = {
            "machine": machine(), "heads": arguments.heads, "rounds": arguments.rounds, "avx2": arguments.avx2,
            "cases": reports,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
