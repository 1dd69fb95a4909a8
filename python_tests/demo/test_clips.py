"""The demo as a whole, with the shipped model, but for its evaluation."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from PIL import Image

from lumos_engine.cli import demo


def test_demo_writes_a_page_and_all_that_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(tmp_path / "page"), "--no-evaluate"]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "index.html" in capsys.readouterr().out
    media = sorted(path for path in (tmp_path / "page").iterdir() if path.suffix != ".html")
    assert len([path for path in media if path.suffix == ".mp4"]) == 6 + 2 * 2 + 2
    assert len([path for path in media if path.suffix == ".png"]) == 2
    for path in media:
        assert f'"{path.name}"' in page
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size == (192, 192)
            continue
        with av.open(str(path)) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == 13
    assert "Stored evaluation, 256 prompts" in page and page.count("<polyline") == 4
