"""PTX as text: what compilers write is understood, anything else is refused with its line, and no text crashes the machine."""

from __future__ import annotations

import contextlib
import string
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lumos_engine.testing.emulation import KernelFault, Module

HEADER = ".version 9.0\n.target sm_80, debug\n.address_size 64\n"
# Most of what a text may hold, in the way of nvcc. Its kernels write to an array of 32 times 4 bytes for each thread.
TEXT = (
    HEADER
    + r"""
.extern .func  (.param .b32 func_retval0) vprintf
(
	.param .b64 vprintf_param_0,
	.param .b64 vprintf_param_1
)
;
.extern .func stop(.param .b32 stop_param_0) .noreturn;
.func  (.param .align 8 .b8 func_retval0[16]) turn
(
	.param .align 8 .b8 turn_param_0[16],
	.param .b32 turn_param_1
)
;
/* Variables: bytes, .u32 and so on,
   addresses of each other. */
.const .align 4 .b8 table[16] = {0, 0, 192, 63, 0, 0, 0, 64};
.global .align 4 .u32 counter = 7;
.global .align 8 .u64 pointers[2] = {generic(counter), generic(table)+4};
.visible .global .f32 reals[] = {1, -0.5, 0f40490FDB, 0x10};
.extern .global .align 4 .b32 late[];
.global .align 4 .b32 late[3] = {-1, 0x80000000U, 0b101};
.weak .global .attribute(.managed) .align 4 .b8 managed[2][6];
.extern .shared .align 16 .b8 dynamic[];

.func  (.param .align 8 .b8 func_retval0[16]) turn(
	.param .align 8 .b8 turn_param_0[16],
	.param .b32 turn_param_1
)
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<4>;
	.reg .b64 	%rd<3>;
	.loc	1 10 0
	ld.param.u32 	%r1, [turn_param_0];
	mov.b64 	%rd2, turn_param_0;
	ld.param.u64 	%rd1, [%rd2+8];
	ld.param.u32 	%r2, [turn_param_1];
	st.param.b32 	[func_retval0+0], %r2;
	st.param.b64 	[func_retval0+8], 99;
	setp.eq.s32 	%p1, %r1, 2;
	@%p1 ret;
	{
	.reg .b32 %r1;
	mov.b64 	{%r1, _}, %rd1;
	add.s32 	%r3, %r1, %r2;
	}
	mov.b64 	%rd2, {%r1, 0};
	bra.uni 	$L__BB0_1;
	trap;
$L__BB0_1:
	st.param.b32 	[func_retval0+0], %r3;
	st.param.b64 	[func_retval0+8], %rd2;
	ret;
}
// What it keeps is the same for all callers.
.func  (.param .b32 func_retval0) keep(.param .b32 keep_param_0, .param .b32 keep_param_1)
{
	.reg .b32 %r<3>; .reg .pred %p1;
	.shared .align 4 .b32 kept;
	ld.param::func.b32 %r1, [keep_param_0];
	ld.param.b32 %r2, [keep_param_1];
	setp.ne.b32 %p1, %r2, 0;
	@%p1 st.shared.b32 [kept], %r1;
	ld.shared.b32 %r1, [kept];
	st.param.b32 [func_retval0], %r1;
}
	// .globl	variables
.visible .entry variables(
	.param .u64 .ptr .global .align 1 variables_param_0
)
.maxntid 128, 1, 1
.minnctapersm 2
{
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<5>;
	.loc	2 20 3, function_name $L__info_string0, inlined_at 1 30 5
	ld.param.u64 	%rd1, [variables_param_0];
	ld.global.u64 	%rd2, [pointers];
	ld.u32 	%r1, [%rd2];
	ld.global.u64 	%rd3, [pointers+8];
	ld.u32 	%r2, [%rd3+0];
	ld.global.v2.b32 	{%r3, %r4}, [reals + 8];
	mov.u64 	%rd4, late+12;
	ld.global.b32 	%r5, [%rd4+-8];
	ld.global.b32 	%r6, [%rd4 + 4 - 8];
	ld.global.b32 	%r7, [managed+8];
	st.global.v4.b32 	[%rd1], {%r1, %r2, %r3, %r4};
	st.global.v4.b32 	[%rd1+16], {%r5, %r6, %r7, WARP_SZ};
	ret;
}
.visible .entry calls(.param .u64 calls_param_0)
.reqntid 32
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<6>;
	ld.param.u64 	%rd1, [calls_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd1, %r1, 128, %rd1;
	mov.b64 	%rd2, {%r1, 0};
	add.s64 	%rd2, %rd2, 100;
	setp.ne.u32 	%p1, %r1, 5;
	mov.b32 	%r2, 0;
	mov.b64 	%rd3, 0;
	{ // callseq 0, 0
	.reg .b32 temp_param_reg;
	.param .align 8 .b8 param0[16];
	st.param.b32 	[param0+0], %r1;
	st.param.b64 	[param0+8], %rd2;
	.param .b32 param1;
	st.param.b32 	[param1+0], 1000;
	.param .align 8 .b8 retval0[16];
	@%p1 call.uni (retval0), 
	turn, 
	(
	param0, 
	param1
	);
	@%p1 ld.param.b32 	%r2, [retval0+0];
	@%p1 ld.param.b64 	%rd3, [retval0+8];
	} // callseq 0
	mov.b64 	{%r3, _}, %rd3;
	st.global.v2.b32 	[%rd1], {%r2, %r3};
	setp.ne.u32 	%p1, %r1, 0;
	@%p1 bra 	$L__BB4_1;
	call (%r4), keep, (41, 1);
	call (_), keep, (%r4, 0);
	call (%r5), keep, (%r4, 0);
	st.global.v2.b32 	[%rd1+8], {%r4, %r5};
$L__BB4_1:
	{ // callseq 1, 0
	.param .b64 param0;
	st.param.b64 	[param0+0], %rd1;
	.param .b64 param1;
	st.param.b64 	[param1+0], 0;
	.param .b32 retval0;
	call.uni (retval0), vprintf, (param0, param1);
	} // callseq 1
	ret;
}
.visible .entry scopes(.param .u64 scopes_param_0)
{
	.reg .b32 	%r<5>, t, %x1<13>;
	.reg .b64 	%rd1;
	ld.param.u64 	%rd1, [scopes_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd1, %r1, 128, %rd1;
	mov.b32 	t, 50;
	mov.b32 	%x112, 60;
	// begin inline asm
	{ .reg .pred p; .reg .b32 t; mov.b32 t, 0; L: add.u32 t, t, 1; setp.lt.u32 p, t, %r1; @p bra L; mov.b32 %r2, t; }
	// end inline asm
	// begin inline asm
	{ .reg .pred p; .reg .b32 t; mov.b32 t, 5; L: add.u32 t, t, 2; setp.lt.u32 p, t, %r1; @p bra L; {{ mov.b32 %r3, t; }} }
	// end inline asm
	.pragma "nounroll";
	st.global.v4.b32 	[%rd1], {%r2, %r3, t, %x112};
	ret;
}
.visible .entry jumps(.param .u64 jumps_param_0)
{
	.reg .b32 	%r<5>;
	.reg .pred %p<3>;
	.reg .b64 	%rd1;
	ld.param.u64 	%rd1, [jumps_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd1, %r1, 128, %rd1;
	and.b32 	%r2, %r1, 3;
	mov.b32 	%r3, 0;
	{
	$L_brx_0: .branchtargets
		$L__BB6_1,
		$L__BB6_2,
		$L__BB6_1,
		OUTER;
	brx.idx 	%r2, $L_brx_0;
	}
$L__BB6_1: mov.b32 %r3, 11; bra.uni OUTER;
$L__BB6_2: mov.b32 %r3, 22;
OUTER:
	setp.lt.u32 %p0|_, %r1, 16;
	setp.lt.and.u32 %p1|%p2, %r1, 8, %p0;
	selp.b32 %r4, 1, -1, %p1;
	@%p2 mov.b32 %r4, -2;
	setp.lt.or.u32 _|%p2, %r1, 8, !%p0;
	@!%p2 add.s32 %r4, %r4, 100;
	st.global.v2.b32 	[%rd1], {%r3, %r4};
$L__func_end6:
}
	.file	1 "/some where/main \"one\".cu"
	.file	2 "lib/header.cuh", 1700000000, 512
	.section	.debug_str
	{
$L__info_string0:
.b8 95,90,78,54 // Abbreviation Code
.b32 .debug_abbrev
.b64 $L__info_string0-4
	}
"""
)


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(TEXT)


