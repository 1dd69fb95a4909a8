"""Clips with captions: the moving-digits world and folders of videos and images."""

from __future__ import annotations

import difflib
import inspect
import os
from pathlib import Path
from typing import Any

from .clip import Clip, ClipDataset
from .folder import FolderDataset
from .moving_digits import HELD_OUT, ClipBatch, DigitObject, MovingDigits
from .order import epoch_order, iterate_epoch

__all__ = [
    "HELD_OUT",
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "DigitObject",
    "FolderDataset",
    "MovingDigits",
    "epoch_order",
    "iterate_epoch",
    "open_dataset",
]


def open_dataset(name_or_folder: str | os.PathLike[str], **options: Any) -> MovingDigits | FolderDataset:
    """``"moving-digits"`` -> :class:`MovingDigits`, a folder -> :class:`FolderDataset`, with the options of that class.

    Raises:
        ValueError: neither that name nor a folder; an unknown option (names the nearest known one); see the classes.
    """
    arguments: tuple[Any, ...] = ()
    kind: type[MovingDigits | FolderDataset] = MovingDigits
    if str(name_or_folder).replace("_", "-") != "moving-digits":
        kind, arguments = FolderDataset, (name_or_folder,)
        if not Path(name_or_folder).is_dir():
            raise ValueError(f"data set {str(name_or_folder)!r} is neither 'moving-digits' nor a folder")
    known = [name for name in inspect.signature(kind).parameters if name != "folder"]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"data set {str(name_or_folder)!r} has no option {option!r}; {hint}")
    return kind(*arguments, **options)
