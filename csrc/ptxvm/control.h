// What the decoder of barriers tells the scheduler.
#pragma once

namespace lumos::ptxvm {

enum class BarrierKind : unsigned char { sync, arrive, reduce_popc, reduce_and, reduce_or };

// Inst::op of a barrier: [0] is the result of a reduction; Inst::aux is the kind, Inst::flags whether the value is
// negated.
constexpr int kBarrierId = 1, kBarrierCount = 2, kBarrierValue = 3;

}  // namespace lumos::ptxvm
