"""``lumos eval digits``: does the shipped world's model draw what the prompt says, and continue what it is shown?

Prompts are the captions of true clips of held-back digit images, so that the same scores of those clips and of their
tokenizer reconstructions stand beside the generated ones: what the readers of digits and motions, and the tokenizer,
leave to reach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.moving_digits import ClipBatch, MovingDigits
from .classifier import load_classifier
from .continuation import summarize_continuation
from .manifest import describe_run
from .scoring import METRICS, score_clips, summarize

if TYPE_CHECKING:
    from ..pipeline import LumosPipeline
    from ..tokenizers import VisualTokenizer

__all__ = ["GROUPS", "PromptGroup", "evaluate_digits", "prompt_clips", "table_rows"]

_PROMPT_SEED = 256
_CONTINUATION_SEED = 257
_RECONSTRUCTION_BATCH = 64


@dataclass(frozen=True)
class PromptGroup:
    """Prompts of one kind; ``share`` of all prompts of an evaluation."""

    name: str
    title: str
    num_objects: int
    pairs: str
    share: float


GROUPS = (
    PromptGroup("one_digit_seen", "one digit, seen pairs", 1, "seen", 128 / 256),
    PromptGroup("one_digit_unseen", "one digit, unseen pairs", 1, "unseen", 32 / 256),
    PromptGroup("two_digit_seen", "two digits, seen pairs", 2, "seen", 64 / 256),
    PromptGroup("two_digit_unseen", "two digits, unseen pairs", 2, "unseen", 32 / 256),
)
"""Of 256 prompts: 128, 32, 64, 32."""
# Clips to continue, as a share of the number of prompts.
_CONTINUED = {"one_digit_seen": 1 / 4, "two_digit_seen": 1 / 8}


def prompt_clips(num: int, *, num_frames: int = 13, height: int = 32, width: int = 32) -> dict[str, ClipBatch]:
    """The true clips whose captions are the prompts, by group. A smaller ``num`` takes the first prompts of each group.

    Raises:
        ValueError: ``num`` is below 1.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1 prompt, not {num}")
    exact = [num * group.share for group in GROUPS]
    counts = [int(value) for value in exact]
    for k in sorted(range(len(GROUPS)), key=lambda k: counts[k] - exact[k])[: num - sum(counts)]:
        counts[k] += 1
    size: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width}
    return {
        group.name: MovingDigits("test", _PROMPT_SEED, num_objects=group.num_objects, pairs=group.pairs, **size).batch(
            range(count)
        )
        for group, count in zip(GROUPS, counts, strict=True)
        if count
    }


def _continuation_clips(num: int, group: str, **size: Any) -> ClipBatch:
    """The first clips of the group's world in which something moves."""
    count = max(1, round(num * _CONTINUED[group]))
    num_objects = next(g.num_objects for g in GROUPS if g.name == group)
    world = MovingDigits("test", _CONTINUATION_SEED, num_objects=num_objects, **size)
    candidates = world.batch(range(2 * count + 20))
    moving = np.flatnonzero((candidates.motions > 0).any(axis=1))  # motion 0 is still, -1 is absent
    return world.batch(moving[:count])


