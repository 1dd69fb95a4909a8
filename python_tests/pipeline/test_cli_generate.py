"""``lumos generate``: files it writes, and one line with exit code 2 for every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lumos_engine.cli.main import main
from lumos_engine.io.image import read_image
from lumos_engine.io.video import read_video

PROMPT = "a 7 moving right"


def test_writes_a_video_and_says_its_seed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    assert main(["generate", PROMPT, "-o", str(out), "--model", str(folder), "--scale", "2", "--seed", "5"]) == 0
    assert read_video(out).frames.shape == (9, 64, 64, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 x 9 frames of 32x32, seed 5" in captured.err


def test_small_clips_are_enlarged_by_default(folder: Path, tmp_path: Path) -> None:
    assert (
        main(["generate", PROMPT, "-o", str(tmp_path / "x.png"), "--model", str(folder), "--num-frames", "1", "-q"])
        == 0
    )
    assert read_image(tmp_path / "x.png").shape == (256, 256, 3)


def test_options_reach_the_pipeline(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lumos_engine.pipeline import LumosPipeline

    options = {
        "num_frames": 5,
        "height": 32,
        "width": 64,
        "fps": 3,
        "steps": 2,
        "guidance_scale": 3.0,
        "temperature": 0.5,
        "sampling_temperature": 0.3,
        "history": "mask",
        "history_mask_ratio": 0.6,
        "seed": 9,
        "num_samples": 2,
        "mode": "official",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert (
        main(
            [
                "generate",
                PROMPT,
                "another",
                "-o",
                str(tmp_path / "x.png"),
                "--model",
                str(folder),
                "--scale",
                "1",
                "-q",
                *arguments,
            ]
        )
        == 0
    )
    assert capsys.readouterr().err == ""
    expected = LumosPipeline.from_pretrained(folder)([PROMPT, "another"], **options).frames
    for number, clip in enumerate(expected):
        np.testing.assert_array_equal(read_image(tmp_path / f"x-{number}.png"), np.concatenate(list(clip), axis=1))


def test_continues_an_image_and_a_video(folder: Path, tmp_path: Path) -> None:
    common = ["--model", str(folder), "-q", "--scale", "1"]
    assert main(["generate", PROMPT, "-o", str(tmp_path / "clip.mp4"), *common]) == 0
    assert main(["generate", PROMPT, "-o", str(tmp_path / "image.png"), "--num-frames", "1", *common]) == 0
    assert (
        main(["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), "--image", str(tmp_path / "image.png"), *common]) == 0
    )
    assert (
        main(
            [
                "generate",
                PROMPT,
                "-o",
                str(tmp_path / "b.gif"),
                "--video",
                str(tmp_path / "clip.mp4"),
                "--given-frames",
                "5",
                *common,
            ]
        )
        == 0
    )
    assert (tmp_path / "a.mp4").is_file() and (tmp_path / "b.gif").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    (["", "-o", "x.mp4"], "prompt must not be empty"),
    (["-o", "x.mp4"], "say what to show"),
    ([PROMPT, "-o", "x.webm"], "--out must end in .mp4, .gif, .png, got 'x.webm'"),
    ([PROMPT, "-o", "nowhere/x.mp4"], "no such folder"),
    ([PROMPT, "-o", "x.mp4", "--scale", "0"], "--scale must be a whole number of at least 1"),
    ([PROMPT, "-o", "x.mp4", "--num-frames", "8"], "num_frames must be 1 + 4 * n, got 8; nearest: 5 and 9"),
    ([PROMPT, "-o", "x.mp4", "--image", "missing.png"], "no such file: missing.png"),
    ([PROMPT, "-o", "x.mp4", "--image", "text.png"], "text.png is not an image"),
    ([PROMPT, "-o", "x.mp4", "--video", "text.png"], "text.png "),
    ([PROMPT, "-o", "x.mp4", "--model", "missing"], "no model folder missing"),
    ([PROMPT * 200, "-o", "x.mp4"], "the prompt must fit into"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("this is text, and long enough to be looked at " * 20)
    model = [] if "--model" in arguments else ["--model", str(folder)]
    assert main(["generate", *arguments, *model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lumos generate: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


@pytest.mark.parametrize("arguments", [["--nmu-frames", "5"], ["--num-frames", "many"], ["--history", "forget"]])
def test_mistyped_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", PROMPT, *arguments])
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
