// The two sides of a pass of the backward: a block owns tiles of one and visits tiles of the other.
#pragma once

#include "lumos/attention.h"

namespace lumos {

// own: k and v, visited: q and grad_out; or the reverse.
template <bool kOwnsKeys>
struct BackwardSides {
  const lumos_tokens &own0, &own1, &visited0, &visited1;

  __device__ explicit BackwardSides(const lumos_attention_backward_params& b)
      : own0(kOwnsKeys ? b.forward.k : b.forward.q),
        own1(kOwnsKeys ? b.forward.v : b.grad_out),
        visited0(kOwnsKeys ? b.forward.q : b.forward.k),
        visited1(kOwnsKeys ? b.grad_out : b.forward.v) {}
};

}  // namespace lumos
