# Metal: part of every Mac. Its kernels go into the library as source, and are compiled on the machine that runs them.

macro(llama_runner_probe_metal)
  set(install "It is part of macOS, and its frameworks of Xcode's command line tools: xcode-select --install")
  if(APPLE)
    find_library(LLAMA_RUNNER_METALKIT MetalKit)
    set(toolkit Metal)
    set(device "this Mac's GPU")
    if(NOT LLAMA_RUNNER_METALKIT)
      set(missing "the MetalKit framework")
    endif()
  else()
    set(missing macOS)
  endif()
endmacro()

macro(llama_runner_use_metal)
  set(GGML_METAL_EMBED_LIBRARY ON CACHE BOOL "Set from LLAMA_RUNNER_METAL" FORCE)
endmacro()
