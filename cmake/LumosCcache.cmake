# Compile through ccache where it is present, unless the caller chose a launcher.
if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(LUMOS_CCACHE ccache)
  if(LUMOS_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${LUMOS_CCACHE})
  endif()
endif()
