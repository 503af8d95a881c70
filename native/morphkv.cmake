# Our sources join upstream's targets. Included by the patched CMakeLists.txt of llama.cpp, at its end: of a plain build with
# -DLLAMA_MORPHKV_DIR=<this folder>, and of the build of the Python package.

cmake_minimum_required(VERSION 3.21)
include(${CMAKE_CURRENT_LIST_DIR}/cmake/version.cmake)

# morphkv_join(<target> <folder>): all sources below the folder join the target.
# Compiled one by one (upstream compiles its models in batches of 16). No names clash: an object has the path of its source.
function(morphkv_join target folder)
    set(root ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${folder})
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${root}/*.h ${root}/*.cpp)
    target_sources(${target} PRIVATE ${sources})
    set_source_files_properties(${sources} TARGET_DIRECTORY ${target} PROPERTIES
        SKIP_UNITY_BUILD_INCLUSION ON
        INCLUDE_DIRECTORIES "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/src;${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    set_property(TARGET ${target} PROPERTY MORPHKV_SOURCES ${sources})
endfunction()

morphkv_join(llama src)
target_include_directories(llama
    PUBLIC  $<BUILD_INTERFACE:${CMAKE_CURRENT_LIST_DIR}/include>
    PRIVATE ${CMAKE_CURRENT_LIST_DIR}/src)  # for the patches

# kernels of our own are a library that is opened
target_link_libraries(llama PRIVATE ${CMAKE_DL_LIBS})

get_target_property(morphkv_sources llama MORPHKV_SOURCES)
# Defined for ours alone: a new version must not recompile llama.cpp.
set(morphkv_definitions
    "MORPHKV_VERSION=\"${MORPHKV_VERSION}\""
    "MORPHKV_UPSTREAM_VERSION=\"${MORPHKV_UPSTREAM_VERSION}\"")
set_source_files_properties(${morphkv_sources} TARGET_DIRECTORY llama PROPERTIES
    COMPILE_DEFINITIONS "${morphkv_definitions}")
if (CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    # Vectors never leave a function that is compiled for them: all that takes or returns one is inlined.
    set_source_files_properties(${morphkv_sources} TARGET_DIRECTORY llama PROPERTIES COMPILE_OPTIONS -Wno-psabi)
endif()

# What joins the programs, where upstream's options have them, and the headers that patches include.
function(morphkv_join_if_there target folder)
    if (TARGET ${target})
        morphkv_join(${target} ${folder})
        target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${folder}>)
    endif()
endfunction()

morphkv_join_if_there(llama-common     common)
morphkv_join_if_there(server-context   server)
if (TARGET server-context)
    include(${CMAKE_CURRENT_LIST_DIR}/cmake/page.cmake)
endif()
morphkv_join_if_there(llama-bench-impl bench)

# Kernels of our own lie beside ggml's backend, which needs the same compiler.
if (GGML_CUDA OR GGML_HIP)
    add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/cuda ${CMAKE_BINARY_DIR}/morphkv-kernels)
endif()
