"""The main loop of each attention kernel in the machine code for compute capability 8.0, read without running it.

    python bench/cuda_sass.py --json sass.json
    python bench/cuda_sass.py csrc/ops/attention/instances/forward_block_bf16_128.cu

The main loop is the natural loop that holds most mma. Of one turn of it the report takes the usual path: of those that start most copies
(cp.async) the one that does most products for its instructions, an mma counting as much as 16 others. That leaves out masks, values
that are not finite and rows that are rescaled. Columns, for one warp and turn:

    mma, others      matrix products; all other instructions for each of them (by kind in the second line)
    between waits    mma after one wait (for copies, or at a barrier) and before the next, in turn
    copies           vectors of 16 bytes that a thread has on their way while products run: fewest and most
    stages           groups of copies under way at most, and the one that is worked on
    live, allocated  registers that hold a value at most: in the whole loop, masks and all; allocated by ptxas

Needs nvcc, nvdisasm and c++filt, no GPU. What an instruction costs is not said here: nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ptxas_resources import CSRC, find_nvcc

SECTION = re.compile(r"^\s*\.section\s+\.text\.([\w$]+)", re.MULTILINE)
ALLOCATED = re.compile(r"SHI_REGISTERS=(\d+)")
LABEL = re.compile(r"^\.(L_\w+):")
LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);(?:.*//\s*\|\s*(\d+))?")
TARGET = re.compile(r"^(.*?)`\(\.(L_\w+)\)")

MMA_WORTH = (
    16  # products that only tiles with values that are not finite need take 20 others each, all other products fewer
)

KINDS = {
    "mma": "HMMA IMMA DMMA",
    "ldmatrix": "LDSM",
    "shared": "LDS STS ATOMS",
    "global": "LDG STG LD ST LDL STL ATOMG RED LDGSTS",
    "ex2 and the like": "MUFU",
    "fp32": "FADD FMUL FFMA FMNMX FSETP FSEL FSET",
    "convert": "F2F F2FP F2I I2F HADD2 HMUL2 HFMA2 PRMT",
    "move": "MOV UMOV CS2R S2R S2UR R2UR SEL R2P P2R",
    "wait": "BAR DEPBAR LDGDEPBAR WARPSYNC BSSY BSYNC MEMBAR NOP",
    "shuffle": "SHFL VOTE VOTEU MATCH REDUX",
    "branch": "BRA EXIT RET CALL BREAK YIELD",
}
KIND_OF = {opcode: kind for kind, opcodes in KINDS.items() for opcode in opcodes.split()}


@dataclass(frozen=True)
class Instruction:
    """``target``: label that a branch goes to; ``falls_through``: whether the next one may follow; ``live``: registers in use."""

    opcode: str
    operands: str
    target: str | None
    falls_through: bool
    live: int

    @property
    def kind(self) -> str:
        name = self.opcode.split(".")[0]
        if self.opcode.startswith("IMAD.MOV"):
            return "move"
        return KIND_OF.get(name, "integer")


@dataclass
class Block:
    """Instructions that run one after the other; ``successors``: numbers of the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def sections(text: str) -> Iterable[tuple[str, int, str]]:
    """(symbol, registers allocated, text) of each kernel in what ``nvdisasm -c -lrm count`` prints."""
    parts = SECTION.split(text)
    for symbol, body in zip(parts[1::2], parts[2::2], strict=True):
        allocated = ALLOCATED.search(body)
        if allocated:
            yield symbol, int(allocated[1]), body


