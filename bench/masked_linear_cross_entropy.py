"""masked_linear_cross_entropy, forward and backward, against plain torch, torch.compile of it, and chunks of rows.

    python bench/masked_linear_cross_entropy.py --rows 4096 --width 1024 --columns 65536 --json out.json

Memory is the peak (VmHWM) of a fresh process during one call, minus its resident memory before it and the gradients.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from script import parsed, report
from timing import interleaved, summary
from torch import Tensor
from torch.nn import functional

from lumos_engine import ops

PEERS = ("ours", "compiled", "plain", "row chunks")


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    return functional.cross_entropy((hidden[rows] @ weight.T).float(), targets)


def losses() -> dict[str, Callable[..., Tensor]]:
    return {
        "ours": lambda *x: ops.masked_linear_cross_entropy(*x)[0],
        "compiled": torch.compile(plain),
        "plain": plain,
        "row chunks": lambda *x: ops.masked_linear_cross_entropy(*x, backend="reference")[0],
    }


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    hidden = torch.randn(arguments.rows, arguments.width).to(dtype).requires_grad_()
    weight = (torch.randn(arguments.columns, arguments.width) * arguments.width**-0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, arguments.columns, (arguments.rows,)), torch.arange(arguments.rows)


def once(loss: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(*tensors), tensors[:2])


def status_mb(field: str) -> float:
    """A line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def extra_mb(arguments: argparse.Namespace) -> float:
    """Of this process, which has made nothing yet but a small call that loads what is loaded at the first use."""
    loss, tensors = losses()[arguments.memory_of], inputs(arguments)
    small = argparse.Namespace(**{**vars(arguments), "rows": 32, "columns": 512})
    if arguments.memory_of != "compiled":
        once(loss, inputs(small))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, without that of making the inputs
    before = status_mb("VmRSS")
    grads = once(loss, tensors)
    return status_mb("VmHWM") - before - sum(grad.nbytes for grad in grads) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=65536)
    parser.add_argument("--memory-of", choices=PEERS, help="only print the extra memory of one of them, in MB")
    arguments = parsed(parser, 5)
    if arguments.memory_of:
        print(extra_mb(arguments))
        return

    tensors = inputs(arguments)
    results = summary(
        interleaved(
            {name: partial(once, loss, tensors) for name, loss in losses().items()}, arguments.rounds, warmup=1
        ),
        "ours",
    )
    for name in PEERS:
        run = subprocess.run(
            [sys.executable, *sys.argv, "--memory-of", name], check=True, capture_output=True, text=True
        )
        results[name]["extra_mb"] = float(run.stdout)
    report(arguments, results)


if __name__ == "__main__":
    main()
