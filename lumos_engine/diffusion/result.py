"""What a pipeline call returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class GenerationResult:
    """Finished clips.

    Attributes:
        frames: uint8 [clips, num_frames, height, width, channels].
        tokens: codes int64 [clips, latent frames, latent height, latent width], 0 .. visual_size-1.
        prompts: the prompt of each clip.
        fps: frames per second.
        seed: the seed that repeats this result.
        timings: seconds: ``prepare`` (prompts, encoding given frames), ``denoise``, ``decode``, ``total``.
    """

    frames: np.ndarray
    tokens: Tensor
    prompts: tuple[str, ...]
    fps: int
    seed: int
    timings: dict[str, float]

    def save(self, path: str | Path, *, scale: int = 1) -> list[Path]:
        """Write the clips as ``.mp4``, ``.gif`` or (single frames) ``.png``; nothing is left half-written.

        One clip goes to ``path``; several go to ``name-0.suffix``, ``name-1.suffix`` ... beside it.

        Args:
            path: where to; the suffix chooses the format. A clip of several frames saved as ``.png`` becomes one
                picture of the frames side by side.
            scale: enlarge pixels by this whole factor.

        Returns:
            The paths written.

        Raises:
            ValueError: unknown suffix or scale. OSError: the folder cannot be written.
        """
        from ..io.video import save_video

        path = Path(path)
        paths = (
            [path]
            if len(self.frames) == 1
            else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(self.frames))]
        )
        for target, clip in zip(paths, self.frames, strict=True):
            save_video(clip, target, fps=self.fps, scale=scale)
        return paths
