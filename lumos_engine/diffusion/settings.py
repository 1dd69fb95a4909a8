"""How a video is sampled: steps, guidance, temperatures, history; and the original's quirks, each with a switch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

HISTORY_MODES = ("mask", "drop", "keep")


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
    quirks: OfficialQuirks = field(default_factory=OfficialQuirks)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {self.steps!r}")
        if self.history not in HISTORY_MODES:
            raise ValueError(f"history must be one of {', '.join(HISTORY_MODES)}, got {self.history!r}")
        for name in ("temperature", "sampling_temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}")
        if self.guidance_scale is not None and not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(
                f"guidance_scale must be None or a finite number of at least 0, got {self.guidance_scale!r}"
            )
        if self.history != "keep" and not 0 < self.history_mask_ratio <= 1:
            raise ValueError(
                f"history_mask_ratio must be above 0 and at most 1, got {self.history_mask_ratio!r}; "
                f"history='keep' masks nothing"
            )

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch is needed."""
        return self.guidance_scale is not None and self.guidance_scale != 1