def run(module: Module, kernel: str, num_threads: int = 32) -> list[list[int]]:
    """The numbers that each thread wrote."""
    out = torch.full((num_threads, 32), -7, dtype=torch.int32)
    module.launch(kernel, 1, num_threads, out)
    return [[n for n in row if n != -7] for row in out.tolist()]


def bits(*reals: float) -> list[int]:
    return [struct.unpack("<i", struct.pack("<f", x))[0] for x in reals]


def test_initial_values(module):
    (got,) = run(module, "variables", 1)
    assert got == [7, *bits(2.0, 3.14159274, 16.0), -(2**31), 5, 0, 32]


def test_calls(module):
    got = run(module, "calls")
    for i, numbers in enumerate(got):
        turned = [0, 0] if i == 5 else [1000, 99] if i == 2 else [1100 + i, i]
        assert numbers == turned + ([41, 41] if i == 0 else [])


def test_nested_scopes(module):
    assert run(module, "scopes") == [[max(i, 1), max(7, i + (i - 5) % 2), 50, 60] for i in range(32)]


def test_jumps(module):
    got = run(module, "jumps")
    assert got == [[(11, 22, 11, 0)[i % 4], 101 if i < 8 else -2 if i < 16 else -1] for i in range(32)]


def test_names_of_the_kernels(module):
    assert sorted(module.kernels) == ["calls", "jumps", "scopes", "variables"]


