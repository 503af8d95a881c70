# What a build by MinGW-w64 needs beside upstream's CMake.

include(CheckCSourceCompiles)

# ggml asks Windows 8 and newer not to slow its threads down, by a struct that MinGW-w64 10 (Debian 12) does not declare. One
# file forgoes that there.
check_c_source_compiles("
    #include <windows.h>
    int main(void) { THREAD_POWER_THROTTLING_STATE state = { 0 }; return (int) state.Version; }"
    MORPHKV_HAVE_POWER_THROTTLING)
if (NOT MORPHKV_HAVE_POWER_THROTTLING)
    set_source_files_properties(${MORPHKV_UPSTREAM_DIR}/ggml/src/ggml-cpu/ggml-cpu.c TARGET_DIRECTORY ggml-cpu
        PROPERTIES COMPILE_OPTIONS "-U_WIN32_WINNT;-D_WIN32_WINNT=0x0601")
endif()

# The DLLs of GCC's runtime beside ours, in the build folder and in the package: Windows has none of its own.
foreach(name libgcc_s_seh-1.dll libstdc++-6.dll libwinpthread-1.dll libgomp-1.dll)
    # GCC gives the bare name of what it does not know: MSYS2 has some in its bin, and clang needs other ones.
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${name}
        OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if (IS_ABSOLUTE "${path}" AND EXISTS "${path}")
        configure_file(${path} ${CMAKE_BINARY_DIR}/bin/${name} COPYONLY)
        install(FILES ${path} DESTINATION ${MORPHKV_PACKAGE_DIR}/bin)
    endif()
endforeach()
