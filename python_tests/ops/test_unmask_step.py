"""One denoising step, against the rule written out token by token and against a run of the original."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lumos_engine._C as extension
from lumos_engine import ops
from lumos_engine.testing import poison, strategies, tolerances

ISAS = extension.available_isas()
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny  # below it lie subnormal numbers, which may be zero


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    samples, rows, classes = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 4, 50]))
    seed, generator = draw(st.integers(0, 2**30)), torch.Generator()
    generator.manual_seed(seed)
    shape = (samples, rows)
    logits = [strategies.randn((*shape, classes), torch.float32, seed + i) * 3 for i in range(2)]
    case: dict[str, Any] = {
        "cond_logits": logits[0],
        "uncond_logits": logits[1] if draw(st.booleans()) else None,
        "ids": torch.randint(-500, 500, shape, generator=generator),
        "known": torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0])),
        "guidance_scale": draw(st.sampled_from([1.0, 3.0])),
        "sampling_temperature": draw(st.sampled_from([0.0, 0.6, 1.0])),
        "temperature": draw(st.sampled_from([0.0, 2.0])),
        "num_masked": draw(st.integers(0, rows + 1)),
        "gumbel": torch.randn(shape, generator=generator),
    }
    if draw(st.booleans()):
        case["num_masked"] = torch.randint(0, rows + 2, (samples,), generator=generator)
    if draw(st.booleans()):
        case["sampled_ids"] = torch.randint(0, classes, shape, generator=generator)
    else:
        case["uniforms"] = torch.rand(shape, generator=generator)
    return case


def one_sample(case: dict[str, Any], sample: int) -> tuple[list[int], list[float], list[float]]:
    """ids, confidence and score of one sample, in Python numbers."""
    ids, confidence, score = [], [], []
    for row, known in enumerate(case["known"][sample].tolist()):
        if known:
            ids.append(int(case["ids"][sample, row]))
            confidence.append(LARGEST)
            score.append(math.inf)
            continue
        logits = case["cond_logits"][sample, row].double()
        if case["uncond_logits"] is not None:
            uncond = case["uncond_logits"][sample, row].double()
            logits = case["guidance_scale"] * (logits - uncond) + uncond
        temperature = case["sampling_temperature"]
        p = torch.softmax(logits / temperature if temperature else logits, 0)
        if "sampled_ids" in case:
            chosen = int(case["sampled_ids"][sample, row])
        elif temperature:
            chosen = int((p.cumsum(0) <= float(case["uniforms"][sample, row])).sum())
        else:
            chosen = int(logits.argmax())
        ids.append(chosen)
        confidence.append(float(p[chosen]))
        score.append(math.log(max(confidence[-1], 1e-20)) + case["temperature"] * float(case["gumbel"][sample, row]))
    return ids, confidence, score


@given(steps())
def test_every_sample_follows_the_rule(case: dict[str, Any]) -> None:
    ids, confidence, masked = ops.unmask_step(**case)
    assert (ids.dtype, confidence.dtype, masked.dtype) == (torch.int64, torch.float32, torch.bool)
    for sample in range(len(ids)):
        expected_ids, expected_confidence, score = one_sample(case, sample)
        assert ids[sample].tolist() == expected_ids
        np.testing.assert_allclose(
            confidence[sample], expected_confidence, rtol=tolerances.SAMPLING["score"], atol=SMALLEST
        )
        unknown = int((~case["known"][sample]).sum())
        count = max(1, min(int(torch.as_tensor(case["num_masked"]).expand(len(ids))[sample]), unknown - 1))
        cutoff = sorted([*score, math.inf])[min(count, len(score))]
        gaps = [abs(s - cutoff) for s in score if s != cutoff]
        if min(gaps, default=1.0) > 1e-4:  # closer scores may change places in fp32
            assert masked[sample].tolist() == [s < cutoff for s in score]
            assert not (masked[sample] & case["known"][sample]).any()
            if unknown and score.count(cutoff) <= 1:  # with ties at the cut-off fewer stay masked
                assert int(masked[sample].sum()) == min(count, unknown)


def test_the_original_greedy_run(golden_dir: Path) -> None:
    """Every step of the golden run: ids, probabilities and re-masking from the original's own logits."""
    with np.load(golden_dir / "infer_t2v_greedy.npz") as file:
        run = {name: torch.from_numpy(file[name]) for name in ("sampled", "sel_prob", "masking", "mask_len")}
    with np.load(golden_dir / "infer_t2v_greedy_nocache_logits.npz") as file:
        logits = torch.from_numpy(file["cfg_logits_visual"])
    visual_begin, steps_per_frame = 192, 6
    for step, (row, ids, probability) in enumerate(zip(logits, run["sampled"].long(), run["sel_prob"], strict=True)):
        known = probability > 1e30
        _, confidence, masked = ops.unmask_step(
            row[None],
            None,
            (ids - visual_begin)[None],
            known[None],
            sampling_temperature=0.0,
            num_masked=int(run["mask_len"][step, 0]),
        )
        greedy, _, _ = ops.unmask_step(
            row[None], None, ids[None] * 0, known[None], sampling_temperature=0.0, num_masked=1
        )
        assert torch.equal(greedy[0][~known], ids[~known] - visual_begin)
        torch.testing.assert_close(
            confidence[0][~known], probability[~known].float(), rtol=0, atol=tolerances.GOLDEN["probabilities"]
        )
        if step % steps_per_frame < steps_per_frame - 1:
            assert torch.equal(masked[0], run["masking"][step] != 0)


