"""How a video is sampled: steps, guidance, temperatures, history; and the original's quirks, each with a switch."""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

HISTORY_MODES = ("mask", "drop", "keep")


def _is_finite(value: Any) -> bool:
    """Whether ``value`` is a number from 0 to the largest that a float holds."""
    is_number = isinstance(value, Real)
    return is_number and 0 <= value <= sys.float_info.max


@dataclass(frozen=True)
class OfficialQuirks:
    """Behaviours of the original inference code that differ from its paper or from training. All off: ours.

    Attributes:
        compounding_temperature: the re-masking temperature is multiplied up over steps and never reset, so frames after
            the first generated one are re-masked by confidence alone.
        clean_given_frames: frames that the caller gives enter the history unmasked, although generated ones are masked.
        newlines_in_history: the history pattern also masks row ends. Otherwise row ends stay visible in the history as
            they do in the frame that is being generated.
    """

    compounding_temperature: bool = False
    clean_given_frames: bool = False
    newlines_in_history: bool = False

    @classmethod
    def all(cls) -> OfficialQuirks:
        """The original's behaviour."""
        return cls(True, True, True)


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the frame loop.

    Attributes:
        steps: denoising steps per frame.
        guidance_scale: g of ``g * (cond - uncond) + uncond``; None or 1 runs the conditional branch alone.
        temperature: initial scale of the Gumbel noise in re-masking (``T0``).
        sampling_temperature: temperature of the softmax that codes are drawn from; 0 takes the most probable code.
        history: what later frames see of a finished frame: ``mask`` (the pattern's tokens replaced by the mask id, all
            kept), ``drop`` (the same, masked tokens' keys are not kept) or ``keep`` (clean).
        history_mask_ratio: share of a frame's tokens that the pattern masks; unused with ``keep``.
        window_frames: a frame sees only as many latent frames right before it, and the ``sink_frames`` first ones; the cache
            forgets the others, so its memory does not grow with the clip. Prompt and header stay visible. None: all frames.
            The model's context still bounds the clip: positions count on.
        quirks: switches of the original's behaviour.

    Raises:
        ValueError: on construction, naming the field and what is allowed.
    """

    steps: int = 50
    guidance_scale: float | None = 15.0
    temperature: float = 1.0
    sampling_temperature: float = 1.0
    history: Literal["mask", "drop", "keep"] = "mask"
    history_mask_ratio: float = 0.7
    window_frames: int | None = None
    sink_frames: int = 0
    quirks: OfficialQuirks = field(default_factory=OfficialQuirks)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {reprlib.repr(self.steps)}")
        if self.history not in HISTORY_MODES:
            raise ValueError(f"history must be one of {', '.join(HISTORY_MODES)}, got {reprlib.repr(self.history)}")
        for name in ("temperature", "sampling_temperature"):
            if not _is_finite(getattr(self, name)):
                raise ValueError(
                    f"{name} must be a finite number of at least 0, got {reprlib.repr(getattr(self, name))}"
                )
        if self.guidance_scale is not None and not _is_finite(self.guidance_scale):
            raise ValueError(
                f"guidance_scale must be None or a finite number of at least 0, got {reprlib.repr(self.guidance_scale)}"
            )
        if self.history != "keep" and not (_is_finite(self.history_mask_ratio) and 0 < self.history_mask_ratio <= 1):
            raise ValueError(
                f"history_mask_ratio must be above 0 and at most 1, got {reprlib.repr(self.history_mask_ratio)}; "
                f"history='keep' masks nothing"
            )

        for name, value in (("window_frames", self.window_frames), ("sink_frames", self.sink_frames)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} must be an integer of at least 0, got {reprlib.repr(value)}")
        if self.sink_frames and self.window_frames is None:
            raise ValueError(f"sink_frames is {self.sink_frames} without window_frames: every frame is seen then")

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch is needed."""
        return self.guidance_scale is not None and self.guidance_scale != 1
