// What every function of the C API returns: a code, and one sentence for people when it is not LUMOS_OK.
#pragma once

#if defined(__GNUC__)
#define LUMOS_API __attribute__((visibility("default")))
#else
#define LUMOS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lumos_code {
  LUMOS_OK = 0,
  LUMOS_INVALID_ARGUMENT = 1,  // a value out of its allowed range (Python: ValueError)
  LUMOS_UNSUPPORTED_TYPE = 2,  // a dtype that the operation does not take (Python: TypeError)
  LUMOS_OUT_OF_MEMORY = 3,     // (Python: MemoryError)
  LUMOS_INTERNAL_ERROR = 4     // (Python: RuntimeError)
} lumos_code;

typedef struct lumos_status {
  lumos_code code;
  char message[252];
} lumos_status;

#ifdef __cplusplus
}
#endif
