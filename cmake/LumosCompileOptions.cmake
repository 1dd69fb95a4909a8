# Options common to every target.
#
# -ffp-contract=off: kernels name each fused multiply-add (cpu/simd.h), so that the same sum has the same bits in every loop
# of one instruction set. -fno-math-errno and -fno-trapping-math change no value.
function(lumos_compile_options target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/include ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_options(${target} PRIVATE -Wall -Wextra -ffp-contract=off -fno-math-errno -fno-trapping-math)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-psabi) # vector types cross no library boundary
  endif()
  if(LUMOS_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(LUMOS_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${LUMOS_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer -g1 -O1)
    target_link_options(${target} PUBLIC -fsanitize=${LUMOS_SANITIZE})
  endif()
endfunction()