@pytest.mark.parametrize(
    ("kernel", "line"), [("variables", "header.cuh:20"), ("calls", "main.cu:40"), ("turn", "main.cu:10")]
)
def test_source_lines(kernel, line):
    text = TEXT.replace('main \\"one\\".cu', "main.cu")
    text = text.replace("\tmov.u32 \t%r1, %tid.x;\n", "\t.loc\t1 40 2\n\tmov.u32 \t%r1, %tid.x;\n")
    if kernel == "turn":
        text = text.replace("ld.param.u32 \t%r1, [turn_param_0];", "ld.u32 \t%r1, [8];")
    with pytest.raises(KernelFault, match=line):
        Module(text).launch("calls" if kernel == "turn" else kernel, 1, 1, (0).to_bytes(8, "little"))


NUMBERS = {
    "0": 0,
    "-5": -5,
    "0x1F": 31,
    "0XffffFFFFU": 0xFFFFFFFF,
    "-0x80000000": -(2**31),
    "0b1011": 11,
    "017": 15,
    "12U": 12,
    "18446744073709551615": -1,
    "0d3FF8000000000000": 0x3FF8000000000000,
    "-0d3FF8000000000000": 0x3FF8000000000000 - 2**63,
    "0f3FC00000": 0x3FF8000000000000,
    "1.5": 0x3FF8000000000000,
    "-15e-1": 0x3FF8000000000000 - 2**63,
    "1.5E+0": 0x3FF8000000000000,
}


def test_numbers():
    stores = "".join(f"mov.b64 %rd2, {n}; st.global.b64 [%rd1 + {8 * i}], %rd2;\n" for i, n in enumerate(NUMBERS))
    text = HEADER + f".entry k(.param .b64 p) {{ .reg .b64 %rd<3>; ld.param.b64 %rd1, [p];\n{stores} ret; }}"
    out = torch.zeros(len(NUMBERS), dtype=torch.int64)
    Module(text).launch("k", 1, 1, out)
    assert dict(zip(NUMBERS, out.tolist(), strict=True)) == NUMBERS


