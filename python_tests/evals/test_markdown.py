"""Markdown tables of a report."""

from __future__ import annotations

from lumos_engine.evals.markdown import markdown_tables


def test_tables() -> None:
    metrics = ("digit_accuracy", "direction_accuracy", "identity_accuracy")
    scores = {
        name: {"share": share, "low": 0.1, "high": 1.0} for name, share in zip(metrics, (0.5, 1.0, 0.25), strict=True)
    }
    group = {"title": "one digit", "prompts": 4, "generated": scores, "reconstructed": scores}
    found = {
        "clips": 2,
        "psnr_generated_db": 27.04,
        "psnr_repeated_db": 15.0,
        "gain_db": 12.04,
        "psnr_reconstructed_db": 30.0,
    }
    text = markdown_tables({"groups": {"a": group}, "continuation": {"a": found}})
    assert "| one digit (4 clips) | 50.0 [10, 100] | 100.0 [10, 100] | 25.0 [10, 100] | 50.0 / 100.0 / 25.0 |" in text
    assert "| one digit (2 clips) | 27.0 dB | 15.0 dB | 12.0 dB | 30.0 dB |" in text
    assert "first frame given" not in markdown_tables({"groups": {"a": group}, "continuation": {}})
