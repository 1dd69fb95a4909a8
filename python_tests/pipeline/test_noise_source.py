"""Noise of generation: keyed by seed, sample, frame, step and token; replayed from records."""

from __future__ import annotations

import pytest
import torch

from lumos_engine.diffusion.noise_source import PhiloxNoise, ReplayNoise


def test_a_sample_draws_the_same_noise_in_every_batch() -> None:
    keys = [(7, 0), (7, 1), (9, 1)]
    together = PhiloxNoise(keys)
    for row, key in enumerate(keys):
        alone = PhiloxNoise([key])
        assert torch.equal(together.uniforms(2, 3, 50)[row], alone.uniforms(2, 3, 50)[0])
        assert torch.equal(together.gumbel(2, 3, 50)[row], alone.gumbel(2, 3, 50)[0])


def test_every_part_of_the_key_matters_and_longer_draws_begin_alike() -> None:
    draws = [
        PhiloxNoise([key]).uniforms(frame, step, 64)
        for key, frame, step in (((1, 0), 0, 0), ((2, 0), 0, 0), ((1, 1), 0, 0), ((1, 0), 1, 0), ((1, 0), 0, 1))
    ]
    for i, a in enumerate(draws):
        assert float(a.min()) >= 0 and float(a.max()) < 1
        assert all(not torch.equal(a, b) for b in draws[:i])
    assert torch.equal(PhiloxNoise([(1, 0)]).uniforms(0, 0, 9)[0], draws[0][0, :9])


def test_sampling_and_remasking_use_different_streams() -> None:
    noise = PhiloxNoise([(1, 0)])
    uniforms, gumbel = noise.uniforms(0, 0, 4096).double(), noise.gumbel(0, 0, 4096).double()
    assert bool(torch.isfinite(gumbel).all())
    assert abs(float(torch.corrcoef(torch.stack([uniforms[0], gumbel[0]]))[0, 1])) < 0.06
    assert abs(float(gumbel.mean()) - 0.5772) < 0.1
    assert noise.sampled_ids(0, 0, 4) is None


def test_replay_returns_the_record_and_asks_the_other_source_for_the_rest() -> None:
    ids = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    other = PhiloxNoise([(0, 0), (0, 1)])
    replay = ReplayNoise(sampled_ids=ids, first_frame=1, otherwise=other)
    assert torch.equal(replay.sampled_ids(2, 3, 5), ids[:, 1, 3])
    assert torch.equal(replay.gumbel(2, 3, 5), other.gumbel(2, 3, 5))
    gumbel = torch.rand(2, 3, 4, 5)
    replay = ReplayNoise(gumbel=gumbel, otherwise=other)
    assert torch.equal(replay.gumbel(0, 1, 5), gumbel[:, 0, 1])
    assert replay.sampled_ids(0, 1, 5) is None
    assert torch.equal(replay.uniforms(0, 1, 5), other.uniforms(0, 1, 5))


def test_replay_refuses_what_it_does_not_hold() -> None:
    replay = ReplayNoise(sampled_ids=torch.zeros(1, 2, 3, 4, dtype=torch.int64), first_frame=1)
    for frame, step, num_tokens in ((0, 0, 4), (3, 0, 4), (1, 3, 4), (1, 0, 5)):
        with pytest.raises(ValueError, match="no recorded sampled_ids for frame"):
            replay.sampled_ids(frame, step, num_tokens)
    with pytest.raises(ValueError, match="gumbel is not recorded"):
        replay.gumbel(1, 0, 4)
    with pytest.raises(ValueError, match="sampled_ids, gumbel or both"):
        ReplayNoise()
    with pytest.raises(ValueError, match=r"must be \[samples, frames, steps, num_tokens\]"):
        ReplayNoise(gumbel=torch.zeros(2, 3))
