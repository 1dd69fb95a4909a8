# _C_ptxvm: the bindings and launchers of _C, linked with the PTX virtual machine where _C has the CUDA runtime. Test equipment,
# made for the processor that builds it: never part of a release wheel.
file(GLOB ptxvm_sources CONFIGURE_DEPENDS csrc/ptxvm/*.cpp)
add_library(lumos_ptxvm OBJECT ${ptxvm_sources})
lumos_compile_options(lumos_ptxvm)
target_include_directories(lumos_ptxvm PRIVATE ${pybind11_INCLUDE_DIRS} ${Python_INCLUDE_DIRS})
if(NOT LUMOS_SANITIZE)
  target_compile_options(lumos_ptxvm PRIVATE -O3 -march=native)
endif()

pybind11_add_module(_C_ptxvm MODULE NO_EXTRAS ${binding_sources})
lumos_compile_options(_C_ptxvm)
target_compile_definitions(_C_ptxvm PRIVATE LUMOS_PTXVM)
target_link_libraries(_C_ptxvm PRIVATE lumos_runtime lumos_ptxvm ${lumos_kernels_objects} Threads::Threads ${CMAKE_DL_LIBS})
# The machine is called by the names of the CUDA runtime: never bind them to a runtime that torch has loaded.
target_link_options(_C_ptxvm PRIVATE -Wl,-Bsymbolic)
lumos_link_cuda(_C_ptxvm lumos_cuda_ptx -lineinfo --no-compress)
if(LUMOS_WITH_CUDA)
  set_target_properties(lumos_cuda_ptx PROPERTIES CUDA_ARCHITECTURES 80-virtual)
endif()
install(TARGETS _C_ptxvm LIBRARY DESTINATION lumos_engine)