def blocks(text: str) -> list[Block]:
    """The control flow of a kernel; block 0 is its entry."""
    found, labels, branches = [Block()], {}, []
    for line in text.splitlines():
        if label := LABEL.match(line):
            if found[-1].instructions:
                found.append(Block())
            labels[label[1]] = len(found) - 1
        elif match := LINE.match(line):
            predicate, opcode, operands, live = match.groups()
            name = opcode.split(".")[0]
            if name in ("BRX", "JMX", "JMP"):
                raise ValueError(f"cuda_sass: {opcode} jumps to places that the code does not name")
            branch = TARGET.match(operands) if name == "BRA" else None
            conditional = bool(predicate) or bool(branch and branch[1].strip())
            ends = name in ("BRA", "EXIT", "RET")
            last = Instruction(opcode, operands, branch and branch[2], conditional or not ends, int(live or 0))
            found[-1].instructions.append(last)
            if ends:
                branches.append((len(found) - 1, last.target))
                found.append(Block())
    for i, block in enumerate(found[:-1]):
        if not block.instructions or block.instructions[-1].falls_through:
            block.successors.append(i + 1)
    for i, target in branches:
        if target:
            found[i].successors.append(labels[target])
    return found


def order_of(graph: list[Block]) -> list[int]:
    """Blocks that the entry reaches, each behind all others that lead to it but by the end of a loop."""
    seen, order, stack = {0}, [], [(0, iter(graph[0].successors))]
    while stack:
        block, successors = stack[-1]
        following = next((s for s in successors if s not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(graph[following].successors)))
    return order[::-1]


def loops(graph: list[Block]) -> dict[int, set[int]]:
    """Natural loops: header, and all blocks from it to where the loop goes back to it."""
    order = order_of(graph)
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for successor in graph[block].successors:
            before[successor].append(block)
    dominators = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = {block}.union(set.intersection(*(dominators[p] for p in before[block])))
            changed |= new != dominators[block]
            dominators[block] = new
    found: dict[int, set[int]] = {}
    for block in order:
        for header in graph[block].successors:
            if header in dominators[block]:
                body, stack = found.setdefault(header, {header}), [block]
                while stack:
                    if (inside := stack.pop()) not in body:
                        body.add(inside)
                        stack += before[inside]
    return found


def count(instructions: Iterable[Instruction], opcode: str) -> int:
    return sum(i.opcode.split(".")[0] == opcode for i in instructions)


def usual_path(graph: list[Block], header: int, body: set[int]) -> list[Instruction]:
    """One turn; see the head of this file."""
    place = {block: i for i, block in enumerate(order_of(graph))}
    value: dict[int, tuple[int, int]] = {}  # of the best way to the end of a block: (copies, worth)
    before: dict[int, int] = {}
    latch = header
    for block in sorted(body, key=place.__getitem__):
        code = graph[block].instructions
        copies, mma = count(code, "LDGSTS"), count(code, "HMMA")
        so_far = value[before[block]] if block != header else (0, 0)
        value[block] = so_far[0] + copies, so_far[1] + MMA_WORTH * mma - (len(code) - mma)
        for successor in graph[block].successors:
            if successor == header:
                if latch == header or value[block] > value[latch]:
                    latch = block
                continue
            forward = successor in body and place[successor] > place[block]
            if forward and (successor not in before or value[block] > value[before[successor]]):
                before[successor] = block
    path = [latch]
    while path[-1] != header:
        path.append(before[path[-1]])
    return [instruction for block in reversed(path) for instruction in graph[block].instructions]


def pipeline(path: list[Instruction]) -> tuple[list[int], tuple[int, int], int]:
    """(mma between waits, (fewest, most) copies under way while mma run, stages) of a loop that has run for a while."""
    groups: deque[int] = deque()
    between, during, most, current = [0], [0], 0, 0
    for turn in range(4):
        if turn == 3:
            between, during, most = [0], [], 0
        for instruction in path:
            name = instruction.opcode.split(".")[0]
            if name == "LDGSTS":
                current += 1
            elif name == "LDGDEPBAR":
                groups.append(current)
                current = 0
            elif name == "DEPBAR":
                while len(groups) > int(instruction.operands.split(",")[1], 16):
                    groups.popleft()
            elif name == "HMMA":
                between[-1] += 1
                during.append(sum(groups) + current)
            if name in ("DEPBAR", "BAR"):
                between.append(0)
            most = max(most, len(groups))
    before_the_first = between.pop(0)  # these go on where the turn before has ended
    if between:
        between[-1] += before_the_first
    return [n for n in between or [before_the_first] if n], (min(during), max(during)), most + 1


