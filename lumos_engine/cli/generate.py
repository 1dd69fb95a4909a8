"""``lumos generate``: prompts, pictures and clips to a video or image file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from ..diffusion.generator import StepCallback

SUFFIXES = (".mp4", ".gif", ".png")
LEAST_SIDE = 256  # pixels: smaller clips are enlarged by whole factors to about this, unless --scale says otherwise


@dataclass
class Generate:
    """Generate a video (or, with --num-frames 1, an image) from a prompt.

    Options that are not given take the model's defaults.
    """

    prompts: tyro.conf.Positional[tuple[str, ...]]
    """what to show; several prompts give several files, name-0.mp4, name-1.mp4 ..."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.mp4")
    """file to write: .mp4, .gif or .png"""
    model: Path | None = None
    """folder of a model; without it the one that comes with the package"""
    image: Path | None = None
    """picture that becomes the first frame"""
    video: Path | None = None
    """clip to continue"""
    given_frames: int | None = None
    """use only the first so many frames of --video"""
    num_frames: int | None = None
    """frames of the result, given ones included; 1 makes an image"""
    height: int | None = None
    """pixels"""
    width: int | None = None
    """pixels"""
    fps: int | None = None
    """frames per second"""
    steps: int | None = None
    """denoising steps per latent frame"""
    guidance_scale: float | None = None
    """weight of the prompt; 1 runs without guidance"""
    temperature: float | None = None
    """of the noise that decides what is re-masked"""
    sampling_temperature: float | None = None
    """of the softmax that codes are drawn from; 0 takes the most probable"""
    history: Literal["mask", "drop", "keep"] | None = None
    """what later frames see of finished ones"""
    history_mask_ratio: float | None = None
    """share of a finished frame that mask and drop hide"""
    window_frames: int | None = None
    """latent frames that the next one sees; with it memory does not grow with the clip"""
    sink_frames: int = 0
    """first latent frames that stay visible beside the window"""
    seed: int | None = None
    """repeats a result; drawn and printed if not given"""
    num_samples: int = 1
    """clips per prompt"""
    mode: Literal["default", "official"] = "default"
    """official reproduces the quirks of the original's inference code"""
    scale: int | None = None
    """enlarge pixels by a whole factor when saving; by default small clips to about 256 pixels"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """no progress bar, no messages"""

    def run(self) -> int:
        """Generate and save; returns the exit code 0. Raises what the pipeline raises."""
        if self.out.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--out must end in {', '.join(SUFFIXES)}, got {str(self.out)!r}")
        if not self.out.absolute().parent.is_dir():
            raise FileNotFoundError(f"no such folder: {self.out.absolute().parent}")
        if self.scale is not None and self.scale < 1:
            raise ValueError(f"--scale must be a whole number of at least 1, got {self.scale}")
        if not self.prompts:
            raise ValueError('say what to show: lumos generate "a 7 moving right" -o out.mp4')
        from ..pipeline import LumosPipeline

        pipeline = LumosPipeline.from_pretrained(self.model)
        with _progress(self.quiet) as callback:
            result = pipeline(
                list(self.prompts),
                image=self.image,
                video=self.video,
                given_frames=self.given_frames,
                num_frames=self.num_frames,
                height=self.height,
                width=self.width,
                fps=self.fps,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                temperature=self.temperature,
                sampling_temperature=self.sampling_temperature,
                history=self.history,
                history_mask_ratio=self.history_mask_ratio,
                window_frames=self.window_frames,
                sink_frames=self.sink_frames,
                seed=self.seed,
                num_samples=self.num_samples,
                mode=self.mode,
                callback=callback,
            )
        scale = self.scale or max(1, LEAST_SIDE // min(result.frames.shape[2:4]))
        paths = result.save(self.out, scale=scale)
        if not self.quiet:
            clips, frames, height, width = result.frames.shape[:4]
            print(
                f"{', '.join(map(str, paths))}: {clips} x {frames} frames of {width}x{height}, seed {result.seed}, "
                f"{result.timings['total']:.1f} s",
                file=sys.stderr,
            )
        return 0


@contextmanager
def _progress(quiet: bool) -> Iterator[StepCallback | None]:
    """A bar over latent frames x steps on stderr; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ..diffusion.generator import StepReport

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("generating", total=None)

        def report(step: StepReport) -> None:
            progress.update(
                task,
                description=f"frame {step.frame + 1}/{step.num_frames}",
                total=step.num_frames * step.num_steps,
                completed=step.frame * step.num_steps + step.step + 1,
            )

        yield report


def main(argv: Sequence[str]) -> int:
    """``lumos generate`` with these arguments; returns the exit code."""
    return tyro.cli(Generate, args=list(argv), prog="lumos generate").run()
