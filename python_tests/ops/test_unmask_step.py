"""One denoising step, against the rule written out token by token and against a run of the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running

compiled_backends = pytest.mark.parametrize("backend", COMPILED)
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


def placed(case: dict[str, Any], place: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: place(x) if isinstance(x, Tensor) else x for name, x in case.items()}


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


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=steps(), schedule=strategies.seeds())
def test_every_sample_follows_the_rule(case: dict[str, Any], schedule: int, backend: str) -> None:
    with running(backend, schedule) as place, poison.poisoned_outputs():
        ids, confidence, masked = (x.cpu() for x in ops.unmask_step(**placed(case, place)))
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
        if min(gaps, default=1.0) > tolerances.SAMPLING["gap"]:  # closer scores may change places in fp32
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


@compiled_backends
def test_unknown_rows_alone_give_what_all_rows_give(backend: str) -> None:
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
    rows = (~known).long().argsort(dim=1, descending=True, stable=True)[:, :4]
    few = [x.gather(1, rows) for x in (ids, known, uniforms, gumbel)]
    part = logits.gather(1, rows[..., None].expand(-1, -1, 5)).masked_fill(few[1][..., None], float("nan"))
    with running(backend) as place:
        whole, compact = (
            ops.unmask_step(place(x), None, place(i), place(k), uniforms=place(u), gumbel=place(g), **options)
            for x, i, k, u, g in ((logits, ids, known, uniforms, gumbel), (part, *few))
        )
    for a, b in zip(whole, compact, strict=True):
        assert torch.equal(a.cpu().gather(1, rows), b.cpu())


@compiled_backends
def test_sampling_follows_the_distribution(backend: str) -> None:
    """The inverse CDF of evenly spaced uniforms: each class gets its share, to within one."""
    p = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3])
    n = 1000
    uniforms = ((torch.arange(n) + 0.5) / n)[None]
    logits = p.log().expand(1, n, 5)
    known = torch.zeros(1, n, dtype=torch.bool)
    with running(backend) as place:
        logits, known, uniforms = place(logits), place(known), place(uniforms)
        ids, _, _ = ops.unmask_step(logits, None, known.long(), known, num_masked=1, uniforms=uniforms)
    assert (ids[0].cpu().bincount(minlength=5) - n * p).abs().max() <= 1


@compiled_backends
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_extreme_uniforms_never_choose_an_impossible_class(uniform: float, backend: str) -> None:
    logits = torch.full((1, 1, 64000), -200.0)
    logits[0, 0, 100:60000] = torch.randn(59900)
    known = torch.zeros(1, 1, dtype=torch.bool)
    with running(backend) as place:
        codes, _ = ops.sample_codes(place(logits), None, place(known), uniforms=place(torch.tensor([[uniform]])))
    assert int(codes) == (100 if uniform == 0.0 else 59999)


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
def rows_of_logits(draw: st.DrawFn, backend: str = "cpu") -> dict[str, Any]:
    """Ragged blocks of classes, peaked and flat rows, impossible classes, any memory order, NaN where a row is known."""
    classes = draw(st.sampled_from([1, 2, 17, 240, 511, 512, 513, 1500]))
    dtype, seed = draw(st.sampled_from(DTYPES[backend])), draw(strategies.seeds())
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(2, ROWS, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    scale, shift = draw(st.sampled_from([0.0, 1.0, 30.0])), draw(st.sampled_from([0.0, -1e4, 1e4]))
    logits = []
    for branch in range(draw(st.integers(1, 2))):
        x = strategies.randn((2, ROWS, classes), torch.float32, (seed + branch) % 2**32) * scale + shift
        if branch == 0:
            impossible = torch.rand(x.shape, generator=generator) < draw(st.sampled_from([0.0, 0.9]))
            impossible[..., int(torch.randint(0, classes, (), generator=generator))] = False
            x = x.masked_fill(impossible, -6e4)  # float16 holds it
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


def assert_codes_lie_where_the_uniform_points(case: dict[str, Any], codes: Tensor, confidence: Tensor) -> None:
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


@given(st.sampled_from(ISAS), rows_of_logits())
def test_sampled_codes_lie_where_the_uniform_points(level: str, case: dict[str, Any]) -> None:
    extension.set_cpu_isa(level)
    with poison.poisoned_outputs():
        codes, confidence = ops.sample_codes(**case)
    assert_codes_lie_where_the_uniform_points(case, codes, confidence)


@pytest.mark.parametrize("backend", ["cuda"])
@given(case=rows_of_logits("cuda"), schedule=strategies.seeds())
def test_sampled_codes_lie_where_the_uniform_points_on_cuda(case: dict[str, Any], schedule: int, backend: str) -> None:
    with running(backend, schedule) as place, poison.poisoned_outputs():
        codes, confidence = (x.cpu() for x in ops.sample_codes(**placed(case, place)))
    assert_codes_lie_where_the_uniform_points(case, codes, confidence)


ROWS_OF_CLASSES = [1, 4, 7, 8, 31, 256, 1024, 16381, 16384]  # a vector, a warp, several parts, parts of parts


@compiled_backends
@pytest.mark.parametrize("classes", ROWS_OF_CLASSES)
@pytest.mark.parametrize("guided", [False, True])
def test_a_uniform_at_the_border_of_two_classes_belongs_to_the_second(guided: bool, classes: int, backend: str) -> None:
    """Among equal classes all sums are whole numbers, which no rounding touches if their number is a power of two."""
    possible = 2 ** (classes.bit_length() - 1)
    place_of = torch.randperm(classes, generator=torch.Generator().manual_seed(0))[:possible].sort().values
    for dtype in DTYPES[backend]:
        n = torch.linspace(0, possible - 1, 9).round().long()
        logits = torch.full((1, 3 * len(n), classes), -torch.inf, dtype=dtype)
        logits[..., place_of] = 3.0
        uncond = torch.zeros_like(logits) if guided else None
        below = torch.nextafter(n / possible, torch.tensor(-1.0))
        uniforms = torch.cat((n / possible, (n + 0.5) / possible, below.clamp(min=0.0)))[None]
        known = torch.zeros(uniforms.shape, dtype=torch.bool)
        options = {"guidance_scale": 2.0, "sampling_temperature": 0.5}
        with running(backend, 3) as place:
            uncond = place(uncond) if uncond is not None else None
            codes, p = ops.sample_codes(place(logits), uncond, place(known), uniforms=place(uniforms), **options)
        assert torch.equal(codes.cpu()[0], place_of[torch.cat((n, n, (n - 1).clamp(min=0)))])
        assert torch.equal(p.cpu(), torch.full(p.shape, 1 / possible))


@compiled_backends
@pytest.mark.parametrize("classes", ROWS_OF_CLASSES)
def test_of_equal_classes_the_first_is_the_most_likely(classes: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for dtype in DTYPES[backend]:
        logits = torch.randn(1, 12, classes, generator=generator).to(dtype).clamp(max=2.0)
        first = torch.randint(0, classes, (12,), generator=generator)
        first[-1] = classes - 1
        for row, best in enumerate(first):
            equals = torch.randint(int(best), classes, (5,), generator=generator)
            logits[0, row, equals] = logits[0, row, best] = 5.0
        known = torch.zeros(1, 12, dtype=torch.bool)
        with running(backend, 3) as place:
            codes, p = ops.sample_codes(place(logits), None, place(known), sampling_temperature=0.0)
        assert torch.equal(codes.cpu()[0], first)
        exact = torch.softmax(logits.double(), -1).max(-1).values
        torch.testing.assert_close(p.cpu().double(), exact, rtol=tolerances.SAMPLING["score"], atol=0)


@compiled_backends
def test_guidance_is_rounded_after_each_operation(backend: str) -> None:
    """c - u is exact here and its product with g rounds to -u: the sum is 0, or what a fused multiply-add leaves over."""
    difference = 1.0 + torch.arange(1024) / 2**12 + 2**-20
    uncond = -(torch.tensor(3.3) * difference)
    cond = uncond + difference
    known = torch.zeros(1, 1, dtype=torch.bool)
    with running(backend) as place:
        codes, p = ops.sample_codes(
            place(cond[None, None]), place(uncond[None, None]), place(known),
            guidance_scale=3.3, sampling_temperature=0.0,
        )  # fmt: skip
    assert (int(codes), float(p)) == (0, 1 / 1024)


@compiled_backends
@pytest.mark.parametrize("temperature", [0.6, 0.7, 1.3, 3.0])
def test_the_quotient_by_the_temperature_is_rounded_once(temperature: float, backend: str) -> None:
    """Around 10^4 its last bit changes a probability by more than the tolerance."""
    case = {
        "cond_logits": strategies.randn((1, 6, 300), torch.float32, 0) + 1e4,
        "uncond_logits": None,
        "known": torch.zeros(1, 6, dtype=torch.bool),
        "sampling_temperature": temperature,
        "uniforms": torch.linspace(0, 0.99, 6)[None],
    }
    with running(backend) as place:
        codes, confidence = (x.cpu() for x in ops.sample_codes(**placed(case, place)))
    assert_codes_lie_where_the_uniform_points(case, codes, confidence)


@compiled_backends
def test_a_row_of_a_visual_vocabulary(backend: str) -> None:
    """Sliced out of the logits of all words, where it lies."""
    for dtype in DTYPES[backend]:
        logits = strategies.randn((3, 2, 65536 + 64000), dtype, 0)[..., 65536:] * 2
        case = {
            "cond_logits": logits[:1],
            "uncond_logits": logits[1:2],
            "known": torch.zeros(1, 2, dtype=torch.bool),
            "guidance_scale": 1.5,
            "sampling_temperature": 0.9,
            "uniforms": torch.tensor([[0.3, 0.9]]),
        }
        before = registry.copies.copy()
        with running(backend) as place:
            codes, confidence = (x.cpu() for x in ops.sample_codes(**placed(case, place)))
        assert registry.copies == before
        assert_codes_lie_where_the_uniform_points(case, codes, confidence)


def assert_same_results(results: Sequence[tuple[Tensor, ...]]) -> None:
    for other in results[1:]:
        for a, b, name in zip(other, results[0], ("codes", "confidence"), strict=True):
            tolerances.assert_bitwise_equal(a, b, name)


def in_portions(case: dict[str, Any]) -> tuple[Tensor, ...]:
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, ROWS)):
        cut = {k: v[:, rows] if isinstance(v, Tensor) else v for k, v in case.items()}
        parts.append(ops.sample_codes(**cut))
    return tuple(torch.cat(x, 1) for x in zip(*parts, strict=True))


@given(st.sampled_from(ISAS), rows_of_logits(), st.integers(2, 4))
def test_a_row_does_not_depend_on_other_rows_or_threads(level: str, case: dict[str, Any], threads: int) -> None:
    extension.set_cpu_isa(level)
    whole = ops.sample_codes(**case)
    torch.set_num_threads(threads)
    try:
        again = ops.sample_codes(**case)
    finally:
        torch.set_num_threads(1)
    assert_same_results((whole, again, in_portions(case)))


@pytest.mark.parametrize("backend", ["cuda"])
@given(case=rows_of_logits("cuda"), schedule=strategies.seeds())
def test_a_row_does_not_depend_on_other_rows_or_the_schedule(case: dict[str, Any], schedule: int, backend: str) -> None:
    with running(backend) as place:
        whole = ops.sample_codes(**placed(case, place))
    with running(backend, schedule) as place:
        case = placed(case, place)
        results = whole, ops.sample_codes(**case), in_portions(case)
        case["cond_logits"] = case["cond_logits"].clone(memory_format=torch.contiguous_format)
        assert_same_results((*results, ops.sample_codes(**case)))


@compiled_backends
@pytest.mark.parametrize("far", ["sample", "row"])
def test_strides_beyond_32_bits(far: str, backend: str) -> None:
    """Of memory that no one touches between the two rows."""
    stride = 2**31 + 64
    shape, strides = ((2, 1, 40), (stride, 64, 1)) if far == "sample" else ((1, 2, 40), (128, stride, 1))
    near = strategies.randn(shape, torch.bfloat16, 0)
    known, uniforms = torch.zeros(shape[:2], dtype=torch.bool), torch.full(shape[:2], 0.6)
    with running(backend) as place:
        near, known, uniforms = place(near), place(known), place(uniforms)
        x = torch.empty(stride + 64, dtype=near.dtype, device=near.device).as_strided(shape, strides).copy_(near)
        results = [ops.sample_codes(a, a, known, uniforms=uniforms, guidance_scale=2.0) for a in (near, x)]
    assert_same_results(results)


@pytest.mark.parametrize("backend", ["cuda"])
def test_rows_that_are_not_aligned_to_16_bytes_are_copied_and_counted_on_cuda(backend: str) -> None:
    logits, known = strategies.randn((2, 3, 17), torch.bfloat16, 0), torch.zeros(2, 3, dtype=torch.bool)
    padded = torch.full((2, 3, 24), torch.nan, dtype=logits.dtype)[..., :17].copy_(logits)
    with running(backend) as place:
        results = []
        for x, num_copies in ((logits, 2), (padded, 0)):
            before = registry.copies.total()
            results.append(ops.sample_codes(place(x), place(x), place(known), sampling_temperature=0.0))
            assert registry.copies.total() == before + num_copies
    assert_same_results(results)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("classes", ROWS_OF_CLASSES)
def test_values_that_the_host_does_not_look_at_on_cuda(classes: int, backend: str) -> None:
    first, last = classes // 5, classes - 1 - classes // 4  # possible classes; a uniform of 1 goes beyond all of them
    logits, known = torch.full((1, 5, classes), -torch.inf), torch.zeros(1, 5, dtype=torch.bool)
    logits[..., first : last + 1] = 2.0
    with running(backend) as place:
        logits, known = place(logits), place(known)
        outside = place(torch.tensor([[-1, classes, 2**40, last, -(2**40)]]))
        codes, p = ops.sample_codes(logits, None, known, sampled_ids=outside)
        assert codes.tolist() == [[0, 0, 0, last, 0]] and p[0].isnan().tolist() == [True, True, True, False, True]
        uniforms = place(torch.tensor([[-3.0, 1.0, 7.0, torch.nan, torch.inf]]))
        codes, p = ops.sample_codes(logits, None, known, uniforms=uniforms)
        assert codes.tolist() == [[first, last, last, last, last]]
        assert not p.isnan().any()
        codes, p = ops.sample_codes(logits * torch.nan, None, known, uniforms=uniforms)
        assert codes.tolist() == [[0] * 5] and p.isnan().all()


@compiled_backends
def test_no_rows(backend: str) -> None:
    for shape in (0, 3), (2, 0):
        empty = torch.zeros(shape)
        with running(backend) as place:
            logits, known = place(empty[..., None].expand(*shape, 8)), place(empty > 0)
            codes, confidence = ops.sample_codes(logits, None, known, uniforms=place(empty))
        assert codes.shape == confidence.shape == shape


@compiled_backends
def test_nothing_else_is_written(backend: str) -> None:
    logits, known = strategies.randn((2, 3, 40), torch.float32, 0), torch.arange(6).view(2, 3) == 4
    outs = [poison.GuardedTensor((2, 3), dtype) for dtype in (torch.int64, torch.float32, torch.bool)]
    codes, confidence, masked = (out.tensor for out in outs)
    with running(backend, 2):  # guards lie on the CPU: on a GPU this is the CPU kernel again
        registry.call("sample_codes", logits, None, known, None, None, 1.0, 0.0, codes, confidence)
        registry.call("remask", confidence, known, None, 1, 0.0, None, masked)
    for out in outs:
        out.assert_untouched()
    assert not confidence.isnan().any() and masked.sum() == 2


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


@compiled_backends
def test_bf16_logits_are_raised_to_fp32(backend: str) -> None:
    logits, known = torch.randn(1, 6, 9).bfloat16(), torch.zeros(1, 6, dtype=torch.bool)
    options: dict[str, Any] = {"num_masked": 2, "uniforms": torch.rand(1, 6), "sampling_temperature": 0.7}
    with running(backend) as place:
        known, options = place(known), placed(options, place)
        results = [ops.unmask_step(place(x), None, known.long(), known, **options) for x in (logits, logits.float())]
    (ids, p, masked), (expected_ids, expected_p, expected_masked) = results
    assert torch.equal(ids, expected_ids) and torch.equal(masked, expected_masked)
    # On CUDA vectors hold fewer classes of fp32, so that sums go in another order.
    rtol = 0.0 if backend == "cpu" else tolerances.SAMPLING["score"]
    torch.testing.assert_close(p, expected_p, rtol=rtol, atol=0.0)


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