@dataclass(frozen=True)
class Loop:
    """The main loop of one kernel; ``others`` by kind on the usual path. See the head of this file."""

    source: str
    kernel: str
    mma: int
    others: dict[str, int]
    mma_between_waits: list[int]
    copies_in_flight: tuple[int, int]
    stages: int
    live_registers: int
    allocated_registers: int


def main_loops(source: str, disassembly: str) -> list[Loop]:
    """Of every kernel that has a loop with mma."""
    found = []
    for symbol, allocated, text in sections(disassembly):
        graph = blocks(text)
        natural = loops(graph)
        mma = {header: sum(count(graph[b].instructions, "HMMA") for b in body) for header, body in natural.items()}
        if not any(mma.values()):
            continue
        header = max(mma, key=lambda header: (mma[header], -len(natural[header])))
        path = usual_path(graph, header, natural[header])
        kinds = Counter(instruction.kind for instruction in path)
        live = max(i.live for block in natural[header] for i in graph[block].instructions)
        found.append(
            Loop(source, symbol, kinds.pop("mma"), dict(kinds.most_common()), *pipeline(path), live, allocated)
        )
    return found


def find_nvdisasm(nvcc: str) -> str | None:
    """The one on PATH, beside nvcc, or of the wheels beside this Python."""
    wheels = Path(sysconfig.get_path("platlib")) / "nvidia" / "cu13" / "bin"
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=f"{Path(nvcc).resolve().parent}:{wheels}")


def disassembled(nvcc: str, nvdisasm: str, source: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        options = ["-std=c++17", f"-I{CSRC}", f"-I{CSRC / 'include'}", "-arch=sm_80", "-cubin"]
        subprocess.run([nvcc, *options, str(source), "-o", cubin], check=True)
        return subprocess.run(
            [nvdisasm, "-c", "-lrm", "count", cubin], check=True, capture_output=True, text=True
        ).stdout


def readable(symbols: list[str]) -> list[str]:
    """``attention_forward_kernel<__nv_bfloat16, 128, PackedKeys>`` and the like."""
    names = subprocess.run(["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True).stdout
    return [re.sub(r"^void |lumos::|\(.*\)$", "", re.sub(r"\((?:int|bool)\)", "", name)) for name in names.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="default: the attention kernels in 16 bits")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    nvdisasm = nvcc and find_nvdisasm(nvcc)
    if not nvcc or not nvdisasm:
        raise SystemExit(f"cuda_sass: no {'nvdisasm' if nvcc else 'nvcc'}; docs/building_cuda.md says where to get one")
    sources = arguments.sources or sorted(CSRC.glob("ops/attention/instances/*16_*.cu"))
    rows = [row for source in sources for row in main_loops(source.name, disassembled(nvcc, nvdisasm, source))]
    rows = [
        Loop(**{**asdict(row), "kernel": name})
        for row, name in zip(rows, readable([r.kernel for r in rows]), strict=True)
    ]
    print(
        f"{'mma':>5} {'others':>6} {'between waits':>16} {'copies':>7} {'stages':>6} {'live':>4} {'allocated':>9}  kernel"
    )
    for row in rows:
        print(
            f"{row.mma:5} {sum(row.others.values()) / row.mma:6.2f} {' '.join(map(str, row.mma_between_waits)):>16} "
            f"{'-'.join(map(str, row.copies_in_flight)):>7} {row.stages:6} {row.live_registers:4} "
            f"{row.allocated_registers:9}  {row.kernel}\n      "
            + ", ".join(f"{kind} {number / row.mma:.2f}" for kind, number in row.others.items())
        )
    if arguments.json:
        table = [asdict(row) | {"others_per_mma": sum(row.others.values()) / row.mma} for row in rows]
        arguments.json.write_text(json.dumps({"compute_capability": "8.0", "loops": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
