# Use ccache when it is there. Paths below the base folder are hashed relative to the build folder, so that build folders
# share their objects; the objects of a build folder outside of the repository know only that folder.

find_program(MORPHKV_CCACHE ccache)
if (MORPHKV_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    string(FIND "${CMAKE_BINARY_DIR}/" "${CMAKE_SOURCE_DIR}/" MORPHKV_INSIDE)
    if (MORPHKV_INSIDE EQUAL 0)
        set(MORPHKV_CCACHE_BASE ${CMAKE_SOURCE_DIR})
    else()
        set(MORPHKV_CCACHE_BASE ${CMAKE_BINARY_DIR})
    endif()
    set(MORPHKV_LAUNCHER ${CMAKE_COMMAND} -E env
        CCACHE_BASEDIR=${MORPHKV_CCACHE_BASE} CCACHE_NOHASHDIR=1 ${MORPHKV_CCACHE})
    set(CMAKE_C_COMPILER_LAUNCHER    ${MORPHKV_LAUNCHER})
    set(CMAKE_CXX_COMPILER_LAUNCHER  ${MORPHKV_LAUNCHER})
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${MORPHKV_LAUNCHER})
endif()
