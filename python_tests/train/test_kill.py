"""A run that is killed again and again and resumed each time ends in the bits of the run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from lumos_engine.io.lock import owned_folder
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.train.checkpoint import CheckpointFolder

from .conftest import tiny_values
from .launcher import Launcher

SEED = 20260726
STEPS = 13
MEASURED = {"minutes", "tokens_per_second", "memory_mb"}  # of the machine, not of the run


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as process:
        yield process


class Runs:
    """Runs of one configuration in folders of their own."""

    def __init__(
        self, launcher: Launcher, root: Path, tokenizers: tuple[VisualTokenizer, TextTokenizer], steps: int = STEPS
    ) -> None:
        self.launcher, self.root, self.num_kept = launcher, root, min(3, -(-steps // 2))
        tokenizers[0].save_pretrained(root / "visual")
        tokenizers[1].save(root / "text.json")
        # Steps between log lines do not divide those between checkpoints, so that a resume falls into the middle of a line's window.
        values = tiny_values(
            root, data__visual_tokenizer=str(root / "visual"), data__text_tokenizer=str(root / "text.json"), data__height=16,
            data__width=32, data__two_digit_share=0.0, train__batch_size=2, train__threads=1, train__steps=steps,
            train__checkpoint_steps=2, train__log_steps=3, train__validate_steps=6, diffusion__clean_prefix_probability=0.5,
        )  # fmt: skip
        self.config = root / "config.yaml"
        self.config.write_text(yaml.safe_dump(values))

    def arguments(self, name: str) -> list[str]:
        resume = ["--resume"] * CheckpointFolder(self.root / name / "checkpoints", 1).exists()
        return ["train", str(self.config), "--quiet", "--train.out", str(self.root / name), *resume]

    def run(self, name: str, **options: Any) -> int:
        return self.launcher.run(self.arguments(name), self.root / "errors", folder=str(self.root / name), **options)

    @cached_property
    def expected(self) -> dict[str, Any]:
        """Outcome of the run that nothing disturbs."""
        assert self.run("whole") == 0, self.errors()
        return outcome(self.root / "whole")

    def assert_as_expected(self, name: str) -> None:
        """The outcome of the undisturbed run, and nothing that a killed process left."""
        folder = self.root / name
        found = outcome(folder)
        assert found.keys() == self.expected.keys()
        for part, value in self.expected.items():
            assert found[part] == value, part
        assert [path.name for path in folder.rglob(".*")] == [".lock"]
        assert len(list((folder / "checkpoints").glob("step-*"))) == self.num_kept

    def errors(self) -> str:
        return (self.root / "errors").read_text()


@pytest.fixture(scope="module")
def runs(
    launcher: Launcher, tmp_path_factory: pytest.TempPathFactory, tokenizers: tuple[VisualTokenizer, TextTokenizer]
) -> Runs:
    return Runs(launcher, tmp_path_factory.mktemp("runs"), tokenizers)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves, as bytes or values; times and paths excepted."""
    checkpoint = CheckpointFolder(folder / "checkpoints", 1).load_latest()
    tensors = {f"{file}/{name}": value.view(-1).contiguous().numpy().tobytes()
               for file, part in checkpoint.tensors.items() for name, value in part.items()}  # fmt: skip
    state = {name: value for name, value in checkpoint.state.items() if name not in ("minutes", "config")}
    state["window"] = state["window"]["steps"]
    curve = {name: value for name, value in json.loads((folder / "model" / "training.json").read_text()).items()
             if name not in MEASURED}  # fmt: skip
    model = {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "model").rglob("*"))
             if path.is_file() and path.name != "training.json"}  # fmt: skip
    return {**tensors, **model, "state": state, "curve": curve, "log": log_lines(folder)}


def kill_in_turn(runs: Runs, kills: int) -> None:
    """Kill runs ``kills`` times, resuming until each ends; some before a change of the file system, some after a time."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    assert [line["step"] for line in runs.expected["log"]] == [3, 6, 9, 12, STEPS]
    done = attempt = 0
    while done < kills:
        name = f"{kills}-{attempt}"
        attempt += 1
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            if done == kills:
                code = runs.run(name)
            elif chance.random() < 0.7:
                code = runs.run(name, kill_at=chance.randint(1, 180))
            else:
                code = runs.run(name, kill_after=chance.uniform(0, 1.5))
            done += code == -signal.SIGKILL
        assert code == 0, runs.errors()
        runs.assert_as_expected(name)


def test_killed_and_resumed_equals_undisturbed(runs: Runs) -> None:
    kill_in_turn(runs, 4)


@pytest.mark.slow
def test_killed_and_resumed_many_times(runs: Runs) -> None:
    kill_in_turn(runs, 40)


@pytest.mark.slow
def test_killed_before_every_change_of_the_file_system(
    launcher: Launcher, tmp_path: Path, tokenizers: tuple[VisualTokenizer, TextTokenizer]
) -> None:
    """Of a run with a checkpoint in its course and one at its end."""
    runs = Runs(launcher, tmp_path, tokenizers, steps=3)
    number, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        code = runs.run(f"at{number}", kill_at=number)
        if code == -signal.SIGKILL:
            assert runs.run(f"at{number}") == 0, runs.errors()
            runs.assert_as_expected(f"at{number}")
    assert code == 0 and number > 60
    print(f"killed before each of {number - 1} changes")


def test_a_full_disk_ends_in_one_line_and_loses_nothing(runs: Runs) -> None:
    assert runs.run("full", kill_at=75) == -signal.SIGKILL
    before = CheckpointFolder(runs.root / "full" / "checkpoints", 1).load_latest()
    size = (before.path / "model.safetensors").stat().st_size
    assert runs.run("full", limit_bytes=size - 1) == 2
    error = runs.errors()
    assert "File too large" in error and "model.safetensors" in error and error.count("\n") == 1, error
    after = CheckpointFolder(runs.root / "full" / "checkpoints", 1).load_latest()
    assert after.state == before.state
    assert runs.run("full") == 0, runs.errors()
    runs.assert_as_expected("full")


def test_a_second_process_on_the_folder_is_refused(runs: Runs) -> None:
    with owned_folder(runs.root / "run"):
        assert runs.run("run") == 2
    error = runs.errors()
    assert f"run is in use by another process (pid {os.getpid()})" in error and error.count("\n") == 1, error
    assert sorted(path.name for path in (runs.root / "run").iterdir()) == [".lock"]
