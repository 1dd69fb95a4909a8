"""Normalised and rotated queries; keys and values that went into pages on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running

PAGE_SIZE = 16


def arguments(
    tokens: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    rows: int = 2,
) -> dict[str, Tensor]:
    """Three pages of 16 slots, poisoned; slots in any order."""
    generator = torch.Generator().manual_seed(seed)
    kv_shape = (tokens, kv_heads, head_dim)
    shapes = {"q": (tokens, heads, head_dim), "k": kv_shape, "v": kv_shape}
    weights = {f"{x}_{name}": (rows, head_dim) for x in "qk" for name in ("weight", "bias")}
    tensors = {
        name: strategies.randn(shape, dtype, seed + i) for i, (name, shape) in enumerate({**shapes, **weights}.items())
    }
    positions = torch.randint(0, 3000, (tokens, 3), generator=generator, dtype=torch.int32)
    pages = {name: torch.full((3, PAGE_SIZE, *kv_shape[1:]), torch.nan, dtype=dtype) for name in ("k_pages", "v_pages")}
    return {**tensors, "positions": positions, **pages, "slots": torch.randperm(48, generator=generator)[:tokens]}


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), tokens=st.integers(0, 48), parity=st.booleans(), schedule=strategies.seeds())
def test_bits_are_those_of_the_two_operations(
    data: st.DataObject, tokens: int, parity: bool, schedule: int, backend: str
) -> None:
    dtype = data.draw(st.sampled_from(DTYPES[backend]))
    given_ = arguments(tokens, dtype, data.draw(st.integers(0, 2**30)))
    for name in ("q", "k", "v"):
        given_[name] = strategies.in_order(given_[name], data.draw(strategies.memory_orders()))
    assert_bits_of_the_two_operations(given_, parity, schedule, backend)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rows"), [(1, 1, 96, 1), (6, 3, 160, 3), (80, 20, 64, 2), (9, 9, 256, 1), (3, 70, 32, 1)]
)  # fmt: skip
def test_every_shape_of_block_on_cuda(heads: int, kv_heads: int, head_dim: int, rows: int, backend: str) -> None:
    for dtype in DTYPES["cuda"]:
        assert_bits_of_the_two_operations(arguments(9, dtype, 0, heads, kv_heads, head_dim, rows), False, 1, backend)


def assert_bits_of_the_two_operations(given_: dict[str, Tensor], parity: bool, schedule: int, backend: str) -> None:
    dtype = given_["q"].dtype
    pages = {name: poison.GuardedTensor(given_[name].shape, dtype) for name in ("k_pages", "v_pages")}
    given_.update({name: guarded.tensor for name, guarded in pages.items()})
    with running(backend, schedule) as place, poison.poisoned_outputs():
        there = {name: place(tensor) for name, tensor in given_.items()}
        q_out = ops.qk_norm_mm_rope_paged_write(**there, parity=parity)
        written = {name: there.pop(name) for name in pages}
        expected = {name: torch.full_like(tensor, torch.nan) for name, tensor in written.items()}
        slots, v = there.pop("slots"), there.pop("v")
        q, k = ops.qk_norm_mm_rope(**there, parity=parity)
        ops.paged_write(k, v, **expected, slots=slots)
    tolerances.assert_bitwise_equal(q_out, q, "q")
    for name, guarded in pages.items():
        tolerances.assert_bitwise_equal(written[name], expected[name], name)
        guarded.assert_untouched()


def test_threads_change_no_bit(isa: str) -> None:
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given_ = arguments()
            shapes = {"q": (3000, 4, 32), "k": (3000, 2, 32), "v": (3000, 2, 32)}
            given_.update({name: strategies.randn(shape, torch.float32, 3) for name, shape in shapes.items()})
            given_.update({name: torch.full((200, PAGE_SIZE, 2, 32), torch.nan) for name in ("k_pages", "v_pages")})
            given_["positions"] = torch.arange(9000, dtype=torch.int32).view(-1, 3)
            given_["slots"] = torch.arange(3000).flip(0)
            q = ops.qk_norm_mm_rope_paged_write(**given_)
            runs.append((q, given_["k_pages"], given_["v_pages"]))
    finally:
        torch.set_num_threads(before)
    for name, one, three in zip(("q", "k_pages", "v_pages"), *runs, strict=True):
        tolerances.assert_bitwise_equal(three, one, name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("slot", [-1, 48])
def test_a_slot_outside_the_pages_is_refused_before_anything_is_written(slot: int, backend: str) -> None:
    given_ = arguments()
    given_["slots"][2] = slot
    with pytest.raises(ValueError, match=rf"qk_norm_mm_rope_paged_write: .*{slot}.*the pages hold slots 0\.\.47"):
        ops.qk_norm_mm_rope_paged_write(**given_, backend=backend)
    assert given_["k_pages"].isnan().all()
    assert given_["v_pages"].isnan().all()


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("slot", [-1, 48, 2**31, -(2**63), 2**63 - 1])
def test_a_token_with_a_slot_outside_the_pages_is_left_out_on_cuda(slot: int, backend: str) -> None:
    """Of k and v alone: its q is a result as any other."""
    given_ = arguments()
    pages = {name: poison.GuardedTensor(given_[name].shape, torch.float32) for name in ("k_pages", "v_pages")}
    given_.update({name: guarded.tensor for name, guarded in pages.items()})
    with running(backend) as place:
        expected = {name: place(tensor.clone()) for name, tensor in given_.items()}
        q = ops.qk_norm_mm_rope_paged_write(**expected)
        expected["k_pages"].flatten(0, 1)[given_["slots"][2]] = torch.nan
        expected["v_pages"].flatten(0, 1)[given_["slots"][2]] = torch.nan
        given_["slots"][2] = slot
        there = {name: place(tensor) for name, tensor in given_.items()}
        tolerances.assert_bitwise_equal(ops.qk_norm_mm_rope_paged_write(**there), q)
    for name, guarded in pages.items():
        tolerances.assert_bitwise_equal(there[name], expected[name], name)
        guarded.assert_untouched()


@pytest.mark.parametrize("backend", COMPILED)
def test_integers_that_are_not_contiguous(backend: str) -> None:
    with running(backend) as place:
        plain, strided = ({name: place(x) for name, x in arguments().items()} for _ in range(2))
        plain["positions"] = plain["positions"][:, :1].expand(-1, 3).contiguous()
        strided["positions"] = strided["positions"][:, :1].expand(-1, 3)
        strided["slots"] = strided["slots"].repeat_interleave(2)[::2]
        for given_ in (plain, strided):
            given_["q"] = ops.qk_norm_mm_rope_paged_write(**given_)
    for name in ("q", "k_pages", "v_pages"):
        tolerances.assert_bitwise_equal(strided[name], plain[name], name)


@pytest.mark.parametrize("backend", COMPILED)
def test_pages_beyond_32_bits(backend: str) -> None:
    """Of memory that no one touches between the slots."""
    num_slots = 2**31 // 64 + 1
    given_ = arguments(2, torch.bfloat16)
    with running(backend) as place:
        there = {name: place(tensor) for name, tensor in given_.items()}
        there["slots"] = place(torch.tensor([1, num_slots - 1]))
        for name in ("k_pages", "v_pages"):
            there[name] = torch.empty(num_slots, 1, 2, 32, dtype=torch.bfloat16, device=there["q"].device)
        ops.qk_norm_mm_rope_paged_write(**there)
        written = [there.pop(name)[:, 0].index_select(0, there["slots"]) for name in ("k_pages", "v_pages")]
        there.pop("slots"), there.pop("v")
        k = ops.qk_norm_mm_rope(**there)[1]
    tolerances.assert_bitwise_equal(written[0], k)
    tolerances.assert_bitwise_equal(written[1].cpu(), given_["v"])


@pytest.mark.parametrize("backend", COMPILED)
def test_strides_beyond_32_bits(backend: str) -> None:
    """Of memory that no one touches between the two tokens of q, k and v."""
    given_ = arguments(2, torch.bfloat16)
    with running(backend) as place:
        plain, far = ({name: place(tensor.clone()) for name, tensor in given_.items()} for _ in range(2))
        for name in ("q", "k", "v"):
            near, stride = far[name], 2**31 + 64
            memory = torch.empty(stride + near[0].numel(), dtype=near.dtype, device=near.device)
            far[name] = memory.as_strided(near.shape, (stride, *near.stride()[1:])).copy_(near)
        results = [ops.qk_norm_mm_rope_paged_write(**tensors) for tensors in (plain, far)]
    tolerances.assert_bitwise_equal(results[1], results[0], "q")
    for name in ("k_pages", "v_pages"):
        tolerances.assert_bitwise_equal(far[name], plain[name], name)


@pytest.mark.parametrize("backend", ["cuda"])
def test_pages_that_are_not_aligned_to_16_bytes_are_refused_on_cuda(backend: str) -> None:
    with running(backend) as place:
        there = {name: place(tensor) for name, tensor in arguments().items()}
        crooked = place(torch.zeros(3 * PAGE_SIZE * 2 * 32 + 1))[1:].view(3, PAGE_SIZE, 2, 32)
        for name in ("k_pages", "v_pages"):
            with pytest.raises(ValueError, match=rf"qk_norm_mm_rope_paged_write: {name} begins at .* multiples of 16"):
                ops.qk_norm_mm_rope_paged_write(**{**there, name: crooked})
    assert not crooked.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_flows(backend: str) -> None:
    with running(backend) as place:
        given_ = {name: place(tensor) for name, tensor in arguments().items()}
        for name in ("q", "k", "v", "q_weight", "k_bias"):
            given_[name].requires_grad_()
        assert not ops.qk_norm_mm_rope_paged_write(**given_).requires_grad
        assert not given_["k_pages"].requires_grad


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck_and_compile(backend: str) -> None:
    def function(pages: list[Tensor], given_: dict[str, Tensor]) -> Tensor:
        k_pages, v_pages = pages
        return ops.qk_norm_mm_rope_paged_write(**{**given_, "k_pages": k_pages, "v_pages": v_pages}) * 2

    with running(backend) as place:
        given_ = {name: place(tensor) for name, tensor in arguments().items()}
        plain, compiled = ([place(torch.zeros(3, PAGE_SIZE, 2, 32)) for _ in range(2)] for _ in range(2))
        expected = function(plain, given_)
        torch.compiler.reset()
        actual = torch.compile(function, fullgraph=True, backend="aot_eager")(compiled, given_)
        tolerances.assert_bitwise_equal(actual, expected)
        for left, right in zip(compiled, plain, strict=True):
            tolerances.assert_bitwise_equal(left, right)
        names = ("q", "k", "v", "q_weight", "q_bias", "k_weight", "k_bias", "positions")
        inputs = [given_[name] for name in names] + [place(ops.inverse_frequencies(32)), *plain, given_["slots"]]
        torch.library.opcheck(torch.ops.lumos._qk_norm_mm_rope_paged_write.default, (*inputs, 1e-5, False))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "k has dtype bfloat16; allowed: float32", {"k": torch.ones(4, 2, 32).bfloat16()}),
        (ValueError, r"v has shape \(4, 4, 32\); it must be \[4, 2, 32\]", {"v": torch.ones(4, 4, 32)}),
        (ValueError, r"k_pages has shape \(2, 4, 4, 32\); it must be \[num_pages, page_size, 2, 32\]", {"k_pages": torch.zeros(2, 4, 4, 32)}),
        (ValueError, "v_pages has strides .*; it must be contiguous", {"v_pages": torch.zeros(16, 3, 2, 32).transpose(0, 1)}),
        (TypeError, "slots has dtype int32; allowed: int64", {"slots": torch.zeros(4, dtype=torch.int32)}),
        (ValueError, "q_weight has 3 rows", {"q_weight": torch.ones(3, 32), "q_bias": torch.ones(3, 32)}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Tensor]) -> None:
    with pytest.raises(error, match=f"qk_norm_mm_rope_paged_write: {message}"):
        ops.qk_norm_mm_rope_paged_write(**{**arguments(), **changes})
