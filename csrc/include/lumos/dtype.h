// Element types that cross the C API.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lumos_dtype {
  LUMOS_FLOAT32 = 0,
  LUMOS_BFLOAT16 = 1,
  LUMOS_FLOAT16 = 2,
  LUMOS_FLOAT64 = 3,
  LUMOS_INT32 = 4,
  LUMOS_INT64 = 5,
  LUMOS_UINT8 = 6,
  LUMOS_BOOL = 7
} lumos_dtype;

#ifdef __cplusplus
}
#endif
