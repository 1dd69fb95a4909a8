"""The visual tokenizer: shapes, causality, streaming, locality, files, bad input. Weights are random: nothing here needs training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.tokenizers import VisualTokenizer, VisualTokenizerConfig
from lumos_engine.tokenizers.autoencoder import VisualAutoencoder

CONFIGS = {
    "patch": dict(
        levels=(8, 5, 5), encoder_widths=(16,), encoder_blocks=(1,), decoder_widths=(16,), decoder_blocks=(1,)
    ),
    "patch, no history": dict(compression=(2, 4, 2), decoder_history=0, encoder_widths=(8,), decoder_widths=(8,)),
    "conv": dict(
        compression=(4, 8, 8),
        channels=3,
        encoder="conv",
        encoder_widths=(8, 12),
        encoder_blocks=(1, 1),
        encoder_history=2,
        decoder_widths=(12, 8, 8),
        decoder_blocks=(1, 0, 1),
        decoder_history=2,
    ),
}


def make_tokenizer(name: str) -> VisualTokenizer:
    generator = torch.Generator().manual_seed(1)
    model = VisualAutoencoder(VisualTokenizerConfig(**CONFIGS[name]))
    for parameter in model.parameters():  # the zeros of fresh residual blocks would hide what they do
        bound = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.5
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return VisualTokenizer(model)


@pytest.fixture(scope="module", params=CONFIGS)
def tokenizer(request) -> VisualTokenizer:
    return make_tokenizer(request.param)


def random_clip(tokenizer: VisualTokenizer, latent: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    time, rows, columns = tokenizer.compression
    shape = (1 + time * (latent[0] - 1), tokenizer.channels, latent[1] * rows, latent[2] * columns)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_codes(tokenizer: VisualTokenizer, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(tokenizer.num_codes, shape, generator=torch.Generator().manual_seed(seed))


@given(latent=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
def test_shapes(tokenizer, latent):
    clip = random_clip(tokenizer, latent)
    codes = tokenizer.encode(clip)
    assert codes.dtype == torch.int64 and tuple(codes.shape) == latent
    assert codes.min() >= 0 and codes.max() < tokenizer.num_codes
    frames = tokenizer.decode(codes)
    assert frames.dtype == torch.uint8 and frames.shape == (len(clip), *clip.shape[2:], 3)


def test_random_weights_use_many_codes(tokenizer):
    """Else the tests of equality below would compare constants."""
    codes = tokenizer.encode(random_clip(tokenizer, (4, 5, 5)))
    assert len(codes.unique()) > 10
    frames = tokenizer.decode(random_codes(tokenizer, (4, 5, 5)))
    assert frames.float().std() > 10


@given(data=st.data(), length=st.integers(1, 5), seed=st.integers(0, 1000))
def test_streaming_has_the_bits_of_the_whole_clip(tokenizer, data, length, seed):
    height, width = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    codes = random_codes(tokenizer, (length, height, width), seed)
    stream = tokenizer.decoder_stream()
    pieces = [stream.push(latent) for latent in codes]
    assert [len(piece) for piece in pieces] == [1] + [tokenizer.compression[0]] * (length - 1)
    assert torch.equal(torch.cat(pieces), tokenizer.decode(codes))


@given(latents=st.integers(2, 5), seed=st.integers(0, 1000), data=st.data())
def test_later_frames_change_no_earlier_bit(tokenizer, latents, seed, data):
    kept = data.draw(st.integers(1, latents - 1))
    clip = random_clip(tokenizer, (latents, 3, 4), seed)
    frames = 1 + tokenizer.compression[0] * (kept - 1)
    changed = clip.clone()
    changed[frames:] = -changed[frames:]
    codes = tokenizer.encode(clip)
    for other in (changed, clip[:frames]):
        assert torch.equal(tokenizer.encode(other)[:kept], codes[:kept])

    codes = random_codes(tokenizer, (latents, 3, 4), seed)
    later = codes.clone()
    later[kept:] = random_codes(tokenizer, tuple(later[kept:].shape), seed + 1)
    pixels = tokenizer.decode(codes)
    for other in (later, codes[:kept]):
        assert torch.equal(tokenizer.decode(other)[:frames], pixels[:frames])


def test_history_reaches_as_far_back_as_configured(tokenizer):
    codes = random_codes(tokenizer, (6, 4, 4))
    changed = codes.clone()
    changed[1] = random_codes(tokenizer, (4, 4), seed=1)
    moved = (tokenizer.decode(codes) != tokenizer.decode(changed)).flatten(1).any(1)
    groups = [moved[:1].any(), *(group.any() for group in moved[1:].split(tokenizer.compression[0]))]
    history = tokenizer.config.decoder_history
    assert [bool(group) for group in groups] == [1 <= k <= 1 + history for k in range(6)]


@given(shift=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 1000))
@pytest.mark.parametrize("name", ["patch", "patch, no history"])
def test_patch_encoder_shifts_by_whole_codes(name, shift, seed):
    tokenizer = make_tokenizer(name)
    clip = random_clip(tokenizer, (3, 4, 4), seed)
    _, rows, columns = tokenizer.compression
    moved = clip.roll((shift[0] * rows, shift[1] * columns), dims=(2, 3))
    assert torch.equal(tokenizer.encode(moved), tokenizer.encode(clip).roll(shift, dims=(1, 2)))


@pytest.mark.parametrize("name", ["patch", "patch, no history"])
def test_patch_encoder_is_local(name):
    tokenizer = make_tokenizer(name)
    clip = random_clip(tokenizer, (3, 4, 4))
    changed = clip.clone()
    changed[:, :, : tokenizer.compression[1]] *= -1
    differ = tokenizer.encode(clip) != tokenizer.encode(changed)
    assert differ[:, 0].any() and not differ[:, 1:].any()


def test_training_pass_is_the_decoded_clip(tokenizer):
    clip = random_clip(tokenizer, (4, 3, 3))
    with torch.inference_mode():
        output = tokenizer.model(clip[None])[0]
    assert output.shape == clip.shape
    pixels = ((output + 1) * 127.5).round().clamp(0, 255).movedim(1, -1).expand(-1, -1, -1, 3)
    assert (pixels - tokenizer.decode(tokenizer.encode(clip)).float()).abs().max() <= 1


def test_batches(tokenizer):
    clips = torch.stack([random_clip(tokenizer, (3, 2, 4), seed) for seed in range(3)])
    codes = tokenizer.encode_batch(clips)
    assert (codes == torch.stack([tokenizer.encode(clip) for clip in clips])).float().mean() > 0.98
    frames = tokenizer.decode_batch(codes)
    alone = torch.stack([tokenizer.decode(sample) for sample in codes])
    assert (frames.int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["patch", "conv"])
def test_uint8_frames_are_converted(name):
    tokenizer = make_tokenizer(name)
    time, rows, columns = tokenizer.compression
    frames = torch.randint(
        256, (1 + time, 2 * rows, 2 * columns), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    scaled = (frames.float() / 127.5 - 1)[:, None].expand(-1, tokenizer.channels, -1, -1)
    expected = tokenizer.encode(scaled)
    for variant in (
        frames,
        frames[..., None],
        frames[..., None].expand(-1, -1, -1, 3),
        frames.numpy(),
        scaled.double(),
    ):
        assert torch.equal(tokenizer.encode(variant), expected)


def test_grey_of_a_colour_picture_is_its_luma():
    tokenizer = make_tokenizer("patch")
    colour = np.zeros((1, 4, 4, 3), np.uint8)
    colour[..., 1] = 200
    grey = np.full((1, 4, 4), 117, np.uint8)  # 0.587 * 200
    assert torch.equal(
        tokenizer._prepare(torch.as_tensor(colour)[None]), tokenizer._prepare(torch.as_tensor(grey)[None])
    )


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "new" / "folder")
    loaded = VisualTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == tokenizer.config
    assert (loaded.levels, loaded.num_codes) == (tokenizer.levels, tokenizer.num_codes)
    codes = random_codes(tokenizer, (3, 2, 2))
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert not list(tmp_path.rglob("*.tmp*"))
    tokenizer.save_pretrained(tmp_path / "half", torch.bfloat16)
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("new/folder", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    half = VisualTokenizer.from_pretrained(tmp_path / "half")
    assert next(half.model.parameters()).dtype == torch.float32


def test_files_that_do_not_fit_are_refused(tmp_path):
    make_tokenizer("patch").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"model_type": "lumos"}, "model_type must be"),
        ({"levels": [8, 5, 5, 5]}, "tensor 'encoder.3.bias' is"),
        ({"colour": 1}, "unknown key.*colour"),
        ({"channels": 2}, "channels must be 1 or 3"),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            VisualTokenizer.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        VisualTokenizer.from_pretrained(tmp_path)
    path.write_text(json.dumps(good))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        VisualTokenizer.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        VisualTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (torch.zeros(4, 1, 8, 8), ValueError, r"num_frames must be 1 \+ 4 \* n, got 4; nearest: 1 and 5"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"num_frames must be 1 \+ 4 \* n, got 0; nearest: 1"),
        (torch.zeros(5, 1, 10, 8), ValueError, "height must be a positive multiple of 4, got 10; nearest: 8 and 12"),
        (torch.zeros(5, 1, 8, 3), ValueError, "width must be a positive multiple of 4, got 3; nearest: 4"),
        (torch.zeros(5, 3, 8, 8), ValueError, r"float frames must be \[T, 1, H, W\], got \[5, 3, 8, 8\]"),
        (torch.zeros(5, 8, 8), ValueError, "float frames must be"),
        (torch.zeros(5, 8, 8, 2, dtype=torch.uint8), ValueError, "uint8 frames must be"),
        (
            torch.zeros(5, 1, 8, 8, dtype=torch.int32),
            TypeError,
            "frames must be uint8 or floating point, got torch.int32",
        ),
    ],
)
def test_bad_frames_are_refused(frames, error, message):
    with pytest.raises(error, match=message):
        make_tokenizer("patch").encode(frames)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.full((1, 2, 2), 200), ValueError, "codes must be in 0..199, got 200"),
        (torch.full((1, 2, 2), -1), ValueError, "codes must be in 0..199, got -1"),
        (torch.zeros(1, 2, 2), TypeError, "codes must be integers, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"codes must be \[latent_T, h, w\]"),
        (torch.zeros(0, 2, 2, dtype=torch.int64), ValueError, "not empty"),
    ],
)
def test_bad_codes_are_refused(codes, error, message):
    with pytest.raises(error, match=message):
        make_tokenizer("patch").decode(codes)


def test_stream_keeps_its_size():
    stream = make_tokenizer("patch").decoder_stream()
    stream.push(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"codes must keep the size \[2, 3\] of the first latent frame, got \[3, 2\]"):
        stream.push(torch.zeros(3, 2, dtype=torch.int64))
    assert len(stream.push(torch.zeros(2, 3, dtype=torch.int64))) == 4  # the refused one left no trace


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": (1,)}, "levels must be"),
        ({"levels": 8}, "levels must be a list of integers"),
        ({"compression": (4, 4)}, "compression must be three"),
        ({"compression": (4, 4, 4.0)}, "compression must hold integers"),
        ({"encoder": "mlp"}, "encoder must be 'patch' or 'conv'"),
        ({"encoder_history": 1}, "encoder_history must be 0 with encoder 'patch'"),
        ({"decoder_history": -1}, "decoder_history must be 0 or more"),
        ({"decoder_blocks": (1, 1)}, "must name the same number of stages"),
        ({"decoder_widths": (8,) * 4, "decoder_blocks": (1,) * 4}, "must be divisible by 8"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VisualTokenizerConfig(**values)
