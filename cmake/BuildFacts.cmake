# Writes what was built, and how, as a JSON object in a C++ string literal: native/runtime.cpp includes it.

function(llama_runner_build_facts output)
  llama_runner_backend_facts(_backends)
  set(_facts "{}")
  foreach(_fact IN ITEMS
      "llama_cpp_commit|${LLAMA_CPP_COMMIT}"
      "llama_cpp_release|${LLAMA_CPP_RELEASE}"
      "compiler|${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
      "system|${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}"
      "build_type|${CMAKE_BUILD_TYPE}")
    string(REPLACE "|" ";" _pair "${_fact}")
    list(GET _pair 0 _key)
    list(GET _pair 1 _value)
    string(JSON _facts SET "${_facts}" "${_key}" "\"${_value}\"")
  endforeach()
  foreach(_flag IN ITEMS "portable|LLAMA_RUNNER_PORTABLE" "native|GGML_NATIVE")
    string(REPLACE "|" ";" _pair "${_flag}")
    list(GET _pair 0 _key)
    list(GET _pair 1 _variable)
    if(${_variable})
      string(JSON _facts SET "${_facts}" "${_key}" true)
    else()
      string(JSON _facts SET "${_facts}" "${_key}" false)
    endif()
  endforeach()
  string(JSON _facts SET "${_facts}" backends "${_backends}")
  file(CONFIGURE OUTPUT "${output}" CONTENT "static const char LR_BUILD_FACTS[] = R\"json(@_facts@)json\";\n" @ONLY)
endfunction()
