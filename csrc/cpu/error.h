// Errors inside the library are exceptions; the C API turns them into a lumos_status.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "lumos/status.h"

namespace lumos {

struct Error : std::runtime_error {
  lumos_code code;
  Error(lumos_code error_code, const std::string& message) : std::runtime_error(message), code(error_code) {}
};

// Throws Error(LUMOS_INVALID_ARGUMENT) with a printf-style sentence unless `condition` holds.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline void require(bool condition, const char* format, ...) {
  if (condition) return;
  char message[240];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw Error(LUMOS_INVALID_ARGUMENT, message);
}

inline lumos_status make_status(lumos_code code, const char* message) {
  lumos_status status;
  status.code = code;
  std::snprintf(status.message, sizeof status.message, "%s", message);
  return status;
}

// Body of every extern "C" function: run `body`, return what became of it.
template <class Body>
lumos_status guarded(Body&& body) noexcept {
  try {
    body();
    return make_status(LUMOS_OK, "");
  } catch (const Error& error) {
    return make_status(error.code, error.what());
  } catch (const std::invalid_argument& error) {
    return make_status(LUMOS_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return make_status(LUMOS_OUT_OF_MEMORY, "not enough memory for the scratch space of the operation");
  } catch (const std::exception& error) {
    return make_status(LUMOS_INTERNAL_ERROR, error.what());
  } catch (...) {
    return make_status(LUMOS_INTERNAL_ERROR, "unknown error");
  }
}

}  // namespace lumos