def test_unknown_rows_alone_give_what_all_rows_give() -> None:
    """Rows that are known need no logits; shorter samples are filled up with known rows, which may hold NaN."""
    generator = torch.Generator().manual_seed(4)
    logits, uniforms, gumbel = (
        torch.randn(2, 8, 5, generator=generator),
        torch.rand(2, 8, generator=generator),
        torch.randn(2, 8, generator=generator),
    )
    known = torch.tensor(
        [[True, False, False, True, False, False, True, True], [False, True, True, True, False, True, True, True]]
    )
    ids = torch.full((2, 8), 3)
    options: dict[str, Any] = {"temperature": 1.0, "num_masked": 2}
    whole = ops.unmask_step(logits, None, ids, known, uniforms=uniforms, gumbel=gumbel, **options)
    rows = (~known).long().argsort(dim=1, descending=True, stable=True)[:, :4]
    few = [x.gather(1, rows) for x in (ids, known, uniforms, gumbel)]
    part = logits.gather(1, rows[..., None].expand(-1, -1, 5)).masked_fill(few[1][..., None], float("nan"))
    compact = ops.unmask_step(part, None, few[0], few[1], uniforms=few[2], gumbel=few[3], **options)
    for a, b in zip(whole, compact, strict=True):
        assert torch.equal(a.gather(1, rows), b)


def test_sampling_follows_the_distribution() -> None:
    """The inverse CDF of evenly spaced uniforms: each class gets its share, to within one."""
    p = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3])
    n = 1000
    uniforms = ((torch.arange(n) + 0.5) / n)[None]
    logits = p.log().expand(1, n, 5)
    known = torch.zeros(1, n, dtype=torch.bool)
    ids, _, _ = ops.unmask_step(logits, None, known.long(), known, num_masked=1, uniforms=uniforms)
    assert (ids[0].bincount(minlength=5) - n * p).abs().max() <= 1


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniforms_never_choose_an_impossible_class(uniform: float) -> None:
    logits = torch.full((1, 1, 64000), -200.0)
    logits[0, 0, 100:60000] = torch.randn(59900)
    known = torch.zeros(1, 1, dtype=torch.bool)
    ids, _, _ = ops.unmask_step(logits, None, known.long(), known, num_masked=1, uniforms=torch.tensor([[uniform]]))
    assert int(ids) == (100 if uniform == 0.0 else 59999)


def test_the_reference_works_on_large_vocabularies_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lumos_engine.reference import unmask

    logits, uniforms, known = torch.randn(2, 7, 30), torch.rand(2, 7), torch.rand(2, 7) < 0.3
    arguments = (logits, logits * 0.5, known.long(), known)
    options: dict[str, Any] = {"num_masked": 3, "uniforms": uniforms, "guidance_scale": 2.0, "backend": "reference"}
    whole = ops.unmask_step(*arguments, **options)
    monkeypatch.setattr(unmask, "CHUNK_ELEMENTS", 60)
    for a, b in zip(whole, ops.unmask_step(*arguments, **options), strict=True):
        assert torch.equal(a, b)


ROWS = 5


