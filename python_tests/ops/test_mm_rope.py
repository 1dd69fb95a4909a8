"""MM-RoPE: the axes, the fp64 reference, and the promises about bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import _C, ops
from lumos_engine.ops import rotary
from lumos_engine.ops._registry import copies
from lumos_engine.testing import check_backend, eager, poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@st.composite
def rotations(draw: st.DrawFn, backend: str = "cpu") -> tuple[Tensor, Tensor]:
    """(x, positions): 0 to 40 tokens, a dtype of ``backend``, any memory order."""
    tokens, heads = draw(st.integers(0, 40)), draw(st.integers(1, 9))
    shape = (tokens, heads, draw(st.sampled_from(strategies.HEAD_DIMS)))
    x = strategies.randn(shape, draw(st.sampled_from(DTYPES[backend])), draw(strategies.seeds()))
    return strategies.in_order(x, draw(strategies.memory_orders())), draw(strategies.position_triples(tokens))


def example(
    tokens: int = 50, heads: int = 3, head_dim: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    positions = torch.randint(0, 3000, (tokens, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return strategies.randn((tokens, heads, head_dim), dtype, 0), positions


# ---- the right numbers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", strategies.HEAD_DIMS)
def test_each_frequency_follows_its_axis(head_dim: int, backend: str) -> None:
    with running(backend) as place:
        rotated = ops.mm_rope(place(torch.ones(3, 1, head_dim)), place(torch.eye(3, dtype=torch.int32) * 2))
    turned = rotated[:, 0, : head_dim // 2] != 1.0
    axes = ["".join("thw"[a] for a in range(3) if turned[a, f]) for f in range(head_dim // 2)]
    assert axes == list("tttthhwwhhwwhhww" * (head_dim // 32))


def test_inverse_frequencies_fall_from_one_to_about_one_over_theta() -> None:
    table = ops.inverse_frequencies(64, theta=500.0)
    torch.testing.assert_close(
        table, 500.0 ** (-torch.arange(32).double() / 32).float(), rtol=tolerances.CLOSED_FORM["rtol"], atol=0
    )
    assert table[0] == 1.0
    table.zero_()
    assert ops.inverse_frequencies(64, theta=500.0)[0] == 1.0, "a caller can spoil the cached table"


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), inverse=st.booleans(), schedule=strategies.seeds())
def test_as_exact_as_promised(data: st.DataObject, inverse: bool, schedule: int, backend: str) -> None:
    x, positions = data.draw(rotations(backend))
    with running(backend, schedule) as place, poison.poisoned_outputs():
        rotated = ops.mm_rope(place(x), place(positions), inverse=inverse).cpu()
    exact = ops.mm_rope(x.double(), positions, inverse=inverse, backend="reference")
    tolerances.assert_within_bound(rotated, exact, eager.mm_rope(x, positions, inverse=inverse), "rotated x")


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data())
def test_parity_rounds_cosine_and_sine(data: st.DataObject, backend: str) -> None:
    x, positions = data.draw(rotations(backend))
    expected = ops.mm_rope(x, positions, parity=True, backend="reference")
    with running(backend) as place:
        error = ulps(ops.mm_rope(place(x), place(positions), parity=True).cpu(), expected)
    assert error <= (8 if x.dtype == torch.float32 else 2)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("half", [0, 1])
def test_parity_rounds_before_the_product(half: int, backend: str) -> None:
    """With one half of x zero each product of two bf16 numbers is exact in fp32: the backends must agree in every bit."""
    x, positions = example(dtype=torch.bfloat16)
    x.unflatten(-1, (2, -1))[..., half, :] = 0.0
    with running(backend) as place:
        rounded, exact = (ops.mm_rope(place(x), place(positions), parity=parity).cpu() for parity in (True, False))
    assert torch.equal(rounded, ops.mm_rope(x, positions, parity=True, backend="reference"))
    for part in (rounded, exact), (rounded.flip(-1), exact.flip(-1)):
        assert not torch.equal(*(x[..., :32] for x in part))


def ulps(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the last place at the largest value of ``expected``."""
    if not actual.numel():
        return 0.0
    unit = tolerances.ulp(expected.dtype, float(expected.abs().max()))
    return float((actual.double() - expected.double()).abs().max()) / unit


