"""The training curve of a run's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumos_engine.train.curve import training_curve


def _log(path: Path, steps: list[int], **more: object) -> Path:
    rows = [
        {"step": s, "frame_losses": [float(s), 1.0], "minutes": s / 10, "tokens_per_second": 100.0 + s, **more}
        for s in steps
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_groups_are_means_and_end_at_their_last_step(tmp_path: Path) -> None:
    curve = training_curve(_log(tmp_path / "a.jsonl", [10, 20, 30, 40, 50]), max_points=3)
    assert curve["steps"] == [20, 40, 50]
    assert curve["loss_by_frame"] == {"frame 0": [15.0, 35.0, 50.0], "frame 1": [1.0, 1.0, 1.0]}
    assert curve["minutes"] == 5.0 and curve["tokens_per_second"] == 130.0 and curve["validation_loss"] is None


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    assert training_curve(_log(tmp_path / "a.jsonl", [10, 20, 10, 20, 30]))["steps"] == [10, 20, 30]


def test_windows_without_some_frame_are_left_out(tmp_path: Path) -> None:
    path = _log(tmp_path / "a.jsonl", [10, 20])
    path.write_text(
        path.read_text()
        + json.dumps(
            {"step": 30, "frame_losses": [1.0, None], "minutes": 3.0, "tokens_per_second": 1.0, "validation_loss": 0.5}
        )
    )
    curve = training_curve(path)
    assert curve["steps"] == [10, 20] and curve["validation_loss"] == 0.5


def test_empty_log(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no step"):
        training_curve(tmp_path / "a.jsonl")
