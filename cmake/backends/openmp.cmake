# OpenMP: for one context as fast as ggml's own threads; several contexts at once would ask for too many of them.

macro(llama_runner_probe_openmp)
  string(CONCAT install "Debian, Ubuntu: it comes with gcc, for clang libomp-dev. Fedora: libgomp, libomp-devel. macOS: "
    "brew install libomp, and -DOpenMP_ROOT=$(brew --prefix libomp). Windows: it comes with the compiler.")
  if(mode STREQUAL "AUTO")
    set(auto_off "ggml's own threads are as fast, and do not crowd the cores")
  else()
    find_package(OpenMP QUIET)
    if(OpenMP_FOUND)
      set(version "${OpenMP_CXX_VERSION}")
      set(toolkit "OpenMP ${version}")
    else()
      set(missing "OpenMP support of the compiler ${CMAKE_CXX_COMPILER_ID}")
    endif()
  endif()
endmacro()
