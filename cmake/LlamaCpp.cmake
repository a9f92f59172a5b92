# llama.cpp, and only what is needed of it: ggml and its backends as shared libraries, so that a process has one
# copy of their global state; llama as a static library that goes into exactly one binary of ours.

set(GGML_BUILD_COMMIT "${LLAMA_CPP_COMMIT}")
set(LLAMA_BUILD_COMMIT "${LLAMA_CPP_COMMIT}")
set(LLAMA_BUILD_NUMBER 0)
if(LLAMA_CPP_RELEASE MATCHES "^b([0-9]+)$")
  set(LLAMA_BUILD_NUMBER "${CMAKE_MATCH_1}")
endif()
set(GGML_BUILD_NUMBER "${LLAMA_BUILD_NUMBER}")
set(GIT_EXE OFF)  # ggml would ask git, and take our commit for its own

set(GGML_CCACHE OFF)  # a compiler launcher is the caller's choice
set(GGML_LLAMAFILE_DEFAULT ON)
set(GGML_CUDA_GRAPHS_DEFAULT ON)
set(GGML_ALL_WARNINGS OFF)
set(LLAMA_ALL_WARNINGS OFF)
set(LLAMA_OPENSSL OFF)
set(LLAMA_BUILD_COMMON ${LLAMA_RUNNER_TOOLS})
set(LLAMA_BUILD_TESTS OFF)
set(LLAMA_BUILD_EXAMPLES OFF)
set(LLAMA_BUILD_TOOLS OFF)
set(LLAMA_BUILD_SERVER OFF)
set(LLAMA_BUILD_APP OFF)

# EXCLUDE_FROM_ALL keeps their install rules (headers, pkg-config, CMake packages) out of the wheel.
set(BUILD_SHARED_LIBS ON)
add_subdirectory("${LLAMA_CPP_DIR}/ggml" ggml EXCLUDE_FROM_ALL)
set(BUILD_SHARED_LIBS OFF)
add_subdirectory("${LLAMA_CPP_DIR}" llama.cpp EXCLUDE_FROM_ALL)

# llama.h's functions are exported from the one binary that llama goes into; nothing else of it is.
target_compile_definitions(llama PUBLIC LLAMA_SHARED PRIVATE LLAMA_BUILD)

set(LLAMA_RUNNER_GGML_TARGETS ggml ggml-base)
get_property(_backends CACHE GGML_AVAILABLE_BACKENDS PROPERTY VALUE)
list(APPEND LLAMA_RUNNER_GGML_TARGETS ${_backends})
list(REMOVE_DUPLICATES LLAMA_RUNNER_GGML_TARGETS)

if(LLAMA_RUNNER_TOOLS)
  foreach(_tool IN ITEMS llama-bench batched-bench completion)
    add_subdirectory("${LLAMA_CPP_DIR}/tools/${_tool}" "tools/${_tool}")
  endforeach()
  # without its user interface, which would be downloaded; they take the root of llama.cpp for the project's
  set(LLAMA_USE_PREBUILT_UI OFF)
  set(_own_root "${PROJECT_SOURCE_DIR}")
  set(PROJECT_SOURCE_DIR "${LLAMA_CPP_DIR}")
  foreach(_tool IN ITEMS mtmd ui server)
    add_subdirectory("${LLAMA_CPP_DIR}/tools/${_tool}" "tools/${_tool}" EXCLUDE_FROM_ALL)
  endforeach()
  set(PROJECT_SOURCE_DIR "${_own_root}")
  # writes a tiny model of every architecture; upstream's own CMake would bring all of its tests along
  add_executable(test-llama-archs EXCLUDE_FROM_ALL "${LLAMA_CPP_DIR}/tests/test-llama-archs.cpp")
  target_link_libraries(test-llama-archs PRIVATE llama llama-common)
  # the C loop that Context.decode is measured against
  add_executable(decode_loop EXCLUDE_FROM_ALL "${CMAKE_CURRENT_SOURCE_DIR}/benchmarks/decode_loop.c")
  target_link_libraries(decode_loop PRIVATE llama)
  set_target_properties(decode_loop PROPERTIES LINKER_LANGUAGE CXX)
endif()
