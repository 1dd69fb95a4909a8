"""The network of the visual tokenizer: a causal autoencoder over groups of frames with a quantised bottleneck.

Time is cut as in the Cosmos tokenizer: the first frame alone (repeated to fill its group), then groups of ``t`` frames. A
group is stacked on the channels, so that all convolutions are two-dimensional; what a group may know of the past is
the window of ``history`` groups before it, stacked on the channels too. Hence nothing can see a later group, and the state
of streaming is that window.

``encoder="patch"`` uses 1x1 kernels on space-to-depth blocks: a code depends on its own block of pixels alone, which keeps
blank regions on one code and makes codes equivariant to shifts by one block. ``encoder="conv"`` uses 3x3 kernels, for
footage where the context is worth it. There is no normalisation: statistics over a map would leak into every code.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fsq import FiniteScalarQuantizer

__all__ = ["VisualAutoencoder", "VisualTokenizerConfig"]

_MAX_SIZE, _MAX_WIDTH, _MAX_LEVELS = 1024, 1 << 16, 32


@dataclass(frozen=True)
class VisualTokenizerConfig:
    """Sizes of the visual tokenizer; the defaults are the shipped one.

    Attributes:
        levels: quantisation levels of each bottleneck channel; their product is the number of codes.
        compression: frames, rows and columns of pixels to one code.
        channels: 1 (grey) or 3 (RGB).
        encoder: ``"patch"`` (1x1 kernels, local codes) or ``"conv"`` (3x3 kernels).
        encoder_widths, encoder_blocks: channels and residual blocks of each stage, from fine to coarse; the resolution halves
            between stages, the first stage works on blocks of what remains of ``compression``.
        encoder_history: groups before the current one that the encoder sees (0 for ``"patch"``).
        code_width: channels to which a code is lifted before the decoder mixes positions.
        decoder_widths, decoder_blocks: as for the encoder, from coarse to fine.
        decoder_history: latent frames before the current one that the decoder sees.
    """

    levels: tuple[int, ...] = (8, 6, 5)
    compression: tuple[int, int, int] = (4, 4, 4)
    channels: int = 1
    encoder: str = "patch"
    encoder_widths: tuple[int, ...] = (192,)
    encoder_blocks: tuple[int, ...] = (2,)
    encoder_history: int = 0
    code_width: int = 32
    decoder_widths: tuple[int, ...] = (128,)
    decoder_blocks: tuple[int, ...] = (2,)
    decoder_history: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
                    raise ValueError(f"{field.name} must be a list of integers, got {reprlib.repr(value)}")
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            values = value if isinstance(value, tuple) else (value,)
            if field.name != "encoder" and any(isinstance(v, bool) or not isinstance(v, int) for v in values):
                raise ValueError(f"{field.name} must hold integers, got {reprlib.repr(value)}")
        if len(self.levels) > _MAX_LEVELS or math.prod(self.levels) >= 2**31:
            raise ValueError(
                f"levels must be at most {_MAX_LEVELS} with a product below 2^31, got {reprlib.repr(self.levels)}"
            )
        FiniteScalarQuantizer(self.levels)
        if len(self.compression) != 3 or min(self.compression) < 1:
            raise ValueError(
                f"compression must be three positive integers (frames, rows, columns), got {list(self.compression)}"
            )
        if max(self.compression) > _MAX_SIZE or max(self.encoder_history, self.decoder_history) > _MAX_SIZE:
            raise ValueError(f"compression and histories must be at most {_MAX_SIZE}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.encoder not in ("patch", "conv"):
            raise ValueError(f"encoder must be 'patch' or 'conv', got {self.encoder!r}")
        if self.encoder == "patch" and self.encoder_history != 0:
            raise ValueError(f"encoder_history must be 0 with encoder 'patch', got {self.encoder_history}")
        if min(self.encoder_history, self.decoder_history) < 0 or self.code_width < 1:
            raise ValueError("encoder_history and decoder_history must be 0 or more, code_width 1 or more")
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks")
            if (widths and max((*widths, self.code_width)) > _MAX_WIDTH) or sum(blocks) > _MAX_SIZE:
                raise ValueError(
                    f"{side}_widths and code_width must be at most {_MAX_WIDTH}, {side}_blocks add up to {_MAX_SIZE} or less"
                )
            if not widths or len(widths) != len(blocks) or min(widths) < 1 or min(blocks) < 0:
                raise ValueError(
                    f"{side}_widths and {side}_blocks must name the same number of stages, widths 1 or more and blocks 0 or more, "
                    f"got {list(widths)} and {list(blocks)}"
                )
            factor = 2 ** (len(widths) - 1)
            if self.compression[1] % factor or self.compression[2] % factor:
                raise ValueError(
                    f"{side}_widths of {len(widths)} stages halve the resolution {len(widths) - 1} times: compression "
                    f"{list(self.compression)} must be divisible by {factor} in rows and columns"
                )

    @property
    def num_codes(self) -> int:
        """Product of the levels."""
        return math.prod(self.levels)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip. Raises ValueError naming the nearest sizes that are allowed."""
        time, rows, columns = self.compression
        for name, value, unit in (("height", height, rows), ("width", width, columns)):
            if value < unit or value % unit:
                raise ValueError(
                    f"{name} must be a positive multiple of {unit}, got {value}; nearest: {_nearest(value, unit, unit)}"
                )
        if num_frames < 1 or (num_frames - 1) % time:
            raise ValueError(
                f"num_frames must be 1 + {time} * n, got {num_frames}; nearest: {_nearest(num_frames, time, 1)}"
            )
        return 1 + (num_frames - 1) // time, height // rows, width // columns

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, the inverse of :meth:`from_dict`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VisualTokenizerConfig:
        """Raises ValueError naming keys that do not exist or values that do not fit."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown key of the visual tokenizer's configuration: {reprlib.repr(unknown[0])}")
        return cls(**values)


class VisualAutoencoder(nn.Module):
    """Frames float ``[batch, frames, channels, height, width]`` in ``[-1, 1]`` to bottleneck values and back."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FiniteScalarQuantizer(config.levels)
        time, rows, columns = config.compression
        depth = len(config.levels)
        kernel = 1 if config.encoder == "patch" else 3
        fine = 2 ** (len(config.encoder_widths) - 1)
        self._encoder_patch = (rows // fine, columns // fine)
        fine = 2 ** (len(config.decoder_widths) - 1)
        self._decoder_patch = (rows // fine, columns // fine)

        pixels = time * config.channels
        inputs = (1 + config.encoder_history) * pixels * math.prod(self._encoder_patch)
        encoder: list[nn.Module] = [_conv(inputs, config.encoder_widths[0], kernel)]
        for stage, (width, blocks) in enumerate(zip(config.encoder_widths, config.encoder_blocks, strict=True)):
            if stage:
                encoder += [_SpaceToDepth(2, 2), _conv(4 * config.encoder_widths[stage - 1], width, 1)]
            encoder += [_ResidualBlock(width, kernel) for _ in range(blocks)]
        encoder += [nn.SiLU(), _conv(config.encoder_widths[-1], depth, 1)]
        self.encoder = nn.Sequential(*encoder)

        first = config.decoder_widths[0]
        self.lift = nn.Sequential(_conv(depth, first, 1), nn.SiLU(), _conv(first, config.code_width, 1))
        decoder: list[nn.Module] = [_conv((1 + config.decoder_history) * config.code_width, first, 3)]
        for stage, (width, blocks) in enumerate(zip(config.decoder_widths, config.decoder_blocks, strict=True)):
            if stage:
                decoder += [_conv(config.decoder_widths[stage - 1], 4 * width, 1), _DepthToSpace(2, 2)]
            decoder += [_ResidualBlock(width, 3) for _ in range(blocks)]
        decoder += [nn.SiLU(), _conv(config.decoder_widths[-1], pixels * math.prod(self._decoder_patch), 1)]
        self.decoder = nn.Sequential(*decoder)

    def group(self, frames: Tensor) -> Tensor:
        """``[batch, 1 + t * n, channels, H, W]`` to ``[batch, 1 + n, t * channels, H, W]``; the first frame fills its group."""
        time = self.config.compression[0]
        batch, _, channels, height, width = frames.shape
        frames = torch.cat([frames[:, :1].expand(-1, time - 1, -1, -1, -1), frames], dim=1)
        return frames.reshape(batch, -1, time * channels, height, width)

    def encode_group(self, window: Tensor) -> Tensor:
        """Bottleneck values ``[n, len(levels), h, w]`` of ``[n, (1 + encoder_history) * t * channels, H, W]``, oldest group first."""
        return self.encoder(_space_to_depth(window, *self._encoder_patch))

    def decode_group(self, window: Tensor) -> Tensor:
        """Pixels ``[n, t, channels, H, W]`` of lifted codes ``[n, (1 + decoder_history) * code_width, h, w]``, oldest first."""
        pixels = _depth_to_space(self.decoder(window), *self._decoder_patch)
        return pixels.unflatten(1, (self.config.compression[0], self.config.channels))

    @staticmethod
    def first_frame(pixels: Tensor) -> Tensor:
        """The single frame ``[n, 1, channels, H, W]`` of the first group's ``[n, t, channels, H, W]``: the mean of its copies."""
        return pixels.mean(dim=1, keepdim=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Reconstruct whole clips in one pass, for training; shape as the input."""
        groups = self.group(frames)
        batch, count = groups.shape[:2]
        z = self.encode_group(_windows(groups, self.config.encoder_history).flatten(0, 1))
        values = self.quantizer(z.movedim(1, -1).float()).movedim(-1, 1)
        lifted = self.lift(values).unflatten(0, (batch, count))
        pixels = self.decode_group(_windows(lifted, self.config.decoder_history).flatten(0, 1)).unflatten(
            0, (batch, count)
        )
        return torch.cat([self.first_frame(pixels[:, 0]), pixels[:, 1:].flatten(1, 2)], dim=1)

    def encode_steps(self, frames: Tensor) -> Iterator[Tensor]:
        """Codes int64 ``[batch, h, w]`` latent frame by latent frame: each is computed in the same shapes whatever follows."""
        groups = self.group(frames)
        padded = F.pad(groups, (0, 0) * 3 + (self.config.encoder_history, 0))
        for index in range(groups.shape[1]):
            window = padded[:, index : index + 1 + self.config.encoder_history].flatten(1, 2)
            yield self.quantizer.encode(self.encode_group(window.contiguous()).movedim(1, -1))

    def decode_step(self, codes: Tensor, past: list[Tensor]) -> Tensor:
        """Pixels ``[batch, t, channels, H, W]`` of codes ``[batch, h, w]``; ``past`` holds the lifted codes before, and is advanced."""
        lifted = self.lift(self.quantizer.decode(codes).movedim(-1, 1).contiguous())
        blank = torch.zeros_like(lifted)
        history = self.config.decoder_history
        window = [blank] * (history - len(past)) + past + [lifted]
        past[:] = window[1:] if history else []
        return self.decode_group(torch.cat(window, dim=1))


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width, kernel)
        self.conv2 = _conv(width, width, kernel)
        for (
            parameter
        ) in self.conv2.parameters():  # the block begins as the identity: depth without normalisation stays stable
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _space_to_depth(x: Tensor, rows: int, columns: int) -> Tensor:
    """``[n, c, H, W]`` to ``[n, c * rows * columns, H / rows, W / columns]``."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // rows, rows, width // columns, columns)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, channels * rows * columns, height // rows, width // columns)


def _depth_to_space(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`_space_to_depth`."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels // (rows * columns), rows, columns, height, width)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(n, channels // (rows * columns), height * rows, width * columns)


class _SpaceToDepth(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.block = (rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        return _space_to_depth(x, *self.block)


class _DepthToSpace(_SpaceToDepth):
    def forward(self, x: Tensor) -> Tensor:
        return _depth_to_space(x, *self.block)


def _windows(x: Tensor, history: int) -> Tensor:
    """``[batch, time, c, H, W]`` to ``[batch, time, (1 + history) * c, H, W]``: each step after the ``history`` before it."""
    if not history:
        return x
    padded = F.pad(x, (0, 0) * 3 + (history, 0))
    return torch.cat([padded[:, i : i + x.shape[1]] for i in range(history + 1)], dim=2)


def _nearest(value: int, unit: int, least: int) -> str:
    """The allowed sizes ``least + unit * n`` around ``value``."""
    below = max(least + (value - least) // unit * unit, least)
    return f"{below}" if value < least else f"{below} and {below + unit}"
