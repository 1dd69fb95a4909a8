"""Generation of one clip with a small model, against the original's own loop (peers/dense_loop.py) on the same weights.

    python bench/bench_generate.py --json out.json
    python bench/bench_generate.py --threads 1 --dtypes bfloat16 --rounds 1

4 layers, 256 wide, 4 heads, FFN 1024, vocabulary 8192 of which 4096 visual, random weights; 100 tokens of text, 448x256, 3 latent
frames, 4 steps, guidance 3. Seconds are those of a whole clip without text and pixels. Memory is the peak (VmHWM) of a fresh
process after one clip, minus its resident memory after imports. ``parts`` are seconds by torch's profiler. Freed memory stays
with the process, as under ``lumos generate``.
``same_codes``: share of codes that both choose alike without randomness, in fp32.
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
from peers import dense_loop
from peers.plain_model import PlainModel
from process_memory import resident_mb, resident_peak_mb
from step_parts import parts
from timing import interleaved, machine, summary
from torch import Tensor

from lumos_engine import LumosModel, Vocabulary, keep_freed_memory
from lumos_engine.diffusion import FrameGenerator, OfficialQuirks, PhiloxNoise, SamplingSettings
from lumos_engine.model import LumosConfig

OURS, PEER = "ours", "dense loop"
TEXT_TOKENS, STEPS, GUIDANCE = 100, 4, 3.0
CLIP = {"height": 32, "width": 56, "num_frames": 3}
VOCABULARY = Vocabulary(
    bos=0, image_start=1, image_end=2, newline=3, video_start=4, video_end=5, mask=6, sep=7, size_zero=8,
    number_tokens=100, visual_begin=4096, visual_size=4096,
)  # fmt: skip
CONFIG = LumosConfig(
    vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=8192,
)  # fmt: skip


def make(name: str, dtype: torch.dtype, greedy: bool = False) -> Callable[[], Tensor]:
    """A function that generates codes [frames, height, width]."""
    torch.manual_seed(0)
    model = LumosModel(CONFIG).to(dtype).eval()
    text = torch.randint(200, 4096, (TEXT_TOKENS - 2,)).tolist()
    prompt, header = [VOCABULARY.bos, *text, VOCABULARY.sep], VOCABULARY.video_header(1, 9)
    if name == PEER:
        peer = PlainModel(CONFIG).to(dtype).eval()
        peer.load_state_dict(model.state_dict())
        return lambda: dense_loop.generate(
            peer, VOCABULARY, prompt, header, steps=STEPS, guidance_scale=GUIDANCE, greedy=greedy, **CLIP
        )
    settings = SamplingSettings(
        steps=STEPS,
        guidance_scale=GUIDANCE,
        quirks=OfficialQuirks.all(),
        **({"temperature": 0.0, "sampling_temperature": 0.0} if greedy else {}),
    )
    generator = FrameGenerator(model, VOCABULARY, settings)
    noise = PhiloxNoise([(0, 0)])
    return lambda: torch.cat(list(generator.frames([prompt], header, noise=noise, **CLIP)))


def peak_mb(name: str, dtype: torch.dtype) -> float:
    before = resident_mb()
    make(name, dtype)()
    return resident_peak_mb() - before


def measured_peak_mb(name: str, dtype: str, threads: int) -> float:
    options = ["--memory-of", name, "--dtypes", dtype, "--threads", str(threads)]
    run = subprocess.run([sys.executable, sys.argv[0], *options], check=True, capture_output=True, text=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=(OURS, PEER), help="only print the peak memory of one of them, in MB")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.memory_of:
        torch.set_num_threads(arguments.threads[0])
        print(peak_mb(arguments.memory_of, getattr(torch, arguments.dtypes[0])))
        return

    greedy = [make(name, torch.float32, greedy=True)() for name in (OURS, PEER)]
    report: dict[str, Any] = {"same_codes": (greedy[0] == greedy[1]).double().mean().item(), "cases": []}
    for dtype in arguments.dtypes:
        clips = {name: make(name, getattr(torch, dtype)) for name in (OURS, PEER)}
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            results: dict[str, Any] = summary(interleaved(clips, arguments.rounds, warmup=1), OURS)
            for name, row in results.items():
                row["parts"] = parts(clips[name])
                row["peak_mb"] = measured_peak_mb(name, dtype, threads)
            report["cases"].append({"dtype": dtype, "machine": machine(), "results": results})
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
