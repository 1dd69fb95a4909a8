"""Where the time goes before and after, as a table in Markdown, from the JSON files of two runs of one benchmark.

    python bench/training_step.py --json after.json         (and before.json from an older state)
    python bench/parts_table.py before.json after.json

Works on files of training_step.py and bench_generate.py. Seconds of one step or clip by torch's profiler; the first line is the
median of the timed runs without it. Peers are those of the second file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OURS = "ours"

Row = dict[str, Any]


def cases(path: Path) -> dict[str, dict[str, Row]]:
    """By title: results by contestant."""
    report = json.loads(path.read_text())
    if "cases" not in report:
        return {f"{report['case']['weights']} weights, {report['case']['threads']} threads": report["results"]}
    return {f"{case['dtype']}, {case['machine']['threads']} threads": case["results"] for case in report["cases"]}


def table(columns: dict[str, Row]) -> str:
    parts = sorted(
        {part for row in columns.values() for part in row["parts"]}, key=lambda part: -largest(columns, part)
    )
    lines = [line("seconds", list(columns)), "|---" * (len(columns) + 1) + "|"]
    lines.append(line("**median**", [f"{row['median_ms'] / 1e3:.2f}" for row in columns.values()]))
    for part in parts:
        if largest(columns, part) >= 0.01:
            lines.append(line(part, [f"{row['parts'].get(part, 0.0):.2f}" for row in columns.values()]))
    return "\n".join(lines)


def line(name: str, cells: list[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def largest(columns: dict[str, Row], part: str) -> float:
    return max(float(row["parts"].get(part, 0.0)) for row in columns.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = cases(arguments.before), cases(arguments.after)
    for title, results in after.items():
        columns = {"before": before[title][OURS], "after": results[OURS]} if title in before else {OURS: results[OURS]}
        columns |= {name: row for name, row in results.items() if name != OURS}
        print(f"{title}\n\n{table(columns)}\n")


if __name__ == "__main__":
    main()
