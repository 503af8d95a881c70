# Unpack and patch llama.cpp, set its options, add it. Sets MORPHKV_UPSTREAM_DIR.
# Every option is a default only: -D on the command line, or CMAKE_ARGS with pip, wins.

find_package(Python3 REQUIRED COMPONENTS Interpreter)

# A changed script or patch configures again, as does a changed pin (version.cmake), and configuring unpacks again.
file(GLOB MORPHKV_PATCHES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/patches/*.patch)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    scripts/fetch_upstream.py scripts/unpack_upstream.py ${MORPHKV_PATCHES})

# morphkv_unpack(<dest> [option of unpack_upstream.py ...])
function(morphkv_unpack dest)
    set(options ${ARGN})
    if (MORPHKV_UPSTREAM_SDIST)
        list(APPEND options --sdist=${MORPHKV_UPSTREAM_SDIST})
    endif()
    execute_process(
        COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/native/scripts/unpack_upstream.py ${dest} ${options}
        OUTPUT_VARIABLE output OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE result)
    if (NOT result EQUAL 0)
        message(FATAL_ERROR "llama.cpp could not be unpacked, the reason is printed above")
    endif()
    message(STATUS "${output}")
endfunction()

if (MORPHKV_UPSTREAM_TREE)
    set(MORPHKV_UPSTREAM_DIR ${MORPHKV_UPSTREAM_TREE})
    message(STATUS "llama.cpp: ${MORPHKV_UPSTREAM_DIR}, as it is")
else()
    set(MORPHKV_UPSTREAM_DIR ${CMAKE_BINARY_DIR}/upstream)
    morphkv_unpack(${MORPHKV_UPSTREAM_DIR})
endif()

# For wheels. A backend is a module, and of the CPU's there is one for each kind of processor: ggml loads the best that runs.
if (MORPHKV_PORTABLE)
    set(GGML_NATIVE                OFF CACHE BOOL "")
    if (APPLE)
        set(GGML_METAL_EMBED_LIBRARY ON CACHE BOOL "")
    else()
        set(GGML_BACKEND_DL          ON CACHE BOOL "")
        set(GGML_CPU_ALL_VARIANTS    ON CACHE BOOL "")
    endif()
endif()

set(BUILD_SHARED_LIBS     ON  CACHE BOOL "one libllama for Python and for the tools")
set(LLAMA_BUILD_TESTS     OFF CACHE BOOL "")
set(LLAMA_BUILD_EXAMPLES  OFF CACHE BOOL "")
set(LLAMA_BUILD_APP       OFF CACHE BOOL "")
set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "would be downloaded")
set(LLAMA_OPENSSL         OFF CACHE BOOL "a wheel cannot count on the system's OpenSSL")
set(GGML_RPC              ON  CACHE BOOL "layers on other machines: small, and no library beside it")
set(GGML_RPC_RDMA         OFF CACHE BOOL "a wheel cannot count on the system's libibverbs")

# No cache entries: they follow our options, whatever an earlier configure has left.
set(LLAMA_BUILD_COMMON ${MORPHKV_BUILD_TOOLS})
set(LLAMA_BUILD_TOOLS  ${MORPHKV_BUILD_TOOLS})
set(LLAMA_BUILD_SERVER ${MORPHKV_BUILD_TOOLS})
if (LLAMA_BUILD_UI AND NOT MORPHKV_WEBUI)
    message(FATAL_ERROR "the web page is built with MORPHKV_WEBUI=ON, got LLAMA_BUILD_UI=${LLAMA_BUILD_UI}")
endif()
set(LLAMA_BUILD_UI ${MORPHKV_WEBUI})
if (MORPHKV_WEBUI)
    find_program(NPM_EXECUTABLE NAMES npm npm.cmd)
    if (NOT MORPHKV_BUILD_TOOLS OR NOT NPM_EXECUTABLE)
        message(FATAL_ERROR "MORPHKV_WEBUI=ON needs MORPHKV_BUILD_TOOLS=ON and npm, got "
            "${MORPHKV_BUILD_TOOLS} and ${NPM_EXECUTABLE}")
    endif()
endif()

# The package has its libraries in one folder and loads them from Python: upstream's other ways cannot work there.
if (NOT BUILD_SHARED_LIBS OR LLAMA_USE_SYSTEM_GGML)
    message(FATAL_ERROR "morphkv_cpp needs BUILD_SHARED_LIBS=ON and LLAMA_USE_SYSTEM_GGML=OFF, got "
        "${BUILD_SHARED_LIBS} and ${LLAMA_USE_SYSTEM_GGML}")
endif()
# A folder of the machine that builds. Backends are found beside libggml.
if (GGML_BACKEND_DIR)
    message(FATAL_ERROR "morphkv_cpp has its backends beside libggml: GGML_BACKEND_DIR must be empty, got ${GGML_BACKEND_DIR}")
endif()

# Upstream asks git for its commit and would get ours: a new commit of ours would recompile it.
set(ENV{GIT_CEILING_DIRECTORIES} ${CMAKE_BINARY_DIR})
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT llama-cpp-python-${MORPHKV_UPSTREAM_VERSION}-morphkv)

# Everything finds its libraries beside itself or in ../lib, in the build folder as in the installed package. Folders
# outside of the build (a CUDA toolkit) are kept.
if (APPLE)
    set(CMAKE_INSTALL_RPATH @loader_path @loader_path/../lib)
else()
    set(CMAKE_INSTALL_RPATH $ORIGIN $ORIGIN/../lib)
endif()
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

# The patched tree includes morphkv.cmake from there, and our sources join its targets.
set(LLAMA_MORPHKV_DIR ${CMAKE_CURRENT_SOURCE_DIR})

# Excluded: only the targets that install.cmake names are built, and upstream's install rules are not run.
add_subdirectory(${MORPHKV_UPSTREAM_DIR} ${CMAKE_BINARY_DIR}/llama.cpp EXCLUDE_FROM_ALL)
