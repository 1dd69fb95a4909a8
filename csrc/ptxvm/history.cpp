#include "ptxvm/history.h"

namespace lumos::ptxvm {

const char* kind_name(Kind kind) {
  switch (kind) {
    case kRead: return "read";
    case kWrite: return "write";
    case kStrongRead: return "strong read";
    case kStrongWrite: return "strong write";
    default: return "atomic access";
  }
}

}  // namespace lumos::ptxvm
