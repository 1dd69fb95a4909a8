"""``lumos demo``: a page of clips of the shipped model, its evaluation and its training curve."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

QUICK_PROMPTS = 24


@dataclass
class Demo:
    """Generate clips with the shipped model and write OUT/index.html."""

    out: Path = Path("out/demo")
    """folder of the page; made if it is not there"""
    seed: int = 0
    """of the noise"""
    evaluate: bool = True
    """also run a quick evaluation of 24 prompts"""

    def run(self) -> int:
        from .. import __version__
        from ..demo import make_cards, write_page
        from ..evals.digits import evaluate_digits, table_rows
        from ..pipeline import LumosPipeline, shipped_model_folder

        begin = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        pipeline = LumosPipeline.from_pretrained()
        print("generating clips")
        cards = make_cards(pipeline, self.out, seed=self.seed)
        tables = {}
        if self.evaluate:
            print(f"evaluating {QUICK_PROMPTS} prompts")
            tables[f"Quick evaluation, {QUICK_PROMPTS} prompts, made now"] = table_rows(
                evaluate_digits(pipeline, num=QUICK_PROMPTS)
            )
        folder = shipped_model_folder()
        stored = json.loads((folder / "evaluation.json").read_text())
        tables[f"Stored evaluation, {stored['num']} prompts, made when the model was trained"] = table_rows(stored)
        training = json.loads((folder / "training.json").read_text())
        seconds = time.perf_counter() - begin
        page = write_page(
            self.out, cards, tables, training, f"lumos_engine {__version__}, seed {self.seed}, made in {seconds:.0f} s"
        )
        print(f"{page}: open it in a browser")
        return 0


def main(argv: Sequence[str]) -> int:
    """``lumos demo`` with these arguments; returns the exit code."""
    import tyro

    return tyro.cli(Demo, args=list(argv), prog="lumos demo").run()
