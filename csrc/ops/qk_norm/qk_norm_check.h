// What every launcher of qk_norm_mm_rope checks.
#pragma once

#include "cpu/error.h"
#include "lumos/qk_norm.h"

namespace lumos {

inline void require_shapes(const char* op, const lumos_qk_norm_params& p) {
  require(p.head_dim > 0 && p.head_dim % 32 == 0, "%s: head_dim is %lld; it must be a multiple of 32", op,
          static_cast<long long>(p.head_dim));
  for (const auto* heads : {&p.q, &p.k}) {
    require(heads->num_rows > 0 && heads->num_heads % heads->num_rows == 0,
            "%s: %lld rows of weights do not divide %lld heads", op, static_cast<long long>(heads->num_rows),
            static_cast<long long>(heads->num_heads));
  }
}

}  // namespace lumos
