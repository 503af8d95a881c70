// What a program does that is not linked with libllama, as Python is not: load the DLL by its path, ask it what it is, and let
// it check settings. The path is the argument. Its own libraries lie beside it.

#include "morphkv.h"
#include "support/check.h"

#include <string.h>
#include <windows.h>

static HMODULE library;

static FARPROC find(const char * name) {
    const FARPROC res = GetProcAddress(library, name);
    if (!res) {
        fprintf(stderr, "the DLL exports no %s\n", name);
        exit(1);
    }
    return res;
}

// GetProcAddress() gives a function of any type; by way of void *, lest compilers warn.
#define FIND(name) __typeof__(&(name)) my_##name = (__typeof__(&(name))) (void *) find(#name)

int main(int argc, char ** argv) {
    CHECK(argc == 2);
    library = LoadLibraryExA(argv[1], NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
    if (!library) {
        fprintf(stderr, "%s cannot be loaded: error %lu\n", argv[1], GetLastError());
        return 1;
    }
    FIND(morphkv_abi_version);
    FIND(morphkv_version);
    FIND(morphkv_upstream_version);
    FIND(morphkv_params_default);
    FIND(morphkv_params_check);
    FIND(morphkv_last_error);
    FIND(morphkv_device_count);
    find("llama_decode");

    CHECK(my_morphkv_abi_version() == MORPHKV_ABI_VERSION);
    printf("MorphKV %s on llama-cpp-python %s\n", my_morphkv_version(), my_morphkv_upstream_version());
    CHECK(strchr(my_morphkv_version(), '.') && strchr(my_morphkv_upstream_version(), '.'));
    CHECK(my_morphkv_device_count() >= 1);

    morphkv_params params = my_morphkv_params_default();
    CHECK(my_morphkv_params_check(&params) == MORPHKV_STATUS_OK && strcmp(my_morphkv_last_error(), "") == 0);
    params.capacity = 0;
    CHECK(my_morphkv_params_check(&params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(my_morphkv_last_error(), "capacity must be in"));
    CHECK(FreeLibrary(library));
    return 0;
}
