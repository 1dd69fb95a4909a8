"""The training curve that goes with a model: a few hundred points of the run's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["training_curve"]


def training_curve(log: Path, max_points: int = 200) -> dict[str, Any]:
    """Means of consecutive lines of a ``train.jsonl``.

    Args:
        log: written by a run; where a resumed run repeated steps, its later lines count.
        max_points: of the curve.

    Returns:
        ``steps`` (the last one of each point), ``loss_by_frame`` ("frame 0": one mean cross-entropy per point, ...), ``minutes`` of
        training, ``tokens_per_second`` (the median over the log's lines) and ``validation_loss`` (the last one, or None).

    Raises:
        ValueError: the log holds no line.
        OSError: it cannot be read.
    """
    by_step = {line["step"]: line for line in map(json.loads, log.read_text().splitlines())}
    lines = [by_step[step] for step in sorted(by_step)]
    if not lines:
        raise ValueError(f"{log} holds no step")
    lines = [
        line for line in lines if None not in line["frame_losses"]
    ]  # a window in which some frame had no masked code
    size = max(1, -(-len(lines) // max_points))
    groups = [lines[i : i + size] for i in range(0, len(lines), size)]
    num_frames = len(lines[0]["frame_losses"]) if lines else 0
    speeds = sorted(line["tokens_per_second"] for line in by_step.values())
    last = by_step[max(by_step)]
    validations = [line["validation_loss"] for line in by_step.values() if line.get("validation_loss") is not None]
    return {
        "steps": [group[-1]["step"] for group in groups],
        "loss_by_frame": {
            f"frame {k}": [round(sum(line["frame_losses"][k] for line in group) / len(group), 4) for group in groups]
            for k in range(num_frames)
        },
        "minutes": last["minutes"],
        "tokens_per_second": speeds[len(speeds) // 2],
        "validation_loss": validations[-1] if validations else None,
    }
