"""Sums over steps, from which the lines of the log are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .progress import Report, peak_memory_mb

__all__ = ["StepResult", "Window", "frame_means", "frame_sums"]


def frame_sums(losses: Tensor, frames: Tensor) -> Tensor:
    """Sum and number of the losses of each latent frame: fp64 [2, frames] of losses [rows] and their frames int64 [rows]."""
    losses = losses.double()
    return torch.stack([torch.bincount(frames, losses), torch.bincount(frames, torch.ones_like(losses))])


def frame_means(sums: Tensor) -> list[float | None]:
    """Mean loss by frame; None for a frame without rows."""
    return [total / count if count else None for total, count in sums.T.tolist()]


@dataclass(frozen=True)
class StepResult:
    """One optimiser step. frame_sums: see :func:`frame_sums`. tokens: packed, of all its forward passes."""

    loss: float
    frame_sums: Tensor
    grad_norm: float
    learning_rate: float
    tokens: int


class Window:
    """The steps since the last report."""

    def __init__(self) -> None:
        self._results: list[StepResult] = []
        self._seconds = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        self._results.append(result)
        self._seconds += seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready and exact, so that a run that resumes between two reports writes the line that it would have written."""
        steps = [{**asdict(result), "frame_sums": result.frame_sums.tolist()} for result in self._results]
        return {"steps": steps, "seconds": self._seconds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Window:
        """Inverse of :meth:`to_dict`."""
        window = cls()
        for step in values["steps"]:
            window.add(StepResult(**{**step, "frame_sums": torch.tensor(step["frame_sums"], dtype=torch.float64)}), 0.0)
        window._seconds = values["seconds"]
        return window

    def report(
        self, step: int, fraction: float, minutes: float, validation: tuple[float, list[float | None]] | None
    ) -> Report:
        results = self._results
        frames = max(result.frame_sums.shape[1] for result in results)
        sums = sum(torch.nn.functional.pad(r.frame_sums, (0, frames - r.frame_sums.shape[1])) for r in results)
        assert isinstance(sums, Tensor)
        return Report(
            step=step,
            fraction=round(fraction, 6),
            minutes=round(minutes, 3),
            loss=sum(result.loss for result in results) / len(results),
            frame_losses=frame_means(sums),
            learning_rate=results[-1].learning_rate,
            grad_norm=sum(result.grad_norm for result in results) / len(results),
            tokens_per_second=round(sum(result.tokens for result in results) / self._seconds, 1),
            memory_mb=peak_memory_mb(),
            validation_loss=validation[0] if validation else None,
            validation_frame_losses=validation[1] if validation else None,
        )
