# Toolchain: Windows x86-64 by MinGW-w64 on another system, tests run by wine where it is there.
#
#   cmake -S . -B build/windows -G Ninja -DCMAKE_TOOLCHAIN_FILE=native/cmake/mingw.cmake

set(CMAKE_SYSTEM_NAME      Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
# ggml takes Windows 10 for granted, and MinGW's headers declare what the version has that is asked for.
add_compile_definitions(_WIN32_WINNT=0x0A00)

# -posix: std::thread and std::mutex, which Debian's other flavour of GCC 12 has not.
set(prefix x86_64-w64-mingw32)
find_program(MORPHKV_MINGW_CC  NAMES ${prefix}-gcc-posix ${prefix}-gcc REQUIRED)
find_program(MORPHKV_MINGW_CXX NAMES ${prefix}-g++-posix ${prefix}-g++ REQUIRED)
find_program(MORPHKV_MINGW_RC  NAMES ${prefix}-windres   REQUIRED)
set(CMAKE_C_COMPILER   ${MORPHKV_MINGW_CC})
set(CMAKE_CXX_COMPILER ${MORPHKV_MINGW_CXX})
set(CMAKE_RC_COMPILER  ${MORPHKV_MINGW_RC})

# Programs of this system build, libraries of its own are not linked.
set(CMAKE_FIND_ROOT_PATH /usr/${prefix})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

find_program(MORPHKV_WINE NAMES wine64 wine)
if (MORPHKV_WINE)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${MORPHKV_WINE})
endif()
