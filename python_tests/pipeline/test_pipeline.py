"""Calls of the pipeline: tasks, streaming, reproducibility, defaults, bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lumos_engine.diffusion.settings import OfficialQuirks
from lumos_engine.kv_cache import CacheFull
from lumos_engine.model import LumosModel
from lumos_engine.pipeline import LumosPipeline

from .conftest import CAPTIONS, DEFAULTS, VOCABULARY, Parts


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_text_to_video(pipeline: LumosPipeline) -> None:
    result = pipeline(CAPTIONS[0], seed=3)
    assert result.frames.shape == (1, 9, 32, 32, 3) and result.frames.dtype == np.uint8
    assert (
        result.tokens.shape == (1, 3, 4, 4) and result.tokens.dtype == torch.int64 and not result.tokens.is_inference()
    )
    assert (result.seed, result.fps, result.prompts) == (3, 4, (CAPTIONS[0],))
    assert set(result.timings) == {"prepare", "denoise", "decode", "total"}
    np.testing.assert_array_equal(result.frames[0], pipeline.visual_tokenizer.decode(result.tokens[0]).numpy())


def test_text_to_image(pipeline: LumosPipeline) -> None:
    result = pipeline(CAPTIONS[0], num_frames=1, height=64, width=32, seed=0)
    assert result.frames.shape == (1, 1, 64, 32, 3)
    assert result.tokens.shape == (1, 1, 8, 4)


def test_prompt_in_the_header_and_the_branch_without_text(pipeline: LumosPipeline) -> None:
    """Ids of the call: prompt with size and rate, sep, then the header of duration and rate."""
    plan = pipeline.plan(CAPTIONS[0], num_frames=9, fps=4)
    ids = plan.prompt_ids[0]
    assert ids[0] == VOCABULARY.bos and ids[-1] == VOCABULARY.sep
    text = pipeline.text_tokenizer.decode(ids[1:-1])
    assert text.startswith(
        "Generate a video with a resolution of 32x32, consisting of 8 frames at 4 frames per second, "
    )
    assert text.endswith(f":\n {CAPTIONS[0]}")
    assert (plan.shape.duration, plan.shape.header_fps) == (2, 4)
    image = pipeline.plan(CAPTIONS[0], num_frames=1, fps=4)
    assert "consisting of 1 frames at 1 frames per second" in pipeline.text_tokenizer.decode(image.prompt_ids[0][1:-1])
    assert (image.shape.duration, image.shape.header_fps) == (1, 1)


@pytest.mark.parametrize(("num_frames", "header"), [(9, (2, 4)), (13, (3, 4)), (1, (1, 1))])
def test_the_header_states_duration_and_rate(
    pipeline: LumosPipeline, monkeypatch: pytest.MonkeyPatch, num_frames: int, header: tuple[int, int]
) -> None:
    from lumos_engine.diffusion.generator import FrameGenerator

    def frames(
        self: FrameGenerator, prompts: object, given_header: list[int], **arguments: object
    ) -> list[torch.Tensor]:
        assert given_header == VOCABULARY.video_header(*header)
        assert (arguments["height"], arguments["width"], arguments["num_frames"]) == (8, 4, 1 + (num_frames - 1) // 4)
        return [torch.zeros(1, 8, 4, dtype=torch.int64)] * arguments["num_frames"]

    monkeypatch.setattr(FrameGenerator, "frames", frames)
    assert pipeline(CAPTIONS[0], num_frames=num_frames, height=64, fps=4).frames.shape == (1, num_frames, 64, 32, 3)


def test_image_to_video_begins_with_the_image(pipeline: LumosPipeline, tmp_path: Path) -> None:
    from PIL import Image

    pixels = picture(0, 32, 32, 3)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    codes = pipeline.visual_tokenizer.encode(torch.from_numpy(pixels)[None])
    results = [
        pipeline(CAPTIONS[0], image=image, seed=1)
        for image in (
            pixels,
            torch.from_numpy(pixels),
            Image.fromarray(pixels),
            tmp_path / "first.png",
            str(tmp_path / "first.png"),
            [pixels],
        )
    ]
    for result in results:
        assert torch.equal(result.tokens[0, :1], codes)
        assert torch.equal(result.tokens, results[0].tokens)
    assert not torch.equal(results[0].tokens, pipeline(CAPTIONS[0], seed=1).tokens)


def test_pictures_are_resized_to_cover_the_clip(pipeline: LumosPipeline) -> None:
    from PIL import Image

    wide = np.zeros((64, 256, 3), dtype=np.uint8)
    wide[:, 96:160] = 255  # the centre square
    plan = pipeline.plan(CAPTIONS[0], image=Image.fromarray(wide))
    white = pipeline.visual_tokenizer.encode(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8))
    assert torch.equal(plan.given[0], white)


def test_grey_images_are_taken(pipeline: LumosPipeline) -> None:
    grey = picture(1, 32, 32)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    assert torch.equal(pipeline.plan("a", image=grey).given, pipeline.plan("a", image=rgb).given)
    assert torch.equal(pipeline.plan("a", image=grey[..., None]).given, pipeline.plan("a", image=rgb).given)


def test_continuation_begins_with_the_clip(pipeline: LumosPipeline, tmp_path: Path) -> None:
    clip = picture(2, 5, 32, 32, 3)
    codes = pipeline.visual_tokenizer.encode(torch.from_numpy(clip))
    assert codes.shape[0] == 2
    assert torch.equal(pipeline(CAPTIONS[0], video=clip).tokens[0, :2], codes)
    longer = np.concatenate([clip, picture(3, 8, 32, 32, 3)])
    assert torch.equal(pipeline(CAPTIONS[0], video=longer, given_frames=5).tokens[0, :2], codes)
    from lumos_engine.io.video import read_video, save_video

    save_video(longer, tmp_path / "clip.mp4", fps=4)
    frames = read_video(tmp_path / "clip.mp4").frames[:5]
    plan = pipeline.plan(CAPTIONS[0], video=tmp_path / "clip.mp4", given_frames=5)
    assert torch.equal(plan.given[0], pipeline.visual_tokenizer.encode(torch.from_numpy(frames)))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_frames": 1}, {"image": picture(0, 32, 32, 3)}, {"video": picture(0, 5, 32, 32), "history": "drop"}],
)
def test_streaming_equals_the_whole(pipeline: LumosPipeline, options: dict[str, object]) -> None:
    whole = pipeline(list(CAPTIONS), seed=2, **options).frames
    frames = list(pipeline.stream(list(CAPTIONS), seed=2, **options))
    assert all(frame.shape == (3, 32, 32, 3) and frame.dtype == np.uint8 for frame in frames)
    np.testing.assert_array_equal(np.stack(frames, axis=1), whole)


def test_streaming_yields_a_frame_before_the_next_is_begun(pipeline: LumosPipeline) -> None:
    seen: list[int] = []
    stream = pipeline.stream(CAPTIONS[0], callback=lambda report: seen.append(report.frame))
    assert not seen
    next(stream)
    assert set(seen) == {0}
    for _ in range(4):
        next(stream)
    assert set(seen) == {0, 1}
    stream.close()


def test_many_prompts_at_once_equal_each_alone(pipeline: LumosPipeline) -> None:
    images = [picture(i, 32, 32, 3) for i in range(3)]
    together = pipeline(list(CAPTIONS), image=images, seed=4)
    assert len({len(ids) for ids in pipeline.plan(list(CAPTIONS)).prompt_ids}) > 1
    for number, (caption, image) in enumerate(zip(CAPTIONS, images, strict=True)):
        alone = pipeline(caption, image=image, seed=4, first_sample=number)
        assert torch.equal(alone.tokens[0], together.tokens[number])
        np.testing.assert_array_equal(alone.frames[0], together.frames[number])


def test_several_samples_of_one_prompt(pipeline: LumosPipeline) -> None:
    result = pipeline(list(CAPTIONS[:2]), num_samples=2, seed=4)
    assert result.prompts == (CAPTIONS[0], CAPTIONS[0], CAPTIONS[1], CAPTIONS[1])
    assert not torch.equal(result.tokens[0], result.tokens[1])
    assert torch.equal(pipeline(CAPTIONS[0], num_samples=2, seed=4).tokens, result.tokens[:2])
    images = [picture(i, 32, 32, 3) for i in range(2)]
    continued = pipeline(list(CAPTIONS[:2]), image=images, num_samples=2, seed=4).tokens
    first = [pipeline.visual_tokenizer.encode(image[None])[0] for image in images]
    assert torch.equal(continued[:, 0], torch.stack([first[0], first[0], first[1], first[1]]))


def test_a_drawn_seed_repeats_the_result(pipeline: LumosPipeline) -> None:
    first = pipeline(CAPTIONS[0])
    assert torch.equal(first.tokens, pipeline(CAPTIONS[0], seed=first.seed).tokens)
    assert first.seed != pipeline(CAPTIONS[0]).seed


def test_official_mode_is_the_sum_of_its_switches(pipeline: LumosPipeline) -> None:
    options = {"image": picture(0, 32, 32, 3), "history": "mask", "seed": 1, "num_frames": 13, "steps": 4}
    quirks = {"": OfficialQuirks(), "all": OfficialQuirks.all()}
    quirks |= {field.name: OfficialQuirks(**{field.name: True}) for field in dataclasses.fields(OfficialQuirks)}
    reports: dict[str, list[float]] = {}
    tokens = {}
    for name, value in quirks.items():
        seen: list[tuple[float, torch.Tensor]] = []
        tokens[name] = pipeline(
            CAPTIONS[0],
            quirks=value,
            callback=lambda r, seen=seen: seen.append((r.temperature, r.confidence)),
            **options,
        ).tokens
        reports[name] = seen
    assert torch.equal(pipeline(CAPTIONS[0], mode="official", **options).tokens, tokens["all"])
    assert torch.equal(pipeline(CAPTIONS[0], **options).tokens, tokens[""])
    plain = reports.pop("")
    for name, seen in reports.items():
        same = len(seen) == len(plain) and all(
            a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(seen, plain, strict=True)
        )
        assert not same, name


def test_sampling_temperature_zero_is_argmax(pipeline: LumosPipeline) -> None:
    options = {"sampling_temperature": 0.0, "temperature": 0.0}
    assert torch.equal(pipeline(CAPTIONS[0], seed=0, **options).tokens, pipeline(CAPTIONS[0], seed=1, **options).tokens)


def test_save(pipeline: LumosPipeline, tmp_path: Path) -> None:
    from PIL import Image

    from lumos_engine.io.video import read_video

    result = pipeline(CAPTIONS[0], seed=0)
    assert result.save(tmp_path / "clip.mp4", scale=2) == [tmp_path / "clip.mp4"]
    video = read_video(tmp_path / "clip.mp4")
    assert video.frames.shape == (9, 64, 64, 3) and video.fps == 4
    result.save(tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.size == (32, 32)
    several = pipeline(list(CAPTIONS), num_frames=1, seed=0)
    assert several.save(tmp_path / "x.png") == [tmp_path / f"x-{i}.png" for i in range(3)]
    with Image.open(tmp_path / "x-1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), several.frames[1, 0])
    with pytest.raises(ValueError, match="suffix"):
        result.save(tmp_path / "clip.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.gif", "clip.mp4", "x-0.png", "x-1.png", "x-2.png"]


LONG = "word " * 300


@pytest.mark.parametrize(("prompt", "options", "error", "message"), [
    ("", {}, ValueError, "prompt must not be empty"),
    (" \n", {}, ValueError, "prompt must not be empty"),
    (["a", ""], {}, ValueError, "prompt must not be empty, but number 1 is"),
    ([], {}, ValueError, "at least one, got an empty list"),
    (["a", 7], {}, TypeError, "got int at place 1"),
    (LONG, {}, ValueError, r"the prompt must fit into \d+ tokens, got \d+"),
    ("a", {"num_frames": 61}, ValueError, "16 latent frames of 24 tokens do not fit the model's context of 256 tokens"),
    ("a", {"num_frames": 8}, ValueError, "nearest: 5 and 9"),
    ("a", {"height": 48}, ValueError, "height must be a multiple of 32"),
    ("a", {"fps": 99}, ValueError, "fps must be at most 31"),
    ("a", {"mode": "odd"}, ValueError, "mode must be one of default, official"),
    ("a", {"seed": -1}, ValueError, "seed must be an integer in 0"),
    ("a", {"seed": 1.5}, ValueError, "seed must be an integer in 0"),
    ("a", {"num_samples": 0}, ValueError, "num_samples must be an integer of at least 1"),
    ("a", {"steps": 0}, ValueError, "steps must be an integer of at least 1"),
    ("a", {"image": picture(0, 32, 32), "video": picture(0, 5, 32, 32)}, ValueError, "image or video, not both"),
    ("a", {"image": picture(0, 32, 64)}, ValueError, "image must be 32 x 32 pixels"),
    ("a", {"image": picture(0, 32, 32, 4)}, ValueError, "1 or 3 channels"),
    ("a", {"image": picture(0, 32)}, ValueError, r"image must be \[H, W\]"),
    ("a", {"image": np.zeros((32, 32), np.float32)}, TypeError, "image must be uint8"),
    ("a", {"image": 7}, TypeError, "image must be a path, a picture or a uint8 array, got int"),
    ("a", {"image": [picture(0, 32, 32)] * 2}, ValueError, "a list of 1, one per prompt; got 2"),
    ("a", {"image": "missing.png"}, FileNotFoundError, "missing.png"),
    ("a", {"image": picture(0, 32, 32), "num_frames": 1}, ValueError, "leaves none of num_frames=1 to generate"),
    ("a", {"image": picture(0, 32, 32), "given_frames": 1}, ValueError, "applies to video"),
    ("a", {"given_frames": 5}, ValueError, "no video was given"),
    ("a", {"video": picture(0, 4, 32, 32)}, ValueError, r"must be 1 \+ 4 \* n, got 4; nearest: 1 and 5"),
    ("a", {"video": picture(0, 9, 32, 32)}, ValueError, "video has 9 frames, which leaves none of num_frames=9"),
    ("a", {"video": picture(0, 3, 32, 32), "given_frames": 5}, ValueError, "given_frames=5, but video has only 3"),
    ("a", {"video": picture(0, 5, 32, 32), "given_frames": 4}, ValueError, "given_frames must be"),
    ("a", {"video": picture(0, 5, 32)}, ValueError, "video must be"),
    ("a", {"video": "missing.mp4"}, FileNotFoundError, "missing.mp4"),
])  # fmt: skip
def test_bad_input(
    pipeline: LumosPipeline, prompt: object, options: dict[str, object], error: type[Exception], message: str
) -> None:
    """The right error at once, for calls and for streams."""
    with pytest.raises(error, match=message):
        pipeline(prompt, **options)
    with pytest.raises(error, match=message):
        pipeline.stream(prompt, **options)


@pytest.mark.parametrize("option", ["image", "video"])
def test_unreadable_files(pipeline: LumosPipeline, tmp_path: Path, option: str) -> None:
    path = tmp_path / ("broken.png" if option == "image" else "broken.mp4")
    path.write_bytes(b"not a picture at all" * 40)
    with pytest.raises(ValueError, match=path.name):
        pipeline(CAPTIONS[0], **{option: path})


def test_videos_of_one_call_must_be_equally_long(pipeline: LumosPipeline) -> None:
    with pytest.raises(ValueError, match=r"equally many frames, got \[5, 1\]"):
        pipeline(list(CAPTIONS[:2]), video=[picture(0, 5, 32, 32), picture(0, 1, 32, 32)])


def test_page_pool_exhausted_is_surfaced(parts: Parts, model: LumosModel) -> None:
    small = LumosPipeline(model, VOCABULARY, parts.text, parts.visual, DEFAULTS, page_size=16, num_pages=6)
    with pytest.raises(CacheFull, match="pages"):
        small(CAPTIONS[0])


def test_parts_that_do_not_fit_are_refused(parts: Parts, model: LumosModel) -> None:
    for changes, message in (
        ({"visual_size": 25}, "the visual tokenizer has 24 codes, the vocabulary 25"),
        ({"strides": (4, 4, 4)}, r"compresses by \(4, 8, 8\), the vocabulary's strides are \(4, 4, 4\)"),
        ({"visual_begin": 600}, "the vocabulary needs 624 ids, the model has 536"),
    ):
        with pytest.raises(ValueError, match=message):
            LumosPipeline(model, dataclasses.replace(VOCABULARY, **changes), parts.text, parts.visual)
    with pytest.raises(ValueError, match="unknown default 'frames'"):
        LumosPipeline(model, VOCABULARY, parts.text, parts.visual, {"frames": 3})


def test_from_pretrained(folder: Path, pipeline: LumosPipeline) -> None:
    loaded = LumosPipeline.from_pretrained(folder)
    assert loaded.defaults == pipeline.defaults
    assert torch.equal(loaded(CAPTIONS[0], seed=0).tokens, pipeline(CAPTIONS[0], seed=0).tokens)


@pytest.mark.parametrize(("content", "message"), [
    ("{", "not valid JSON"),
    ("[]", "not a JSON object"),
    ({"vocabulary": {}, "weights": 1}, "unknown key 'weights'"),
    ({"vocabulary": {"maks": 1}}, "'maks' is no field of Vocabulary"),
    ({"vocabulary": {}, "defaults": {"frames": 1}}, "unknown default 'frames'"),
    ({"vocabulary": {}, "defaults": 1}, "defaults must be an object, got int"),
    ({"vocabulary": {}, "prompt_template": "{caption}"}, "prompt_template differs"),
])  # fmt: skip
def test_damaged_pipeline_json(folder: Path, tmp_path: Path, content: object, message: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "pipeline.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        LumosPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    "missing", ["pipeline.json", "text_tokenizer.json", "model.safetensors", "visual_tokenizer/model.safetensors"]
)
def test_missing_parts_are_named(folder: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / missing).unlink()
    with pytest.raises(FileNotFoundError, match=Path(missing).name):
        LumosPipeline.from_pretrained(copy)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        LumosPipeline.from_pretrained(tmp_path / "nowhere")
