"""``undetected_deletions`` finds the barriers that a kernel does not need, and those only."""

from __future__ import annotations

import torch

from lumos_engine.testing.deletions import undetected_deletions
from lumos_engine.testing.emulation import Module

# Each thread hands its word to the thread of the other warp, twice through the same place. Needed: wait and barrier behind the
# copy, the barrier before the place is written again, and the one after. Superfluous: two barriers in a row, a commit of nothing.
TURNS = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry turns(.param .u64 data, .param .u32 skipped)
{
  .reg .pred %p<2>;
  .reg .b32 %r<8>;
  .reg .b64 %d<3>;
  .shared .align 16 .b8 tile[256];
  ld.param.u64 %d0, [data];
  ld.param.u32 %r6, [skipped];
  mov.u32 %r0, %tid.x;
  mad.wide.u32 %d1, %r0, 4, %d0;
  mov.u32 %r1, tile;
  mad.lo.u32 %r2, %r0, 4, %r1;
  xor.b32 %r3, %r0, 32;
  mad.lo.u32 %r3, %r3, 4, %r1;
  cp.async.ca.shared.global [%r2], [%d1], 4;
  cp.async.commit_group;
  cp.async.wait_group 0;
  bar.sync 0;
  bar.sync 1;
  ld.shared.u32 %r4, [%r3];
  bar.sync 0;
  add.u32 %r4, %r4, 1;
  st.shared.u32 [%r2], %r4;
  bar.sync 0;
  ld.shared.u32 %r4, [%r3];
  st.global.u32 [%d1], %r4;
  cp.async.commit_group;
  setp.ne.u32 %p0, %r6, 0;
  @%p0 bra DONE;
  bar.sync 2;
DONE:
  ret;
}
"""


def test_undetected() -> None:
    module = Module(TURNS)

    def run() -> None:
        data = torch.arange(64, dtype=torch.int32)
        module.launch("turns", 1, 64, data, 1)
        assert data.tolist() == list(range(1, 65))

    found = undetected_deletions(run, "turns", module.synchronisations("turns"))
    opcodes = [each["opcode"] for each in module.synchronisations("turns")]
    assert opcodes == [
        *["cp.async.commit_group", "cp.async.wait_group"],
        *["bar.sync"] * 4,
        "cp.async.commit_group",
        "bar.sync",
    ]
    order = [each["index"] for each in module.synchronisations("turns")]
    assert [order.index(each["index"]) for each in found] == [2, 3, 6]
