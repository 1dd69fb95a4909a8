"""One call of an operation: what a property runs, and what a failure shows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..kv_cache import PagedKeys
from ..layout import Frame, LayoutStep, SequenceLayout, Text

_MAX_ROWS = 16  # of integers that a description prints


@dataclass(frozen=True, repr=False)
class Case:
    """One generated call.

    Attributes:
        arguments: positional arguments by name, in the order of the signature.
        options: keyword arguments.
        grads: upstream gradient of each differentiable result, by its name.
    """

    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)

    def with_arguments(self, **arguments: Any) -> Case:
        """The same call with some arguments replaced."""
        return replace(self, arguments={**self.arguments, **arguments})

    def in_float64(self, names: Collection[str]) -> Case:
        """The same call with the arguments ``names`` in fp64."""
        return self.with_arguments(**{name: self.arguments[name].double() for name in names})

    def __repr__(self) -> str:
        lines = [f"{name}: {describe(value)}" for name, value in self.arguments.items()]
        lines += [f"{name}={value}" for name, value in self.options.items() if value is not None]
        return "\n".join(lines)


def describe(value: Any) -> str:
    """A layout by its segments, a tensor by dtype, shape and strides."""
    if isinstance(value, SequenceLayout):
        return _describe_layout(value)
    if isinstance(value, Tensor):
        order = "" if value.is_contiguous() else f", strides {value.stride()}"
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{order}"
    if isinstance(value, LayoutStep):
        ranges = (f"{s}[{b}:{e}]" for s, b, e in zip(value.sequences, value.begin, value.end, strict=True))
        return f"sequences {', '.join(ranges)} of {_describe_layout(value.layout)}"
    if isinstance(value, PagedKeys):
        return f"{len(value.tiles)} key tiles"
    return repr(value)


def _describe_layout(layout: SequenceLayout) -> str:
    rows = (f"[{', '.join(map(_segment, row))}]" for row in layout.sequences)
    text = f"[{', '.join(rows)}]"
    plain = SequenceLayout.from_segments(layout.sequences, strides=layout.strides)
    if not torch.equal(plain.intervals, layout.intervals):
        text += f", intervals {_rows(layout.intervals)}"
    if layout.hidden is not None:
        text += f", hidden {_rows(layout.hidden.nonzero()[:, 0])}"
    return text


def _segment(segment: Text | Frame) -> str:
    if isinstance(segment, Text):
        return f"Text({segment.num_tokens})"
    extra = [f"{name}={getattr(segment, name)}" for name in ("newlines", "header", "footer") if getattr(segment, name)]
    return f"Frame({', '.join([str(segment.height), str(segment.width), *extra])})"


def _rows(values: Tensor) -> str:
    more = f" and {len(values) - _MAX_ROWS} more" if len(values) > _MAX_ROWS else ""
    return f"{values[:_MAX_ROWS].tolist()}{more}"
