"""lumos doctor: what it reports, and that everything missing comes with a remedy."""

from __future__ import annotations

import importlib
import json

import pytest

from lumos_engine.cli import doctor


def test_json_report_names_versions_backends_and_instruction_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]
    assert set(found["backends"]) == {"reference", "cpu", "cuda"}
    cpu = found["backends"]["cpu"]
    assert cpu["available"] and cpu["instruction_set_used"] in cpu["instruction_sets_found"]
    assert "portable" in cpu["instruction_sets_found"]
    assert found["threads"] >= 1


def test_table_says_how_to_get_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("av", "tensorboard") else versions(name))
    assert doctor.main([]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "pip install av" in out
    assert "lumos_engine[tensorboard]" in out
    assert "backend cuda" in out


def test_missing_extension_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_extension(name: str, package: str | None = None) -> object:
        if name == "lumos_engine._C":
            raise ImportError("no module named lumos_engine._C")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_extension)
    cpu = doctor.report()["backends"]["cpu"]
    assert not cpu["available"]
    assert "lumos_engine._C" in cpu["reason"] and "reinstall" in cpu["remedy"]


@pytest.mark.parametrize(("kernels", "reason"), [([], "no CUDA kernels"), (["mm_rope", "paged_write"], "no GPU")])
def test_cuda_kernels_are_listed_with_how_far_they_are_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kernels: list[str], reason: str
) -> None:
    monkeypatch.setattr(importlib.import_module("lumos_engine._C"), "cuda_kernels", lambda: kernels)
    monkeypatch.setattr(importlib.import_module("torch").cuda, "is_available", lambda: False)
    cuda = doctor.report()["backends"]["cuda"]
    assert cuda["kernels"] == kernels and not cuda["available"] and reason in cuda["reason"]
    doctor.main([])
    out = " ".join(capsys.readouterr().out.split())
    assert ("mm_rope, paged_write (verified in emulation, unverified on hardware)" in out) == bool(kernels)
