"""Generation with a window of frames, and pages that several sequences hold together."""

from __future__ import annotations

import pytest
import torch

from lumos_engine.diffusion.canvas import TokenCanvas
from lumos_engine.diffusion.forward import CachedForward
from lumos_engine.diffusion.generator import FrameGenerator
from lumos_engine.diffusion.noise_source import PhiloxNoise
from lumos_engine.diffusion.settings import SamplingSettings
from lumos_engine.model import LumosModel

from .conftest import VOCABULARY
from .test_generator import FRAME, HEADER, HEIGHT, PROMPTS, WIDTH, generate

PAGE = 16
FRAME_PAGES = -(-FRAME // PAGE)


def forward(model: LumosModel, prompts: list[list[int]], num_frames: int, **window: int) -> CachedForward:
    canvas = TokenCanvas(
        prompts,
        HEADER,
        height=HEIGHT,
        width=WIDTH,
        num_frames=num_frames,
        vocabulary=VOCABULARY,
        guided=False,
        **window,
    )
    return CachedForward(model, canvas, dropped=None, first=0, clean_frames=0, page_size=PAGE, num_pages=None)


@torch.inference_mode()
def pages_by_frame(model: LumosModel, num_frames: int, **window: int) -> list[int]:
    """Pages in use after each frame was denoised once and committed."""
    running = forward(model, [PROMPTS[0]], num_frames, **window)
    found = []
    for frame in range(num_frames - 1):
        running.hidden(frame)
        running.commit(frame)
        found.append(running.cache.memory()["pages_used"])
    return found


@pytest.mark.parametrize(("window_frames", "sink_frames"), [(0, 0), (1, 0), (2, 1)])
def test_memory_is_flat_in_the_number_of_frames(model: LumosModel, window_frames: int, sink_frames: int) -> None:
    text_pages, kept = 1, window_frames + sink_frames
    used = pages_by_frame(model, 9, window_frames=window_frames, sink_frames=sink_frames)
    assert used == [text_pages + FRAME_PAGES * min(frame + 1, kept) for frame in range(8)]
    pools = {
        frames: forward(model, [PROMPTS[0]], frames, window_frames=window_frames, sink_frames=sink_frames).cache
        for frames in (5, 9)
    }
    assert pools[5].memory()["bytes_total"] == pools[9].memory()["bytes_total"]
    assert pages_by_frame(model, 9) == [text_pages + FRAME_PAGES * (frame + 1) for frame in range(8)]


@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
@pytest.mark.parametrize(("window_frames", "sink_frames"), [(0, 0), (1, 1), (2, 0)])
def test_cached_equals_recomputed_in_a_window(
    model: LumosModel, history: str, window_frames: int, sink_frames: int
) -> None:
    runs = [
        generate(
            model, PROMPTS, num_frames=6, use_cache=cached, history=history, window_frames=window_frames,
            sink_frames=sink_frames, page_size=PAGE,
        )
        for cached in (True, False)
    ]  # fmt: skip
    assert torch.equal(*runs)


def test_a_window_as_long_as_the_clip_changes_nothing(model: LumosModel) -> None:
    whole = generate(model, PROMPTS, num_frames=4)
    assert torch.equal(generate(model, PROMPTS, num_frames=4, window_frames=3), whole)
    assert not torch.equal(generate(model, PROMPTS, num_frames=4, window_frames=1), whole)


@torch.inference_mode()
def test_eight_samples_of_one_prompt_hold_its_pages_once(model: LumosModel) -> None:
    prompt = [0, *range(50, 80), 3]  # more than a page of text
    text_pages = -(-(len(prompt) + len(HEADER)) // PAGE)
    running = forward(model, [prompt] * 8, 3)
    assert running.cache.memory()["pages_used"] == text_pages
    running.hidden(0)
    assert running.cache.memory()["pages_used"] == text_pages + 8 * FRAME_PAGES
    assert running.query_tokens == (FRAME,) * 8 and running.cached_tokens == (len(prompt) + len(HEADER),) * 8


def test_samples_of_one_prompt_are_those_of_the_samples_alone(model: LumosModel) -> None:
    together = generate(model, [PROMPTS[0]] * 3, keys=[(0, sample) for sample in range(3)])
    for sample in range(3):
        alone = generate(model, [PROMPTS[0]], keys=[(0, sample)])
        assert torch.equal(together[sample], alone[0])


def test_equal_given_frames_are_held_once(model: LumosModel) -> None:
    settings = SamplingSettings(steps=1, guidance_scale=1.0, history="keep", temperature=0.0)
    given = torch.randint(0, 9, (1, 2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    pages = 1 + 2 * FRAME_PAGES + 4 * FRAME_PAGES  # text and two given frames once, the last frame of each sample
    generator = FrameGenerator(model, VOCABULARY, settings, page_size=PAGE, num_pages=pages)
    noise = PhiloxNoise([(0, sample) for sample in range(4)])
    frames = generator.frames(
        [PROMPTS[0]] * 4, HEADER, height=HEIGHT, width=WIDTH, num_frames=3, noise=noise, given=given
    )
    assert len(list(frames)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_frames": -1}, "window_frames must be an integer of at least 0, got -1"),
        ({"window_frames": 2.0}, "window_frames must be an integer of at least 0, got 2.0"),
        ({"window_frames": 1, "sink_frames": -1}, "sink_frames must be an integer of at least 0, got -1"),
        ({"sink_frames": 2}, "sink_frames is 2 without window_frames"),
    ],
)
def test_windows_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**settings)  # type: ignore[arg-type]