def assert_exact_for_far_positions(dtype: torch.dtype, backend: str) -> None:
    positions = torch.randint(0, 2**20, (300, 3), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    x = strategies.randn((300, 2, 96), dtype, 0)
    with running(backend) as place:
        rotated = ops.mm_rope(place(x), place(positions)).cpu()
    exact = ops.mm_rope(x.double(), positions, backend="reference")
    tolerances.assert_within_bound(rotated, exact, eager.mm_rope(x, positions))


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_every_instruction_set_is_exact(isa: str, dtype: torch.dtype) -> None:
    assert_exact_for_far_positions(dtype, "cpu")


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_cuda_is_exact(dtype: torch.dtype, backend: str) -> None:
    assert_exact_for_far_positions(dtype, backend)


def assert_exact_next_to_quarter_turns(backend: str) -> None:
    """Where the reduction cancels most: the floats next to n pi/2, as angles of position 1."""
    n = torch.arange(0, 64 * 5000, 5000, dtype=torch.float64)
    near = (n * (torch.pi / 2)).float()
    for inv_freq in (near, near.nextafter(torch.tensor(torch.inf)), near.nextafter(torch.tensor(-torch.inf))):
        x = torch.zeros(1, 1, 128)
        x[..., :64] = 1.0
        with running(backend) as place:
            turned = ops.mm_rope(place(x), place(torch.ones(1, 3, dtype=torch.int32)), place(inv_freq))[0, 0].cpu()
        angle = inv_freq.double()
        torch.testing.assert_close(
            turned.double(), torch.cat((angle.cos(), angle.sin())), rtol=0, atol=tolerances.ulp(torch.float32, 1.0)
        )


def test_angles_next_to_multiples_of_a_quarter_turn(isa: str) -> None:
    assert_exact_next_to_quarter_turns("cpu")


@pytest.mark.parametrize("backend", ["cuda"])
def test_angles_next_to_multiples_of_a_quarter_turn_on_cuda(backend: str) -> None:
    assert_exact_next_to_quarter_turns(backend)


@pytest.mark.parametrize("backend", COMPILED)
def test_custom_frequencies_and_negative_positions(backend: str) -> None:
    x, positions = example()
    inv_freq = ops.inverse_frequencies(64, theta=1e6)
    with running(backend) as place:
        x, positions, inv_freq = place(x), place(positions), place(inv_freq)
        forward = ops.mm_rope(x, -positions, inv_freq)
        assert torch.equal(forward, ops.mm_rope(x, positions, inv_freq, inverse=True))
        assert not torch.equal(forward, ops.mm_rope(x, -positions))


# ---- inverse, gradient


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data())
def test_inverse_undoes_the_rotation(data: st.DataObject, backend: str) -> None:
    x, positions = data.draw(rotations(backend))
    with running(backend) as place:
        positions_there = place(positions)
        back = ops.mm_rope(ops.mm_rope(place(x), positions_there), positions_there, inverse=True).cpu()
    assert ulps(back, x) <= 4


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("parity", [False, True])
def test_gradient_is_the_inverse_rotation(parity: bool, backend: str) -> None:
    x, positions = example(dtype=torch.bfloat16)
    with running(backend) as place:
        x, positions = place(x).requires_grad_(), place(positions)
        grad = place(strategies.randn(x.shape, x.dtype, 9))
        ops.mm_rope(x, positions, parity=parity).backward(grad)
        assert x.grad is not None
        tolerances.assert_bitwise_equal(x.grad, ops.mm_rope(grad, positions, inverse=True, parity=parity))


def test_gradient_of_the_reference() -> None:
    x, positions = example(tokens=4, heads=2, head_dim=32)
    assert torch.autograd.gradcheck(
        lambda x: ops.mm_rope(x, positions, backend="reference"), (x.double().requires_grad_(),)
    )


