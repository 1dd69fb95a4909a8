"""The demo page: escaping, media by kind, the plot, errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lumos_engine.demo import Card, write_page
from lumos_engine.demo.plot import line_plot


def test_page_shows_clips_pictures_tables_and_curve(tmp_path: Path) -> None:
    cards = {
        "Clips": [Card("a <7>", (("", "a.mp4"),))],
        "Pictures": [Card("b", (("made", "b.png"), ("true", "c.png")))],
    }
    tables = {"Scores": [["group", "digit"], ["one digit", "97 %"]]}
    training = {"steps": [1, 2, 3], "loss_by_frame": {"frame 0": [3.0, 2.0, 1.0], "frame 1": [2.0, 1.5, 0.5]}}
    page = write_page(tmp_path, cards, tables, training, "made in 1 s").read_text()
    assert '<video src="a.mp4" autoplay loop muted playsinline>' in page
    assert page.count("<img") == 2 and "a &lt;7&gt;" in page and "<7>" not in page
    assert "<td>97 %</td>" in page and page.count("<polyline") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_page_without_a_training_record(tmp_path: Path) -> None:
    assert "<svg" not in write_page(tmp_path, {}, {}, None, "x").read_text()


def test_plot_stays_inside_its_frame() -> None:
    svg = line_plot([0, 5, 10], {"a": [1.0, 4.0, 2.0]}, x_label="step", y_label="loss")
    points = re.search(r'points="([^"]+)"', svg)
    assert points
    for pair in points.group(1).split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 680 and 0 <= y <= 300


def test_constant_line_is_drawn() -> None:
    assert "nan" not in line_plot([0, 1], {"a": [2.0, 2.0]}, x_label="x", y_label="y")


def test_plot_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        line_plot([0], {"a": [1.0]}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="'a' has 1 points, x has 2"):
        line_plot([0, 1], {"a": [1.0]}, x_label="x", y_label="y")
