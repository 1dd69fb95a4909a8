"""Vocabulary: which id means what in a sequence of the original's format (text, headers, frames of visual codes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import torch

from .positions import checked_strides
from .segments import checked_int

_SPECIAL = ("bos", "image_start", "image_end", "newline", "video_start", "video_end", "mask", "sep")


@dataclass(frozen=True)
class Vocabulary:
    """Token ids. The defaults are those of the released Lumos-1 models (129 536 ids).

    bos (also padding), image_start, image_end, newline, video_start, video_end, mask, sep: special ids, all distinct.
    size_zero: id of the number 0; number n has id size_zero + n for n < number_tokens, unless that id has another meaning
    (special or visual): such a number does not exist.
    size_unit: pixels that one unit of the two size tokens of a frame stands for.
    visual_begin, visual_size: the visual codes 0..visual_size-1 have ids from visual_begin on.
    strides: pixels per latent step along time, height, width; size_unit is a multiple of the last two.

    Raises TypeError or ValueError naming the field.
    """

    bos: int = 0
    image_start: int = 8197
    image_end: int = 8196
    newline: int = 8803
    video_start: int = 9004
    video_end: int = 9005
    mask: int = 9003
    sep: int = 8710
    size_zero: int = 8804
    size_unit: int = 32
    visual_begin: int = 65536
    visual_size: int = 64000
    strides: tuple[int, int, int] = (4, 8, 8)
    number_tokens: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "strides":
                continue
            minimum = 1 if field.name in ("size_unit", "visual_size", "number_tokens") else 0
            value = checked_int(f"Vocabulary.{field.name}", getattr(self, field.name), minimum)
            object.__setattr__(self, field.name, value)
        object.__setattr__(self, "strides", checked_strides(self.strides))
        owner: dict[int, str] = {}
        for name in _SPECIAL:
            token = getattr(self, name)
            if token in owner:
                raise ValueError(f"Vocabulary.{name} and Vocabulary.{owner[token]} are both {token}; they must differ")
            if self.visual_begin <= token < self.visual_end:
                raise ValueError(
                    f"Vocabulary.{name} is {token}, inside the visual ids {self.visual_begin}..{self.visual_end - 1}"
                )
            owner[token] = name
        for axis, stride in (("height", self.strides[1]), ("width", self.strides[2])):
            if self.size_unit % stride:
                raise ValueError(f"Vocabulary.size_unit {self.size_unit} is no multiple of the {axis} stride {stride}")

    @property
    def visual_end(self) -> int:
        """One past the last visual id."""
        return self.visual_begin + self.visual_size

    def is_number(self, token: int) -> bool:
        """Whether `token` is the id of a number."""
        return (
            self.size_zero <= token < self.size_zero + self.number_tokens
            and not self.visual_begin <= token < self.visual_end
            and all(token != getattr(self, name) for name in _SPECIAL)
        )

    def number(self, n: int) -> int:
        """Id of the number `n` (a size unit, seconds, frames per second). ValueError where it has none."""
        n = checked_int("n", n, 0, self.number_tokens - 1)
        token = self.size_zero + n
        if not self.is_number(token):
            raise ValueError(f"n {n} has no token: its id {token} has another meaning in this vocabulary")
        return token

    @overload
    def visual(self, code: torch.Tensor) -> torch.Tensor: ...
    @overload
    def visual(self, code: int) -> int: ...
    def visual(self, code: int | torch.Tensor) -> int | torch.Tensor:
        """Id (or ids, for an integer tensor) of visual code(s). ValueError outside 0..visual_size-1."""
        if not isinstance(code, torch.Tensor):
            return self.visual_begin + checked_int("code", code, 0, self.visual_size - 1)
        if code.is_floating_point() or code.is_complex() or code.dtype == torch.bool:
            raise TypeError(f"code must be an integer tensor, got {code.dtype}")
        if code.numel() and not 0 <= int(code.min()) <= int(code.max()) < self.visual_size:
            raise ValueError(
                f"code must be in 0..{self.visual_size - 1}, got values {int(code.min())}..{int(code.max())}"
            )
        return code.long() + self.visual_begin

    def is_visual(self, tokens: Any) -> Any:
        """Whether ids are visual codes: bool tensor or array of the same shape, bool for an int."""
        return (tokens >= self.visual_begin) & (tokens < self.visual_end)

    def frame_header(self, height: int, width: int) -> list[int]:
        """The three ids before a frame of `height` x `width` latent rows and columns. ValueError where no size token fits."""
        sizes = []
        for name, cells, stride in (("height", height, self.strides[1]), ("width", width, self.strides[2])):
            pixels = checked_int(name, cells, 1) * stride
            if pixels % self.size_unit:
                raise ValueError(
                    f"{name} {cells} is {pixels} pixels; a frame's {name} is a multiple of "
                    f"{self.size_unit // stride} latent cells ({self.size_unit} pixels)"
                )
            sizes.append(self.number(pixels // self.size_unit))
        return [self.image_start, *sizes]

    def video_header(self, duration: int, fps: int) -> list[int]:
        """The three ids that begin a video of `duration` seconds at `fps` frames per second."""
        return [self.video_start, self.number(duration), self.number(fps)]

    def to_dict(self) -> dict[str, Any]:
        """Plain ints and one list, for JSON."""
        return {**asdict(self), "strides": list(self.strides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`. Absent fields take the defaults; ValueError on a key that is no field."""
        if not isinstance(values, Mapping):
            raise TypeError(f"values must be a mapping, got {type(values).__name__}")
        unknown = sorted(set(values) - {field.name for field in fields(cls)}, key=str)
        if unknown:
            raise ValueError(f"values: {unknown[0]!r} is no field of Vocabulary")
        return cls(**values)
