"""What the scripts of one table have in common: their options, and the JSON that they print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from timing import machine


def parsed(parser: argparse.ArgumentParser, rounds: int, dtype: str = "bfloat16") -> argparse.Namespace:
    """With ``--dtype``, ``--rounds``, ``--threads``, which is set, and ``--json``."""
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=dtype)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def report(arguments: argparse.Namespace, results: object, **more: object) -> None:
    """Print and write ``results`` with the machine, the options and ``more``."""
    case = {name: value for name, value in vars(arguments).items() if name not in ("json", "memory_of")}
    text = json.dumps({"machine": machine(), **more, "case": case, "results": results}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
