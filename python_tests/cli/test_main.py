"""The dispatcher of the lumos command: help, mistakes, errors without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lumos_engine.cli import main as cli


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in cli.COMMANDS)


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: lumos" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lumos_engine ")


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate"]) == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err


def test_every_command_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr("lumos_engine.cli.doctor.main", lambda argv: calls.append("ran") or 0)
    assert cli.main(["doctor"]) == 0
    assert calls == ["kept", "ran"]


def test_commands_have_a_module_with_main() -> None:
    for command in cli.COMMANDS:
        module = __import__(f"lumos_engine.cli.{command}", fromlist=["main"])
        assert callable(module.main), command


@pytest.mark.parametrize(("raised", "code", "said"), [
    (ValueError("steps must be at least 1, got 0"), 2, "lumos doctor: steps must be at least 1, got 0"),
    (OSError(28, "No space left on device", "x.mp4"), 2, "No space left on device"),
    (KeyboardInterrupt(), 130, "interrupted"),
])  # fmt: skip
def test_errors_are_one_line(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lumos_engine.cli.doctor as doctor

    def fail(argv: list[str]) -> int:
        raise raised

    monkeypatch.setattr(doctor, "main", fail)
    monkeypatch.delenv("LUMOS_DEBUG", raising=False)
    assert cli.main(["doctor"]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and err.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import lumos_engine.cli.doctor as doctor

    def fail(argv: list[str]) -> int:
        raise ValueError("deep inside")

    monkeypatch.setattr(doctor, "main", fail)
    monkeypatch.setenv("LUMOS_DEBUG", "1")
    with pytest.raises(ValueError, match="deep inside"):
        cli.main(["doctor"])


def test_a_mistyped_option_exits_with_2_in_a_real_process() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lumos_engine.cli.main", "doctor", "--jsn"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
