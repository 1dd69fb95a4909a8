"""A whole training step, AdamW included, against the same model in plain torch with the fastest attention that torch has.

    python bench/training_step.py --json out.json
    python bench/training_step.py --peers "SDPA frame by frame" --rounds 2

64 tokens of text and 4 frames of 1024, 80 % masked (the same places in every frame), one sequence, no activation
checkpointing. ``--weights bf16``: weights, gradients and AdamW's moments in bf16; ``fp32``: those in fp32 and bf16 by autocast.
Freed memory stays with the process, as under ``lumos train``: none pays for fresh pages. Memory is the peak (VmHWM) of a fresh
process after two steps, minus its resident memory after imports. ``parts`` are seconds of one step by torch's profiler. The losses of all contestants on the same weights must agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peers.attention import attentions
from peers.plain_model import PlainModel
from process_memory import resident_mb, resident_peak_mb
from step_parts import parts
from timing import interleaved, machine, summary
from torch import Tensor

from lumos_engine import Frame, LumosModel, SequenceLayout, Text, keep_freed_memory, ops
from lumos_engine.model import LumosConfig

VISUAL, TEXT_IDS = 65536, 8192
MASK_ID, TEXT_TOKENS = 0, 64
OURS = "ours"
PEERS = tuple(f"{name}{suffix}" for name in ("SDPA frame by frame", "SDPA masked") for suffix in ("", ", compiled"))

Step = Callable[[], float]


class Batch:
    """tokens, labels of the masked rows, layout: AR-DF with history "mask"."""

    def __init__(self, frames: int, frame_tokens: int, mask_ratio: float) -> None:
        generator = torch.Generator().manual_seed(1)
        self.layout = SequenceLayout.from_segments([[Text(TEXT_TOKENS)] + [Frame(frame_tokens // 32, 32)] * frames])
        codes = torch.randint(0, VISUAL, (frames, frame_tokens), generator=generator)
        masked = torch.rand(frame_tokens, generator=generator).argsort() < round(mask_ratio * frame_tokens)
        visible_ids = (codes + TEXT_IDS).masked_fill(masked, MASK_ID)
        text = torch.randint(1, TEXT_IDS, (TEXT_TOKENS,), generator=generator)
        self.tokens = torch.cat((text, visible_ids.flatten()))
        self.rows = TEXT_TOKENS + masked.repeat(frames).nonzero()[:, 0]
        self.targets = codes[:, masked].flatten()


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)


def make_step(model: torch.nn.Module, loss: Callable[[], Tensor], autocast: bool) -> Step:
    optimizer = adamw(model)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def make_config(arguments: argparse.Namespace) -> LumosConfig:
    return LumosConfig(
        vocab_size=VISUAL + TEXT_IDS, hidden_size=arguments.width, intermediate_size=4 * arguments.width,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.heads, num_key_value_heads=arguments.heads,
        max_position_embeddings=65536,
    )  # fmt: skip


def our_step(config: LumosConfig, batch: Batch, dtype: torch.dtype, autocast: bool) -> Step:
    torch.manual_seed(0)
    model = LumosModel(config).to(dtype)

    def loss() -> Tensor:
        hidden = model.hidden_states(batch.tokens, batch.layout)
        weight = model.lm_head.weight[TEXT_IDS:]
        return ops.masked_linear_cross_entropy(hidden, weight, batch.targets, batch.rows)[0]

    return make_step(model, loss, autocast)


def peer_step(config: LumosConfig, batch: Batch, dtype: torch.dtype, autocast: bool, name: str) -> Step:
    attention, _, compiled = name.partition(", ")
    torch.manual_seed(0)
    weights = LumosModel(config).state_dict()
    with torch.device("meta"):
        model = PlainModel(config)
    model.load_state_dict(weights, assign=True)
    del weights
    model = model.to(dtype)
    attend = attentions(True)[attention](batch.layout)

    def loss() -> Tensor:
        positions = batch.layout.positions
        hidden = model(batch.tokens, positions, lambda layer, q, k, v: attend(q, k, v), torch.bfloat16)
        logits = F.linear(hidden[batch.rows], model.lm_head.weight[TEXT_IDS:])
        return F.cross_entropy(logits.float(), batch.targets)

    return make_step(model, torch.compile(loss) if compiled else loss, autocast)


def build(name: str, arguments: argparse.Namespace) -> Step:
    batch = Batch(arguments.frames, arguments.frame_tokens, arguments.mask_ratio)
    autocast = arguments.weights == "fp32"
    dtype = torch.float32 if autocast else torch.bfloat16
    config = make_config(arguments)
    return our_step(config, batch, dtype, autocast) if name == OURS else peer_step(config, batch, dtype, autocast, name)


def memory_mb(name: str, arguments: argparse.Namespace) -> float:
    before = resident_mb()
    step = build(name, arguments)
    for _ in range(2):
        step()
    return resident_peak_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--frame-tokens", type=int, default=1024)
    parser.add_argument("--mask-ratio", type=float, default=0.8)
    parser.add_argument("--weights", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--no-memory", action="store_true", help="leave out the runs that measure memory")
    parser.add_argument("--memory-of", help="only print the peak memory of one of them, in MB")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.memory_of:
        print(memory_mb(arguments.memory_of, arguments))
        return

    names = [OURS, *arguments.peers]
    steps = {name: build(name, arguments) for name in names}
    losses = {name: step() for name, step in steps.items()}  # compiles, and makes AdamW's moments
    if max(losses.values()) - min(losses.values()) > 0.02:
        raise SystemExit(f"the contestants do not compute the same: losses {losses}")
    results: dict[str, Any] = summary(interleaved(steps, arguments.rounds, warmup=0), OURS)
    num_tokens = TEXT_TOKENS + arguments.frames * arguments.frame_tokens
    for name, row in results.items():
        row["tokens_per_s"] = 1e3 * num_tokens / row["median_ms"]
        row["parts"] = parts(steps[name])
    del steps
    for name in names if not arguments.no_memory else ():
        run = subprocess.run(
            [sys.executable, *sys.argv, "--memory-of", name], check=True, capture_output=True, text=True
        )
        results[name]["peak_mb"] = float(run.stdout)
    case = {name: value for name, value in vars(arguments).items() if name not in ("json", "memory_of")}
    report = json.dumps({"machine": machine(), "case": case, "losses": losses, "results": results}, indent=2)
    print(report)
    if arguments.json:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
