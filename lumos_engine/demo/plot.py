"""A line plot as inline SVG: the page needs no plotting library and no script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

COLORS = ("#2563eb", "#d97706", "#059669", "#b91c1c", "#7c3aed", "#475569")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 680, 300, 52, 36, 12, 120


def line_plot(x: Sequence[float], lines: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> str:
    """``lines`` over ``x`` as an SVG element.

    Args:
        x: abscissae, increasing, at least two.
        lines: label -> ordinates, each as long as ``x``.
    Raises:
        ValueError: fewer than two points, or a line of another length.
    """
    if len(x) < 2:
        raise ValueError(f"x must hold at least 2 points, got {len(x)}")
    for label, values in lines.items():
        if len(values) != len(x):
            raise ValueError(f"line {label!r} has {len(values)} points, x has {len(x)}")
    everything = [value for values in lines.values() for value in values]
    low, high = min(everything), max(everything)
    high = high if high > low else low + 1.0

    def px(value: float) -> float:
        return LEFT + (value - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)} over {html.escape(x_label)}">'
    ]
    for i in range(5):
        y_value, x_value = low + (high - low) * i / 4, x[0] + (x[-1] - x[0]) * i / 4
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y_value):.1f}" y2="{py(y_value):.1f}" stroke="#e2e8f0"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{py(y_value) + 4:.1f}" text-anchor="end">{y_value:.2f}</text>')
        parts.append(
            f'<text x="{px(x_value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x_value:.0f}</text>'
        )
    for i, (label, values) in enumerate(lines.items()):
        color = COLORS[i % len(COLORS)]
        points = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, values, strict=True))
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{points}"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 14 + 18 * i}" fill="{color}">{html.escape(label)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text></svg>'
    )
    return "".join(parts)