def evaluate_digits(
    pipeline: LumosPipeline,
    num: int = 256,
    *,
    seed: int = 0,
    batch_size: int = 64,
    continuation: bool = True,
    options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep_clips: Callable[[str, np.ndarray, ClipBatch], None] | None = None,
) -> dict[str, Any]:
    """Generate one clip for each prompt, score them, and continue held-back clips from their first frame.

    Args:
        pipeline: its default number of frames and size are used.
        num: prompts (256 is the full evaluation); with ``continuation`` also num/4 one-digit and num/8 two-digit
            clips are continued.
        seed: of the noise; the result does not depend on ``batch_size``, as far as the pipeline's clips do not.
        options: further settings of the pipeline's calls (``steps``, ``guidance_scale``, ...).
        progress: called with (clips done, clips in all).
        keep_clips: called with (group, generated uint8 [N, T, H, W, C], true clips).

    Returns:
        Plain JSON types: ``num``, ``groups`` {name: {title, prompts, generated, reconstructed, true,
        share_of_reconstruction}}, ``continuation`` {name: see
        :func:`~lumos_engine.evals.continuation.summarize_continuation`}, ``metrics`` (what each counts), ``manifest``
        (what was run).

    Raises:
        ValueError: ``num`` or ``batch_size`` below 1; an option that the pipeline refuses.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    classifier = load_classifier()
    size = {name: int(pipeline.defaults[name]) for name in ("num_frames", "height", "width")}
    truth = prompt_clips(num, **size)
    continued = {name: _continuation_clips(num, name, **size) for name in _CONTINUED} if continuation else {}
    total = sum(len(clips.captions) for clips in (*truth.values(), *continued.values()))
    done = 0

    def generate(clips: ClipBatch, *, image: bool) -> np.ndarray:
        nonlocal done
        parts = []
        for begin, end in _chunks(len(clips.captions), batch_size):
            given = {"image": list(clips.frames[begin:end, 0])} if image else {}
            call = {"seed": seed, "first_sample": done, **given, **(options or {})}
            parts.append(np.asarray(pipeline(clips.captions[begin:end], **call).frames))
            done += end - begin
            if progress:
                progress(done, total)
        return np.concatenate(parts)

    groups = {}
    for group in GROUPS:
        if group.name not in truth:
            continue
        clips = truth[group.name]
        generated = generate(clips, image=False)
        if keep_clips:
            keep_clips(group.name, generated, clips)
        shown = {
            "generated": generated,
            "reconstructed": _reconstruct(pipeline.visual_tokenizer, clips.frames),
            "true": clips.frames,
        }
        scores = {name: summarize(score_clips(frames, clips.captions, classifier)) for name, frames in shown.items()}
        shares = {
            metric: _ratio(scores["generated"][metric]["share"], scores["reconstructed"][metric]["share"])
            for metric in METRICS
        }
        groups[group.name] = {
            "title": group.title,
            "prompts": len(clips.captions),
            **scores,
            "share_of_reconstruction": shares,
        }

    continuations = {}
    for name, clips in continued.items():
        generated = generate(clips, image=True)
        if keep_clips:
            keep_clips(f"continued_{name}", generated, clips)
        continuations[name] = summarize_continuation(
            generated, _reconstruct(pipeline.visual_tokenizer, clips.frames), clips.frames
        )

    prompts = [caption for clips in truth.values() for caption in clips.captions]
    return {
        "num": num,
        "groups": groups,
        "continuation": continuations,
        "metrics": METRICS,
        "manifest": {
            "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
            "groups": [asdict(group) for group in GROUPS],
            "seed": seed,
            "prompt_seed": _PROMPT_SEED,
            "continuation_seed": _CONTINUATION_SEED,
            "settings": {**pipeline.defaults, **(options or {})},
            **describe_run(
                {"model": pipeline.model, "visual_tokenizer": pipeline.visual_tokenizer, "classifier": classifier}
            ),
        },
    }


def table_rows(report: dict[str, Any]) -> list[list[str]]:
    """The report as a table of text, the first row being the head; the ceiling is the score of the reconstruction."""
    rows = [["", "", "generated", "reconstructed", "true", "of ceiling"]]
    for group in report["groups"].values():
        for metric in METRICS:
            cells = [
                _cell(group[name][metric], interval=name == "generated")
                for name in ("generated", "reconstructed", "true")
            ]
            share = group["share_of_reconstruction"][metric]
            title = f"{group['title']} ({group['prompts']})" if metric == next(iter(METRICS)) else ""
            rows.append([title, metric.removesuffix("_accuracy"), *cells, "" if share is None else f"{share:.0%}"])
    titles = {group.name: group.title for group in GROUPS}
    for name, found in report["continuation"].items():
        interval = "" if found["gain_low_db"] is None else f" [{found['gain_low_db']:.1f}, {found['gain_high_db']:.1f}]"
        title = f"continued from the first frame, {titles[name]} ({found['clips']})"
        made, ceiling = (f"{found[f'psnr_{kind}_db']:.1f} dB" for kind in ("generated", "reconstructed"))
        rows.append([title, "PSNR of the future", made, ceiling, "", ""])
        rows.append(["", "PSNR of repeating it", f"{found['psnr_repeated_db']:.1f} dB", "", "", ""])
        rows.append(["", "gain", f"{found['gain_db']:+.1f} dB{interval}", "", "", ""])
    return rows


def _cell(found: dict[str, Any], *, interval: bool) -> str:
    text = f"{100 * found['share']:.1f} %"
    return f"{text} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]" if interval else text


def _ratio(share: float, ceiling: float) -> float | None:
    return share / ceiling if ceiling else None


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, size):
        yield begin, min(count, begin + size)


def _reconstruct(tokenizer: VisualTokenizer, frames: np.ndarray) -> np.ndarray:
    """Encode and decode: uint8 [N, T, H, W, 3]."""
    parts: Sequence[np.ndarray] = [
        tokenizer.decode_batch(tokenizer.encode_batch(torch.from_numpy(frames[begin:end]))).cpu().numpy()
        for begin, end in _chunks(len(frames), _RECONSTRUCTION_BATCH)
    ]
    return np.concatenate(parts)
