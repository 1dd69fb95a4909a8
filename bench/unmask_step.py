"""unmask_step on the logits of one denoising step, guided, against its torch composition (the reference) and torch.compile of that.

    python bench/unmask_step.py --rows 1792 --classes 64000 --json out.json

The limit is reading the logits once: ``share_of_read`` is the time of a plain sum over both tensors divided by ours.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from script import parsed, report
from timing import interleaved, summary
from torch import Tensor

from lumos_engine import ops


def composition(cond: Tensor, uncond: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """What one would write without a kernel; without the reference's portions of rows, which torch.compile cannot follow."""
    uncond = uncond.float()
    probabilities = torch.softmax(3.0 * (cond.float() - uncond) + uncond, -1)
    cumulative = probabilities.cumsum(-1)
    codes = torch.searchsorted(cumulative, uniforms[..., None] * cumulative[..., -1:], right=True)
    return codes, probabilities.gather(-1, codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1792)
    parser.add_argument("--classes", type=int, default=64000)
    arguments = parsed(parser, 5, "float32")

    torch.manual_seed(0)
    shape = (1, arguments.rows, arguments.classes)
    cond, uncond = (torch.randn(shape).to(getattr(torch, arguments.dtype)) for _ in range(2))
    known, uniforms = torch.zeros(shape[:2], dtype=torch.bool), torch.rand(shape[:2])
    step = partial(
        ops.unmask_step,
        cond,
        uncond,
        known.long(),
        known,
        guidance_scale=3.0,
        num_masked=shape[1] // 2,
        uniforms=uniforms,
    )
    compiled = torch.compile(composition)
    contestants = {
        "ours": step,
        "reference": partial(step, backend="reference"),
        "eager": partial(composition, cond, uncond, uniforms),
        "compiled": partial(compiled, cond, uncond, uniforms),
        "read": lambda: (cond.sum(), uncond.sum()),
    }
    with torch.inference_mode():
        results = summary(interleaved(contestants, arguments.rounds, warmup=1), "ours")
    results["ours"]["share_of_read"] = results["read"]["median_ms"] / results["ours"]["median_ms"]
    report(arguments, results)


if __name__ == "__main__":
    main()
