"""The tables of an evaluation as Markdown, as the README shows them."""

from __future__ import annotations

from typing import Any

__all__ = ["markdown_tables"]

_METRICS = ("digit_accuracy", "direction_accuracy", "identity_accuracy")


def markdown_tables(report: dict[str, Any]) -> str:
    """Two tables of a report of ``evaluate_digits``: scores by group with 95 % intervals, and continuation."""
    lines = ["| share in % | digit | direction | identity | the same, reconstructed |", "|---|---|---|---|---|"]
    for group in report["groups"].values():
        made = (group["generated"][metric] for metric in _METRICS)
        cells = [f"{100 * m['share']:.1f} [{100 * m['low']:.0f}, {100 * m['high']:.0f}]" for m in made]
        ceiling = " / ".join(f"{100 * group['reconstructed'][metric]['share']:.1f}" for metric in _METRICS)
        lines.append(f"| {group['title']} ({group['prompts']} clips) | {' | '.join(cells)} | {ceiling} |")
    if report["continuation"]:
        lines += [
            "",
            "| first frame given | PSNR of the future | of repeating it | gain | ceiling |",
            "|---|---|---|---|---|",
        ]
    for name, found in report["continuation"].items():
        keys = ("psnr_generated_db", "psnr_repeated_db", "gain_db", "psnr_reconstructed_db")
        cells = [f"{found[key]:.1f} dB" for key in keys]
        lines.append(f"| {report['groups'][name]['title']} ({found['clips']} clips) | {' | '.join(cells)} |")
    return "\n".join(lines)
