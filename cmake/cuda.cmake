# pyalign._cuda: csrc/<operation>/*.cu, csrc/bindings/<operation>_cuda.cpp, which register themselves, and *_emulated.cpp,
# which runs the same kernels on the host for tests.
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(PYALIGN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
  if(PYALIGN_NVCC)
    set(CMAKE_CUDA_COMPILER ${PYALIGN_NVCC})
  endif()
endif()
# Chosen per target below; what CMake tries the compiler with is of no matter.
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(PYALIGN_CUDA_WHY_NOT)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    set(PYALIGN_CUDA_WHY_NOT "it needs nvcc 12.0 or newer, found ${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
else()
  set(PYALIGN_CUDA_WHY_NOT "no CUDA compiler was found: set CUDACXX")
endif()
if(PYALIGN_CUDA_WHY_NOT)
  if(PYALIGN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PYALIGN_CUDA=ON, but ${PYALIGN_CUDA_WHY_NOT}")
  endif()
  message(STATUS "pyalign._cuda is not built: ${PYALIGN_CUDA_WHY_NOT}")
  return()
endif()

# SHORT: Hopper's own code, and intermediate code from which the driver makes that of every other GPU since Ampere.
if(PYALIGN_CUDA_ARCHITECTURES STREQUAL "SHORT")
  set(architectures 80-virtual 90-real)
elseif(PYALIGN_CUDA_ARCHITECTURES STREQUAL "FULL")
  set(architectures 80-real 86-real 89-real 90-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND architectures 100-real 120)
  else()
    list(APPEND architectures 90-virtual)
  endif()
else()
  set(architectures ${PYALIGN_CUDA_ARCHITECTURES})
endif()

set(PYALIGN_CUDA_SOURCES csrc/bindings/cuda_module.cpp csrc/bindings/tensor.cpp csrc/core/thread_pool.cpp
                         csrc/core/cuda_device.cu)
foreach(operation IN LISTS PYALIGN_OPERATIONS)
  file(GLOB sources CONFIGURE_DEPENDS csrc/${operation}/*.cu csrc/${operation}/*_emulated.cpp
       csrc/bindings/${operation}_cuda.cpp)
  list(APPEND PYALIGN_CUDA_SOURCES ${sources})
  if(operation STREQUAL "linear_assignment") # as on the CPU: the same assignment on every machine
    set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false>")
  endif()
endforeach()

pybind11_add_module(_cuda MODULE NO_EXTRAS ${PYALIGN_CUDA_SOURCES})
target_include_directories(_cuda PRIVATE csrc)
target_link_libraries(_cuda PRIVATE Threads::Threads)
set_target_properties(_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
                                       CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES "${architectures}")
string(REPLACE ";" " " architectures "${architectures}")
target_compile_definitions(_cuda PRIVATE PYALIGN_CUDA_ARCHITECTURES="${architectures}"
                                         PYALIGN_NVCC="nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${PYALIGN_WARNINGS}>
                                     $<$<COMPILE_LANGUAGE:CUDA>:--threads=0>)
if(NOT MSVC)
  target_compile_options(_cuda PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:${PYALIGN_OPTIMISE}>
                                       $<$<COMPILE_LANGUAGE:CUDA>:-O3 -Xcompiler=-Wall,-Wextra>)
endif()
if(PYALIGN_WERROR)
  target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings>)
  if(NOT MSVC)
    target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
endif()
# The static runtime's symbols stay inside: torch loads a CUDA runtime of its own.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(_cuda PRIVATE -Wl,--exclude-libs,ALL)
endif()
install(TARGETS _cuda LIBRARY DESTINATION pyalign)