# Text behind HEADER, which has three lines, and the message.
REFUSED = {
    ".entry k() {\n bra L;\n}": "PTX line 5: unknown name 'L'",
    ".entry k() {\n{ L: }\n bra L;\n}": "PTX line 6: unknown name 'L'",
    ".entry k() {\n L: ret;\n L: ret;\n}": "PTX line 6: 'L' is declared twice",
    ".entry k() {\n .reg .b32 r;\n .reg .b32 r;\n}": "PTX line 6: register 'r' is declared twice",
    ".entry k() {\n .reg .b32 %r<2>;\n @%r1 ret;\n}": "PTX line 6: a predicate is needed",
    ".entry k() {\n .reg .b33 r;\n}": "PTX line 5: '.b33' where the type of a register is needed",
    ".entry k() {\n .reg .b32 %r<2>;\n mov.b32 %r1, 0x;\n}": "PTX line 6: bad number '0x'",
    ".entry k() {\n mov.b32 0f123;\n}": "PTX line 5: bad number '0f123'",
    ".entry k() {\n mov.b32 089;\n}": "PTX line 5: bad number '089'",
    ".entry k() {\n mov.b32 18446744073709551616;\n}": "PTX line 5: bad number '18446744073709551616'",
    ".entry k() {\n ret\n}": "PTX line 6: '}' where an operand is needed",
    ".entry k() {\n /*\n*/ ret; #\n}": "PTX line 6: unexpected character '#'",
    ".entry k() {\n ret; /*\n": "PTX line 5: comment without end",
    ".entry k() {\n ret;\n": "PTX line 6: the text ends where an instruction is needed",
    ".entry k() {\n ret;\n}}": "PTX line 6: '}' where a directive of the file is needed",
    ".entry k() {}\n.entry k() {}": "PTX line 5: 'k' is defined twice",
    ".global .b32 k;\n.entry k() {}": "PTX line 5: 'k' is a variable already",
    ".global .b32 x;\n.global .b32 x;": "PTX line 5: 'x' is declared twice",
    ".global .b32 x = y;": "PTX line 4: unknown name 'y'",
    ".global .b32 y; .global .b32 x = y;": "PTX line 4: an address needs 8 bytes",
    ".global .b16 x[2] = {1, 2, 3};": "PTX line 4: more values than elements",
    ".global .b8 x[100000][100000];": "PTX line 4: the variable is too large",
    ".global .align 3 .b32 x;": "PTX line 4: an alignment must be a power of two of at most 4096",
    ".global .align 1.5 .b32 x;": "PTX line 4: a whole number of at most 2147483647 is needed",
    ".global .pred x;": "PTX line 4: '.pred' is no type of a variable",
    ".entry k() .cluster\n{}": "PTX line 4: unknown attribute '.cluster' of a function",
    ".address_size 32": "PTX line 4: addresses must have 64 bits",
    '.file 1 "x\n': "PTX line 4: string without end",
    ".entry k() {\n call f;\n}": "PTX line 5: unknown name 'f'",
    ".global .b32 f; .entry k() {\n call f;\n}": "PTX line 5: 'f' is no function",
    ".func f() {\n call f;\n} .entry k() { call f; }": "PTX line 5: 'f' calls itself",
    ".func f(.param .b32 a) {} .entry k() {\n call f;\n}": "PTX line 5: the call does not fit the parameters of 'f'",
    ".entry k() {\n .reg .b64 %rd1;\n call %rd1, ();\n}": "PTX line 6: indirect calls are not supported",
    ".entry k() {" + "{" * 101 + "}" * 102: "PTX line 4: braces are nested too deeply",
    "".join(f".func f{i}() {{ {f'call f{i - 1}; call f{i - 1};' if i else ''} }}" for i in range(40))
    + ".entry k() { call f39; }": "too many calls",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_its_line(text):
    with pytest.raises(ValueError) as error:
        Module(HEADER + text)
    assert REFUSED[text] in str(error.value)


def load(text: str) -> None:
    """What is no PTX must be refused in the one way that is documented."""
    with contextlib.suppress(ValueError):
        Module(text)


@given(st.integers(0, len(TEXT)))
def test_truncated(end):
    load(TEXT[:end])


characters = st.sampled_from(string.printable) | st.characters(exclude_categories=["Cs"])  # no text holds a surrogate


@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), characters), min_size=100, max_size=100))
@example([(TEXT.index("bra.uni") + len("bra.uni"), ";")])
def test_one_character_is_damaged(damages):
    for at, character in damages:
        load(TEXT[:at] + character + TEXT[at + 1 :])


@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 40)), min_size=100, max_size=100))
def test_a_part_is_missing(parts):
    for at, length in parts:
        load(TEXT[:at] + TEXT[at + length :])


def test_a_long_text_is_no_burden():
    body = "add.s32 %r1, %r2, 1; { .reg .b32 t; mov.b32 t, %r1; }\n" * 20_000
    Module(HEADER + f".entry k() {{ .reg .b32 %r<9>; mov.b32 %r2, 0;\n{body} }}")