@st.composite
def rows_of_logits(draw: st.DrawFn) -> dict[str, Any]:
    """Ragged blocks of classes, peaked and flat rows, impossible classes, any memory order, NaN where a row is known."""
    classes = draw(st.sampled_from([1, 2, 17, 240, 511, 512, 513, 1500]))
    dtype, seed = draw(st.sampled_from(strategies.DTYPES)), draw(strategies.seeds())
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(2, ROWS, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    scale, shift = draw(st.sampled_from([0.0, 1.0, 30.0])), draw(st.sampled_from([0.0, -1e4, 1e4]))
    logits = []
    for branch in range(draw(st.integers(1, 2))):
        x = strategies.randn((2, ROWS, classes), torch.float32, (seed + branch) % 2**32) * scale + shift
        if branch == 0:
            impossible = torch.rand(x.shape, generator=generator) < draw(st.sampled_from([0.0, 0.9]))
            impossible[..., int(torch.randint(0, classes, (), generator=generator))] = False
            x = x.masked_fill(impossible, -1e30)
        x = x.to(dtype).masked_fill(known[..., None], float("nan"))
        logits.append(strategies.in_order(x, draw(strategies.memory_orders())))
    case: dict[str, Any] = {
        "cond_logits": logits[0],
        "uncond_logits": logits[1] if len(logits) > 1 else None,
        "known": known,
        "guidance_scale": draw(st.sampled_from([1.0, 4.0])),
        "sampling_temperature": draw(st.sampled_from([0.0, 0.6, 1.0])),
    }
    choice = draw(st.sampled_from(["uniforms", "extreme uniforms", "sampled_ids"]))
    if choice == "sampled_ids":
        case["sampled_ids"] = torch.randint(0, classes, (2, ROWS), generator=generator)
    elif choice == "uniforms":
        case["uniforms"] = torch.rand(2, ROWS, generator=generator)
    else:
        case["uniforms"] = torch.full((2, ROWS), draw(st.sampled_from([0.0, 1 - 2**-24])))
    return case


def exact_probabilities(case: dict[str, Any]) -> Tensor:
    """fp64 softmax of the guided logits; guidance itself in fp32, as the contract says."""
    logits = case["cond_logits"].float()
    if case["uncond_logits"] is not None:
        uncond = case["uncond_logits"].float()
        logits = case["guidance_scale"] * (logits - uncond) + uncond
    return torch.softmax((logits / (case["sampling_temperature"] or 1.0)).double(), -1)


@given(st.sampled_from(ISAS), rows_of_logits())
def test_sampled_codes_lie_where_the_uniform_points(level: str, case: dict[str, Any]) -> None:
    extension.set_cpu_isa(level)
    with poison.poisoned_outputs():
        codes, confidence = ops.sample_codes(**case)
    known, exact = case["known"], exact_probabilities(case)
    assert bool((codes[known] == 0).all()) and bool((confidence[known] == LARGEST).all())
    p = exact.gather(-1, codes[..., None])[..., 0]
    error = (confidence.double().clamp(min=1e-20).log() - p.clamp(min=1e-20).log()).abs()[~known]
    assert bool((error <= tolerances.SAMPLING["score"]).all()), f"the score misses by {float(error.max()):.2g}"
    if "sampled_ids" in case:
        assert torch.equal(codes[~known], case["sampled_ids"][~known])
    elif case["sampling_temperature"] == 0:
        reference, _ = ops.sample_codes(**case, backend="reference")
        assert torch.equal(codes, reference)
    else:
        after = exact.cumsum(-1).gather(-1, codes[..., None])[..., 0]
        uniforms = case["uniforms"].double()
        slack = tolerances.SAMPLING["threshold"]
        inside = (after - p <= uniforms + slack) & (uniforms < after + slack)
        assert bool(inside[~known].all())
        assert bool((p[~known] > 0).all())


@given(st.sampled_from(ISAS), rows_of_logits(), st.integers(2, 4))
def test_a_row_does_not_depend_on_other_rows_or_threads(level: str, case: dict[str, Any], threads: int) -> None:
    extension.set_cpu_isa(level)
    whole = ops.sample_codes(**case)
    torch.set_num_threads(threads)
    try:
        again = ops.sample_codes(**case)
    finally:
        torch.set_num_threads(1)
    parts = []
    for rows in (slice(0, 2), slice(2, ROWS)):
        cut = {k: v[:, rows] if isinstance(v, Tensor) else v for k, v in case.items()}
        parts.append(ops.sample_codes(**cut))
    for i, name in enumerate(("codes", "confidence")):
        tolerances.assert_bitwise_equal(again[i], whole[i], name)
        tolerances.assert_bitwise_equal(torch.cat([part[i] for part in parts], 1), whole[i], name)


def test_the_operator_keeps_torchs_contract() -> None:
    logits, known = torch.randn(2, 3, 20), torch.rand(2, 3) < 0.5
    arguments = (logits, logits * 0.5, known, None, torch.rand(2, 3), 2.0, 1.0)
    torch.library.opcheck(torch.ops.lumos._sample_codes.default, arguments)
    torch.library.opcheck(torch.ops.lumos._sample_codes.default, (logits, None, known, known.long(), None, 1.0, 0.0))


def test_compiles_as_one_graph() -> None:
    def step(logits: Tensor, ids: Tensor, known: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.unmask_step(logits, None, ids, known, num_masked=2, uniforms=uniforms)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 7):
        logits, known, uniforms = torch.randn(1, rows, 30), torch.zeros(1, rows, dtype=torch.bool), torch.rand(1, rows)
        for a, b in zip(
            compiled(logits, known.long(), known, uniforms), step(logits, known.long(), known, uniforms), strict=True
        ):
            assert torch.equal(a, b)


def test_bf16_logits_are_raised_to_fp32() -> None:
    logits, known = torch.randn(1, 6, 9).bfloat16(), torch.zeros(1, 6, dtype=torch.bool)
    options: dict[str, Any] = {"num_masked": 2, "uniforms": torch.rand(1, 6), "sampling_temperature": 0.7}
    results = [ops.unmask_step(x, None, known.long(), known, **options) for x in (logits, logits.float())]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "cond_logits has dtype int64", {"cond_logits": torch.zeros(1, 2, 4, dtype=torch.int64)}),
        (ValueError, r"cond_logits has shape \(2, 4\); it must be \[samples, rows, classes\]", {"cond_logits": torch.zeros(2, 4)}),
        (ValueError, r"uncond_logits has shape \(1, 2, 5\); it must be \[1, 2, 4\]", {"uncond_logits": torch.zeros(1, 2, 5)}),
        (TypeError, "ids has dtype int32", {"ids": torch.zeros(1, 2, dtype=torch.int32)}),
        (TypeError, "known has dtype int64; allowed: bool", {"known": torch.zeros(1, 2, dtype=torch.int64)}),
        (ValueError, r"known has shape \(1, 3\)", {"known": torch.zeros(1, 3, dtype=torch.bool)}),
        (ValueError, "sampling_temperature is -1; it must be at least 0", {"sampling_temperature": -1}),
        (ValueError, "temperature is nan", {"temperature": float("nan")}),
        (ValueError, "sampling_temperature is 1.0; give uniforms or sampled_ids", {"uniforms": None}),
        (ValueError, "temperature is 2.0; give gumbel", {"temperature": 2.0}),
        (ValueError, r"uniforms must be in \[0, 1\), got 0.0..1.0", {"uniforms": torch.tensor([[0.0, 1.0]])}),
        (ValueError, r"sampled_ids of unknown tokens must be in 0\.\.3", {"sampled_ids": torch.tensor([[0, 4]])}),
        (TypeError, "cond_logits has dtype float64; allowed: float32, bfloat16", {"cond_logits": torch.zeros(1, 2, 4, dtype=torch.float64)}),
        (TypeError, "gumbel has dtype float64", {"gumbel": torch.zeros(1, 2, dtype=torch.float64)}),
        (ValueError, r"num_masked has shape \(2,\); it must be \[1\]", {"num_masked": torch.tensor([1, 2])}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "cond_logits": torch.zeros(1, 2, 4), "uncond_logits": None, "ids": torch.zeros(1, 2, dtype=torch.int64),
        "known": torch.zeros(1, 2, dtype=torch.bool), "num_masked": 1, "uniforms": torch.zeros(1, 2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.unmask_step(**{**arguments, **changes})


def test_known_tokens_may_be_replayed_with_any_id() -> None:
    known = torch.tensor([[True, False]])
    ids, _, _ = ops.unmask_step(
        torch.zeros(1, 2, 4), None, Tensor([[9, 9]]).long(), known, num_masked=1, sampled_ids=torch.tensor([[-77, 2]])
    )
    assert ids.tolist() == [[9, 2]]
