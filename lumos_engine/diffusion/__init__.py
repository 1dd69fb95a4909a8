"""Discrete diffusion, frame by frame: schedule, noise, the frame loop, and what goes into and comes out of it."""

from .clip_shape import ClipShape
from .generator import FrameGenerator, StepReport
from .noise_source import NoiseSource, PhiloxNoise, ReplayNoise
from .result import GenerationResult
from .settings import OfficialQuirks, SamplingSettings

__all__ = [
    "ClipShape",
    "FrameGenerator",
    "GenerationResult",
    "NoiseSource",
    "OfficialQuirks",
    "PhiloxNoise",
    "ReplayNoise",
    "SamplingSettings",
    "StepReport",
]
