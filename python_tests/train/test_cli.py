"""``lumos train`` as a process: mistakes, Ctrl-C, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lumos_engine.cli.main import main
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer

from .conftest import tiny_values


@pytest.fixture
def config(tmp_path: Path, tokenizers: tuple[VisualTokenizer, TextTokenizer]) -> Path:
    """A run on 32x32 moving digits with a tiny model and random tokenizer."""
    tokenizers[0].save_pretrained(tmp_path / "visual")
    tokenizers[1].save(tmp_path / "text.json")
    values = tiny_values(
        tmp_path / "run", data__visual_tokenizer=str(tmp_path / "visual"), data__text_tokenizer=str(tmp_path / "text.json"),
        data__height=16, data__width=32, data__two_digit_share=0.0, train__batch_size=2, train__checkpoint_steps=2, train__threads=1,
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "train.jsonl").read_text().splitlines()]


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lumos_engine.cli.main", "train", str(config), "--quiet", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    while not (folder / "checkpoints" / "LATEST").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_run_and_resume(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), "--train.steps", "3"]) == 0
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert "3 steps done" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["steps"] == 3
    assert main(["train", str(config), "--quiet"]) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert main(["train", str(config), "--quiet", "--resume", "--train.steps", "5"]) == 0
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.stepz", "3"], "did you mean 'steps'"),
        (["--train.steps", "three"], "train.steps must be an integer"),
        (["--resume"], "no checkpoint to resume from"),
        (["--vocabulary.visual_size", "11"], "vocabulary.visual_size is 11, the visual tokenizer has 12 codes"),
        (["--vocabulary.strides", "[4, 8, 8]"], "vocabulary.strides are (4, 8, 8)"),
        (["--data.num_frames", "6"], "nearest: 5 and 9"),
        (["--data.visual_tokenizer", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", str(config), "--quiet", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "--optimizer.learning_rate" in capsys.readouterr().out
    assert main(["train"]) == 2


def test_tensorboard_is_asked_for_by_name(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", str(config), "--quiet", "--train.tensorboard", "true"]) == 2
    assert "pip install 'lumos_engine[tensorboard]'" in capsys.readouterr().err


def test_ctrl_c_saves_and_exits_with_130(config: Path, tmp_path: Path) -> None:
    process = start(config, "--train.steps", "100000")
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume continues" in error and "Traceback" not in error
    latest = (tmp_path / "run" / "checkpoints" / "LATEST").read_text().strip()
    assert int(latest.removeprefix("step-")) == steps(tmp_path / "run")[-1]


def test_kill_and_resume(config: Path, tmp_path: Path) -> None:
    process = start(config, "--train.steps", "100000")
    wait_for_checkpoint(process, tmp_path / "run")
    process.kill()
    process.communicate()
    latest = (tmp_path / "run" / "checkpoints" / "LATEST").read_text().strip()
    last = int(latest.removeprefix("step-"))
    assert main(["train", str(config), "--quiet", "--resume", "--train.steps", str(last + 3)]) == 0
    assert steps(tmp_path / "run") == list(range(1, last + 4))
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
