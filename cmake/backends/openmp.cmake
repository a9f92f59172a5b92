# OpenMP: alone as fast as ggml's own threads. With several contexts at work in one process it is the difference between
# working and standing still: ggml's threads spin at a barrier for those that wait for a core, OpenMP's know when there
# are more threads than cores. Measured on 2 cores, SmolLM2-135M, 2 contexts of 2 threads each, tokens a second in all:
# 176 and 168 with OpenMP, 5 and 8 without.

macro(llama_runner_probe_openmp)
  string(CONCAT install "Debian, Ubuntu: it comes with gcc, for clang libomp-dev. Fedora: libgomp, libomp-devel. macOS: "
    "brew install libomp, and -DOpenMP_ROOT=$(brew --prefix libomp). Windows: it comes with the compiler.")
  if(APPLE AND mode STREQUAL "AUTO")
    set(auto_off "it is no part of a Mac's compiler, and a wheel would have to carry it")
  else()
    find_package(OpenMP QUIET)
    if(OpenMP_FOUND)
      set(version "${OpenMP_CXX_VERSION}")
      set(toolkit "OpenMP ${version}")
      set(device "this machine's cores")
    else()
      set(missing "OpenMP support of the compiler ${CMAKE_CXX_COMPILER_ID}")
    endif()
  endif()
endmacro()
