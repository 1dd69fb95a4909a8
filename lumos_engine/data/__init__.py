"""Clips with captions: the moving-digits world and folders of videos and images."""

from __future__ import annotations

from .clip import Clip, ClipDataset
from .moving_digits import HELD_OUT, ClipBatch, DigitObject, MovingDigits

__all__ = ["HELD_OUT", "Clip", "ClipBatch", "ClipDataset", "DigitObject", "MovingDigits"]
