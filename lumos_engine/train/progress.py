"""What a run shows and records: a progress bar, a JSON-lines log, and TensorBoard as an extra."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..io.atomic import write_bytes_atomic

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["EncodingBar", "JsonLog", "ProgressBar", "Report", "TensorBoardLog", "peak_memory_mb"]


@dataclass(frozen=True)
class Report:
    """A line of the log; training values are means over the steps since the last one.

    Attributes:
        step: optimiser steps done. fraction: of the run. minutes: trained, earlier sessions of the run included.
        loss: mean over masked codes, nats. frame_losses: the same by latent frame; None where no row was seen.
        learning_rate: of AdamW, in the last step. grad_norm: before clipping.
        tokens_per_second: packed tokens, validation and checkpoints not counted. memory_mb: peak of the process.
        validation_loss, validation_frame_losses: on held-back clips under fixed masks, of the averaged weights; in some lines.
    """

    step: int
    fraction: float
    minutes: float
    loss: float
    frame_losses: list[float | None]
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_mb: float
    validation_loss: float | None = None
    validation_frame_losses: list[float | None] | None = None


class Listener(Protocol):
    """Called with each report of a run; ``close`` ends the display."""

    def __call__(self, report: Report) -> None: ...

    def close(self) -> None: ...


class JsonLog:
    """``train.jsonl``: one object a line. Lines beyond ``step`` (of a session that went on after the checkpoint) are removed."""

    def __init__(self, path: Path, step: int) -> None:
        if path.is_file():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= step]
            write_bytes_atomic(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for the run, closed by close()

    def __call__(self, report: Report) -> None:
        self._file.write(json.dumps({k: v for k, v in asdict(report).items() if v is not None}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill


class ProgressBar:
    """Bar with loss, tokens/s and time left, on stderr; validation results stay as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:.0f} %"),
                   TimeElapsedColumn(), TextColumn("left {task.fields[left]}"))  # fmt: skip
        self._bar: Progress = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=1.0, left="-")
        self._bar.start()
        self._first: tuple[float, float] | None = (
            None  # minutes and fraction of the first report, which a resume shifts
        )

    def __call__(self, report: Report) -> None:
        text = f"step {report.step}  loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=report.fraction, description=text, left=self._left(report))
        if report.validation_loss is not None:
            self._bar.console.print(f"step {report.step}: validation loss {report.validation_loss:.4f}")

    def _left(self, report: Report) -> str:
        if self._first is None:
            self._first = report.minutes, report.fraction
        minutes, fraction = report.minutes - self._first[0], report.fraction - self._first[1]
        if fraction <= 0:
            return "-"
        seconds = round(60 * minutes / fraction * (1 - report.fraction))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def close(self) -> None:
        self._bar.stop()


class EncodingBar:
    """Bar for the encoding of a folder, which appears with its first clip; called with clips done and clips in all."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._bar: Progress = Bar(console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> EncodingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("encoding clips", total=total)
        self._bar.update(self._task, completed=done)


class TensorBoardLog:
    """Scalars of each report. Raises RuntimeError where tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RuntimeError("train.tensorboard needs the package: pip install 'lumos_engine[tensorboard]'") from None
        self._add: Callable[..., None]
        self._writer: Any = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
        self._add = self._writer.add_scalar

    def __call__(self, report: Report) -> None:
        for name, value in asdict(report).items():
            for i, scalar in enumerate(value if isinstance(value, list) else [value]):
                if scalar is not None and name != "step":
                    self._add(f"{name}/{i}" if isinstance(value, list) else name, scalar, report.step)

    def close(self) -> None:
        self._writer.close()


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
