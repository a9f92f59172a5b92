# Sets LLAMA_CPP_DIR, LLAMA_CPP_COMMIT and LLAMA_CPP_RELEASE; fetches the pinned source where it is missing.

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)

set(_pin "${CMAKE_CURRENT_SOURCE_DIR}/vendor/pin.json")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_pin}")
file(READ "${_pin}" _pin_json)
string(JSON LLAMA_CPP_COMMIT GET "${_pin_json}" commit)
string(JSON LLAMA_CPP_RELEASE GET "${_pin_json}" release)

if(LLAMA_RUNNER_LLAMA_CPP_DIR)
  cmake_path(ABSOLUTE_PATH LLAMA_RUNNER_LLAMA_CPP_DIR NORMALIZE OUTPUT_VARIABLE LLAMA_CPP_DIR)
  if(NOT EXISTS "${LLAMA_CPP_DIR}/include/llama.h")
    message(FATAL_ERROR "LLAMA_RUNNER_LLAMA_CPP_DIR=${LLAMA_CPP_DIR} holds no llama.cpp source (include/llama.h is missing)")
  endif()
  set(LLAMA_CPP_COMMIT "custom")
  set(LLAMA_CPP_RELEASE "custom")
else()
  set(LLAMA_CPP_DIR "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/vendor/fetch_llama_cpp.py"
    RESULT_VARIABLE _fetched)
  if(NOT _fetched EQUAL 0)
    message(FATAL_ERROR "No llama.cpp source; the lines above say what was tried and how to go on.")
  endif()
endif()