# ---- bits


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), parity=st.booleans(), schedule=strategies.seeds())
def test_inplace_writes_the_same_bits_and_nothing_else(
    data: st.DataObject, parity: bool, schedule: int, backend: str
) -> None:
    x, positions = data.draw(rotations(backend))
    with running(backend, schedule) as place:
        x, positions = place(x), place(positions)
        expected = ops.mm_rope(x, positions, parity=parity)
        storage = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        outside = torch.ones(len(storage), dtype=torch.bool, device=x.device)
        outside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(False)
        before = storage[outside].clone()
        assert ops.mm_rope(x, positions, parity=parity, inplace=True) is x
    tolerances.assert_bitwise_equal(x, expected)
    tolerances.assert_bitwise_equal(storage[outside], before, "memory outside x")


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), schedule=strategies.seeds())
def test_memory_order_and_neighbours_change_no_bit(data: st.DataObject, schedule: int, backend: str) -> None:
    x, positions = data.draw(rotations(backend))
    with running(backend) as place:
        x, positions = place(x), place(positions)
        whole = ops.mm_rope(x.contiguous(), positions)
    with running(backend, schedule):
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions), whole)
        for token in range(0, len(x), 7):
            tolerances.assert_bitwise_equal(
                ops.mm_rope(x[token : token + 1], positions[token : token + 1]), whole[token : token + 1]
            )


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x, positions = example(tokens=3000, heads=4, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.mm_rope(x, positions)
        torch.set_num_threads(3)
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cuda"])
def test_properties_on_cuda(backend: str) -> None:
    with running(backend, 7) as place:

        def kernel(x: Tensor, positions: Tensor, **options: bool) -> Tensor:
            return ops.mm_rope(place(x), place(positions), **options)

        check_backend(
            "mm_rope", kernel, backward=True, promises=("run_to_run", "packing"), dtypes=DTYPES["cuda"], max_examples=5
        )


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 32), (3, 160), (70, 64), (2, 1056), (300, 32)])
def test_every_shape_of_block_on_cuda(heads: int, head_dim: int, backend: str) -> None:
    """One head and many; heads that several blocks share, and those that leave threads of a block without work."""
    for dtype in DTYPES["cuda"]:
        x, positions = example(5, heads, head_dim, dtype)
        with running(backend, 1) as place, poison.poisoned_outputs():
            rotated = ops.mm_rope(place(x), place(positions)).cpu()
        exact = ops.mm_rope(x.double(), positions, backend="reference")
        tolerances.assert_within_bound(rotated, exact, eager.mm_rope(x, positions))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("far", ["token", "head"])
def test_strides_beyond_32_bits(far: str, backend: str) -> None:
    """Of memory that no one touches between the two tokens, or heads."""
    stride = 2**31 + 64
    shape, strides = ((2, 1, 64), (stride, 64, 1)) if far == "token" else ((1, 2, 64), (128, stride, 1))
    near, positions = strategies.randn(shape, torch.bfloat16, 0), torch.full((shape[0], 3), 7, dtype=torch.int32)
    with running(backend) as place:
        near, positions = place(near), place(positions)
        x = torch.empty(stride + 64, dtype=near.dtype, device=near.device).as_strided(shape, strides).copy_(near)
        expected = ops.mm_rope(near, positions)
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions), expected)
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions, inplace=True), expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_last_dimension_that_is_not_contiguous_is_copied_and_counted(backend: str) -> None:
    x, positions = example()
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    before = copies["mm_rope.x"]
    with running(backend) as place:
        positions = place(positions)
        tolerances.assert_bitwise_equal(ops.mm_rope(place(strided), positions), ops.mm_rope(place(x), positions))
    assert copies["mm_rope.x"] == before + 1


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("padding", "offset"), [(0, 1), (4, 0)])
def test_what_is_not_aligned_to_16_bytes_is_copied_and_counted_on_cuda(padding: int, offset: int, backend: str) -> None:
    x, positions = example(dtype=torch.bfloat16)
    memory = torch.zeros(50 * 3 * (64 + padding) + offset, dtype=x.dtype)
    crooked = memory[offset:].view(50, 3, 64 + padding)[..., :64].copy_(x)
    before = copies["mm_rope.x"]
    with running(backend) as place:
        x, crooked, positions = place(x), place(crooked), place(positions)
        tolerances.assert_bitwise_equal(ops.mm_rope(crooked, positions), ops.mm_rope(x, positions))
        assert copies["mm_rope.x"] == before + 1
        with pytest.raises(ValueError, match=r"mm_rope: x begins at \d+ .* all must be multiples of 16"):
            ops.mm_rope(crooked, positions, inplace=True)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("tokens", [3, 50, 3000])
