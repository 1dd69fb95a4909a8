# Kernel files are compiled once per instruction set, each time in a namespace of that name (macro LUMOS_ISA). cpu/dispatch.h
# chooses at run time. Only kernel files get these flags: a function that the linker may share between files (inline
# or template outside the namespace) must never be compiled with them.
set(LUMOS_ISAS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND LUMOS_ISAS avx2 avx512)
endif()
set(LUMOS_FLAGS_portable "")
set(LUMOS_FLAGS_avx2 -mavx2 -mfma)
set(LUMOS_FLAGS_avx512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
message(STATUS "lumos: kernels for ${LUMOS_ISAS}")

# lumos_add_kernels(name sources...): object libraries name_<isa>; the parent scope gets name_objects.
function(lumos_add_kernels name)
  set(objects "")
  foreach(isa IN LISTS LUMOS_ISAS)
    add_library(${name}_${isa} OBJECT ${ARGN})
    lumos_compile_options(${name}_${isa})
    target_compile_definitions(${name}_${isa} PRIVATE LUMOS_ISA=${isa})
    target_compile_options(${name}_${isa} PRIVATE ${LUMOS_FLAGS_${isa}})
    if(NOT LUMOS_SANITIZE)
      target_compile_options(${name}_${isa} PRIVATE -O3)
    endif()
    list(APPEND objects ${name}_${isa})
  endforeach()
  set(${name}_objects ${objects} PARENT_SCOPE)
endfunction()
