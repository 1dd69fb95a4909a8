"""Write the demo's ``index.html``: plain HTML and inline SVG, no script, readable from a file URL."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.atomic import write_bytes_atomic
from .clips import Card
from .plot import line_plot

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#0f172a;margin:2rem auto;max-width:1280px;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}p{color:#475569;margin:.3rem 0 1rem;max-width:75ch}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:1rem}
.tables{display:flex;flex-wrap:wrap;gap:0 2.5rem}
figure{margin:0;border:1px solid #e2e8f0;border-radius:8px;padding:.6rem}
figure video,figure img{width:100%;image-rendering:pixelated;border-radius:4px;background:#000}
.pair{display:flex;gap:.4rem}.pair>div{flex:1;font-size:.75rem;color:#475569;text-align:center}
figcaption{font-size:.85rem;margin-top:.4rem}
table{border-collapse:collapse;font-size:.78rem}td,th{padding:.2rem .5rem;border-bottom:1px solid #e2e8f0;text-align:right}
td:first-child,th:first-child{text-align:left}svg{max-width:680px;font-size:11px}
"""


def _media(name: str) -> str:
    source = html.escape(name, quote=True)
    if name.endswith(".png"):
        return f'<img src="{source}" alt="">'
    return f'<video src="{source}" autoplay loop muted playsinline></video>'


def _figure(card: Card) -> str:
    media = "".join(f"<div>{_media(name)}{html.escape(label)}</div>" for label, name in card.media)
    return f'<figure><div class="pair">{media}</div><figcaption>{html.escape(card.caption)}</figcaption></figure>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def write_page(
    folder: Path,
    cards: Mapping[str, Sequence[Card]],
    tables: Mapping[str, Sequence[Sequence[str]]],
    training: Mapping[str, Any] | None,
    footer: str,
) -> Path:
    """Write ``folder/index.html`` and return its path.

    Args:
        cards: section title -> cards in order; their media lie in ``folder``.
        tables: title -> rows of cells, the first row being the head.
        training: ``{"steps": [...], "loss_by_frame": {"frame 0": [...], ...}}`` of the shipped model's training, or None.
        footer: one line under the page.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>lumos_engine demo</title>",
        f"<style>{STYLE}</style>",
    ]
    parts.append(
        "<h1>lumos_engine</h1><p>Generated on this machine by the model inside the package, with its default settings.</p>"
    )
    for title, figures in cards.items():
        parts.append(f'<h2>{html.escape(title)}</h2><div class="grid">{"".join(map(_figure, figures))}</div>')
    columns = [f"<div><h2>{html.escape(title)}</h2>{_table(rows)}</div>" for title, rows in tables.items()]
    parts.append(f'<div class="tables">{"".join(columns)}</div>')
    if training:
        plot = line_plot(
            training["steps"],
            training["loss_by_frame"],
            x_label="training step",
            y_label="cross-entropy by latent frame",
        )
        parts.append(f"<h2>Training loss by latent frame</h2>{plot}")
    parts.append(f"<p>{html.escape(footer)}</p></html>")
    path = folder / "index.html"
    write_bytes_atomic(path, "\n".join(parts).encode())
    return path
