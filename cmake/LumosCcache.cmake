# Compile through ccache where it is present, unless the caller chose a launcher.
find_program(LUMOS_CCACHE ccache)
foreach(language CXX CUDA)
  if(LUMOS_CCACHE AND NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
    set(CMAKE_${language}_COMPILER_LAUNCHER ${LUMOS_CCACHE})
  endif()
endforeach()