def test_positions_and_frequencies_that_are_not_contiguous(tokens: int, backend: str) -> None:
    """Their copies must live until the kernel has read them: small blocks are reused at once."""
    x, positions = example(tokens)
    inv_freq = ops.inverse_frequencies(64)
    with running(backend) as place:
        x, positions, strided = place(x), place(positions), place(inv_freq.repeat_interleave(2))[::2]
        expected = ops.mm_rope(x, positions[:, :1].expand(-1, 3).contiguous(), place(inv_freq))
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions[:, :1].expand(-1, 3), strided), expected)


def test_default_frequencies_are_copied_to_a_device_once() -> None:
    """A call that copied them would make the host wait, and could not be captured in a graph."""
    x = torch.empty(1, 1, 64, device="meta")
    assert rotary.frequencies_at(x, None) is rotary.frequencies_at(x, None)
    assert rotary.frequencies_at(torch.ones(1, 1, 64), None) is rotary.frequencies_at(torch.ones(1, 1, 64), None)


# ---- framework


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend: str) -> None:
    x, positions = example(tokens=5, dtype=torch.bfloat16)
    with running(backend) as place:
        x, *arguments = place(x), place(positions), place(ops.inverse_frequencies(64)), True, True
        torch.library.opcheck(torch.ops.lumos._mm_rope.default, (x.clone().requires_grad_(), *arguments))
        torch.library.opcheck(torch.ops.lumos._mm_rope_.default, (x, *arguments))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_without_graph_breaks(inplace: bool, backend: str) -> None:
    x, positions = example()

    def function(x: Tensor) -> Tensor:
        return ops.mm_rope(x * 2, positions, inplace=inplace) + 1

    torch.compiler.reset()
    with running(backend) as place:
        x, positions = place(x), place(positions)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        tolerances.assert_bitwise_equal(compiled(x), function(x))


# ---- bad input


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x is a list; it must be a tensor", {"x": [1.0]}),
        (TypeError, "x has dtype int64; allowed: float32, bfloat16", {"x": torch.ones(2, 1, 32, dtype=torch.int64)}),
        (TypeError, "x has dtype float64", {"x": torch.ones(2, 1, 32, dtype=torch.float64)}),
        (ValueError, r"x has shape \(2, 32\); it must be \[tokens, heads, head_dim\]", {"x": torch.ones(2, 32)}),
        (ValueError, "head_dim is 48; it must be a positive multiple of 32", {"x": torch.ones(2, 1, 48)}),
        (TypeError, "positions has dtype int64; allowed: int32", {"positions": torch.zeros(2, 3, dtype=torch.int64)}),
        (ValueError, r"positions has shape \(3, 3\); it must be \[2, 3\]", {"positions": torch.zeros(3, 3, dtype=torch.int32)}),
        (ValueError, r"inv_freq has shape \(32,\); it must be \[16\]", {"inv_freq": torch.ones(32)}),
        (TypeError, "inv_freq has dtype float64", {"inv_freq": torch.ones(16, dtype=torch.float64)}),
        (ValueError, "backend is 'tpu'; allowed: reference, cpu, cuda", {"backend": "tpu"}),
        ((RuntimeError, ValueError), "CUDA kernel of it|given a tensor on cpu; move it to a GPU", {"backend": "cuda"}),
        (RuntimeError, "inplace=True cannot give", {"x": torch.ones(2, 1, 32, requires_grad=True), "inplace": True}),
        (ValueError, "inplace=True needs a contiguous last dimension", {"x": torch.ones(2, 32, 3).transpose(1, 2), "inplace": True}),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    error: type[Exception] | tuple[type[Exception], ...], message: str, changes: dict[str, object]
) -> None:
    arguments: dict[str, object] = {"x": torch.ones(2, 1, 32), "positions": torch.zeros(2, 3, dtype=torch.int32)}
    with pytest.raises(error, match=message):
        ops.mm_rope(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((30,), "head_dim is 30"), ((64, 0.0), "theta is 0"), ((64, float("nan")), "theta is nan")],
)
def test_bad_frequencies_are_named(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.inverse_frequencies(*arguments)  # type: ignore[arg-type]
