"""Frames to codes and back with a trained :class:`~lumos_engine.tokenizers.autoencoder.VisualAutoencoder`.

Both directions work latent frame by latent frame, in float32. So the codes of a latent frame do not depend on later frames in
any bit, and decoding a stream gives the bits of decoding the whole clip.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io.atomic import write_json_atomic
from ..io.checkpoint import CheckpointError, load_safetensors, read_header, save_safetensors
from ..io.json_file import read_json_object
from .autoencoder import VisualAutoencoder, VisualTokenizerConfig

__all__ = ["DecoderStream", "VisualTokenizer"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MODEL_TYPE = "lumos_visual_tokenizer"
_LUMA = (299, 587, 114)  # ITU-R BT.601, in thousandths: grey of equal channels is that value exactly


class VisualTokenizer:
    """Causal tokenizer of images and videos.

    A clip of ``1 + t * n`` frames, each of whole blocks of ``compression = (t, rows, columns)`` pixels, becomes ``1 + n`` latent
    frames of ``height / rows`` x ``width / columns`` codes.
    """

    def __init__(self, model: VisualAutoencoder) -> None:
        self.model = model.eval()

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> VisualTokenizer:
        """Load ``config.json`` and ``model.safetensors`` of ``folder``; weights of any float type are used as float32.

        Raises:
            FileNotFoundError: one of the two files is absent.
            ValueError: the files are damaged, or do not fit each other.
        """
        folder = Path(folder)
        path = folder / CONFIG_NAME
        values = read_json_object(path)
        try:
            if values.pop("model_type", None) != MODEL_TYPE:
                raise ValueError(f"model_type must be {MODEL_TYPE!r}")
            config = VisualTokenizerConfig.from_dict(values)
        except ValueError as error:
            raise CheckpointError(f"{path} is not the configuration of a visual tokenizer: {error}") from None
        with torch.device("meta"):  # no memory before the weights are known to be of these sizes
            expected = VisualAutoencoder(config).state_dict()
        header = read_header(folder / WEIGHTS_NAME).tensors
        for name in sorted(set(expected) | set(header)):
            found, wanted = (list(d[name].shape) if name in d else "absent" for d in (header, expected))
            if found != wanted:
                raise CheckpointError(
                    f"{folder / WEIGHTS_NAME}: tensor {name!r} is {found}, the configuration needs {wanted}"
                )
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten; nobody's generator should move
            model = VisualAutoencoder(config)
        model.load_state_dict(load_safetensors(folder / WEIGHTS_NAME, dtype=torch.float32))
        return cls(model.to(device))

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write ``model.safetensors`` (weights as ``dtype``) and ``config.json``, each whole or not at all. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_safetensors(folder / WEIGHTS_NAME, {k: v.to(dtype) for k, v in self.model.state_dict().items()})
        write_json_atomic(folder / CONFIG_NAME, {"model_type": MODEL_TYPE, **self.config.to_dict()})

    @property
    def config(self) -> VisualTokenizerConfig:
        return self.model.config

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels to one code."""
        return self.config.compression

    @property
    def levels(self) -> tuple[int, ...]:
        return self.config.levels

    @property
    def num_codes(self) -> int:
        return self.config.num_codes

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> VisualTokenizer:
        """Move the weights; returns the tokenizer itself."""
        self.model.to(device)
        return self

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip. Raises ValueError naming the nearest sizes that are allowed."""
        return self.config.latent_shape(num_frames, height, width)

    def encode(self, frames: Tensor | np.ndarray) -> Tensor:
        """Codes int64 ``[latent_T, h, w]`` of one clip.

        Args:
            frames: float ``[T, C, H, W]`` in ``[-1, 1]`` with the tokenizer's channels, or uint8 ``[T, H, W]`` or
                ``[T, H, W, 1 | 3]`` (grey and RGB are converted into each other as needed).

        Raises:
            TypeError: neither floating point nor uint8.
            ValueError: a shape that does not fit, or a size that is not a whole number of blocks.
        """
        return self.encode_batch(torch.as_tensor(frames)[None])[0]

    @torch.inference_mode()
    def encode_batch(self, frames: Tensor | np.ndarray) -> Tensor:
        """:meth:`encode` of clips of one size, ``[B, ...]``; codes int64 ``[B, latent_T, h, w]``.

        The number of clips in a call may move a value by a rounding error, hence rarely a code by one level.
        """
        prepared = self._prepare(torch.as_tensor(frames))
        return torch.stack(list(self.model.encode_steps(prepared)), dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Frames uint8 ``[1 + t * (latent_T - 1), H, W, 3]`` of codes ``[latent_T, h, w]``; grey has three equal channels.

        Raises:
            TypeError: codes are not integers.
            ValueError: not three dimensions, an empty one, or a code outside ``0..num_codes - 1``.
        """
        return self.decode_batch(_dimensions(codes, 3, "codes", "[latent_T, h, w]")[None])[0]

    def decode_batch(self, codes: Tensor) -> Tensor:
        """:meth:`decode` of ``[B, latent_T, h, w]``: uint8 ``[B, frames, H, W, 3]``."""
        _dimensions(codes, 4, "codes", "[B, latent_T, h, w]")
        past: list[Tensor] = []
        return torch.cat([self._decode_step(codes[:, k], past, first=k == 0) for k in range(codes.shape[1])], dim=1)

    def decoder_stream(self) -> DecoderStream:
        """A decoder to which latent frames are pushed one at a time."""
        return DecoderStream(self)

    def _prepare(self, frames: Tensor) -> Tensor:
        """Float32 ``[B, T, C, H, W]`` on the device of the weights."""
        if frames.dtype == torch.uint8:
            frames = frames[..., None] if frames.ndim == 4 else frames
            if frames.ndim != 5 or frames.shape[-1] not in (1, 3):
                raise ValueError(f"uint8 frames must be [T, H, W] or [T, H, W, 1 or 3], got {list(frames.shape[1:])}")
            if frames.shape[-1] == 3 and self.channels == 1:
                weights = torch.tensor(_LUMA, device=frames.device)
                frames = ((frames.to(torch.int64) * weights).sum(-1, keepdim=True) + 500) // 1000
            elif frames.shape[-1] != self.channels:
                frames = frames.expand(*frames.shape[:-1], self.channels)
            frames = frames.movedim(-1, 2).to(self.device, torch.float32) / 127.5 - 1
        elif frames.is_floating_point():
            if frames.ndim != 5 or frames.shape[2] != self.channels:
                raise ValueError(f"float frames must be [T, {self.channels}, H, W], got {list(frames.shape[1:])}")
            frames = frames.to(self.device, torch.float32)
        else:
            raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
        if not len(frames):
            raise ValueError("frames must hold at least one clip, got an empty batch")
        self.latent_shape(frames.shape[1], frames.shape[3], frames.shape[4])
        return frames.contiguous()

    @torch.inference_mode()
    def _decode_step(self, codes: Tensor, past: list[Tensor], first: bool) -> Tensor:
        """Uint8 ``[B, 1 or t, H, W, 3]`` of codes ``[B, h, w]``."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be integers, got {codes.dtype}")
        if not codes.numel():
            raise ValueError(f"codes must not be empty, got {list(codes.shape)} for a latent frame")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"codes must be in 0..{self.num_codes - 1}, got {low if low < 0 else high}")
        pixels = self.model.decode_step(codes.to(self.device), past)
        pixels = self.model.first_frame(pixels) if first else pixels
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.movedim(2, -1).expand(*pixels.shape[:2], *pixels.shape[3:], 3).contiguous()


class DecoderStream:
    """Decodes latent frames as they come; the frames have the bits of :meth:`VisualTokenizer.decode` of the whole clip."""

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        self._tokenizer = tokenizer
        self._past: list[Tensor] = []
        self._shape: torch.Size | None = None

    def push(self, codes: Tensor) -> Tensor:
        """Frames uint8 ``[1, H, W, 3]`` (first call) or ``[t, H, W, 3]`` of the next latent frame, codes ``[h, w]``.

        Raises:
            TypeError: codes are not integers.
            ValueError: not two dimensions, another size than before, or a code out of range.
        """
        _dimensions(codes, 2, "codes", "[h, w]")
        if self._shape is not None and codes.shape != self._shape:
            raise ValueError(
                f"codes must keep the size {list(self._shape)} of the first latent frame, got {list(codes.shape)}"
            )
        frames = self._tokenizer._decode_step(codes[None], self._past, first=self._shape is None)[0]
        self._shape = codes.shape
        return frames


def _dimensions(codes: Tensor, count: int, name: str, allowed: str) -> Tensor:
    if codes.ndim != count or not codes.numel():
        raise ValueError(f"{name} must be {allowed} and not empty, got {list(codes.shape)}")
    return codes
