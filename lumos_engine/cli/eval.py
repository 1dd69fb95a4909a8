"""``lumos eval digits``: score a model of the moving-digits world."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from ..data import ClipBatch

_SHEET_CLIPS = 12


@dataclass
class EvalDigits:
    """Does the model draw the digits and motions that prompts state, and continue what it is shown?

    Prints a table: generated clips, with 95 % intervals, beside true clips and their tokenizer reconstructions (what
    can be reached).
    """

    num: int = 256
    """prompts; 256 is the full evaluation: 128 one digit, 32 one digit in unseen pairs, 64 two digits, 32 two
    digits unseen
    """
    json: bool = False
    """print JSON instead of a table"""
    markdown: Path | None = None
    """print the Markdown tables of this stored JSON (see --out) and do nothing else"""
    out: Path | None = None
    """also write the JSON to this file"""
    sheets: Path | None = None
    """also write pictures of the first clips of each group, above their true counterparts, into this folder"""
    model: Path | None = None
    """folder of a model; without it the one that comes with the package"""
    seed: int = 0
    """of the noise"""
    batch_size: int = 64
    """clips at a time"""
    continuation: bool = True
    """also continue held-back clips from their first frame"""
    steps: int | None = None
    """denoising steps per latent frame; like the following, the model's default where not given"""
    guidance_scale: float | None = None
    """weight of the prompt"""
    temperature: float | None = None
    """of the noise that decides what is re-masked"""
    sampling_temperature: float | None = None
    """of the softmax that codes are drawn from"""
    history: Literal["mask", "drop", "keep"] | None = None
    """what later frames see of finished ones"""
    history_mask_ratio: float | None = None
    """share of a finished frame that mask and drop hide"""

    def run(self) -> int:
        if self.markdown is not None:
            from ..evals.markdown import markdown_tables

            print(markdown_tables(json.loads(self.markdown.read_text())))
            return 0
        if self.num < 1 or self.batch_size < 1:
            raise ValueError(f"--num and --batch-size must be at least 1, not {self.num} and {self.batch_size}")
        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise FileNotFoundError(f"no such folder: {self.out.absolute().parent}")
        from ..evals.digits import evaluate_digits
        from ..io.atomic import write_json_atomic
        from ..pipeline import LumosPipeline

        names = ("steps", "guidance_scale", "temperature", "sampling_temperature", "history", "history_mask_ratio")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        pipeline = LumosPipeline.from_pretrained(self.model)
        with _progress() as progress:
            report = evaluate_digits(
                pipeline, self.num, seed=self.seed, batch_size=self.batch_size, continuation=self.continuation,
                options=options, progress=progress, keep_clips=self._save_sheet if self.sheets else None,
            )  # fmt: skip
        if self.out is not None:
            write_json_atomic(self.out, report)
        if self.json:
            json.dump(report, sys.stdout, indent=2)
            print()
        else:
            _print_table(report)
        return 0

    def _save_sheet(self, group: str, generated: np.ndarray, truth: ClipBatch) -> None:
        from ..evals.sheet import contact_sheet
        from ..io.video import save_video

        assert self.sheets is not None
        self.sheets.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(generated[:_SHEET_CLIPS], truth.frames[:_SHEET_CLIPS])
        save_video(sheet, self.sheets / f"{group}.png", fps=1, scale=3)


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evals.digits import table_rows

    head, *rows = table_rows(report)
    console, table = Console(highlight=False), Table()
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row[0]:
            table = Table(*head[1:], title=row[0], title_justify="left")
        table.add_row(*row[1:])
        if following is None or following[0]:
            console.print(table)
    console.print(f"{report['num']} prompts, seed {report['manifest']['seed']}; 95 % intervals in brackets")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("generating clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("clips", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main(argv: Sequence[str]) -> int:
    """``lumos eval`` with these arguments; returns the exit code. Raises ValueError for an unknown evaluation."""
    import tyro

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: lumos eval digits [options]\n\n'lumos eval digits --help' shows the options.")
        return 0 if argv else 2
    if argv[0] != "digits":
        raise ValueError(f"unknown evaluation {argv[0]!r}; known: digits")
    return tyro.cli(EvalDigits, args=list(argv[1:]), prog="lumos eval digits").run()
