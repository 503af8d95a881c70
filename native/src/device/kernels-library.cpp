#include "device/kernels-library.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

#if defined(_WIN32)
void * open_library(const std::string & path, std::string * why) {
    void * res = (void *) LoadLibraryA(path.c_str());
    *why       = "error " + std::to_string(GetLastError());
    return res;
}

void * find_symbol(void * library, const char * name) {
    return (void *) GetProcAddress((HMODULE) library, name);
}

std::string file_of(const void * function) {
    HMODULE     module = nullptr;
    char        path[MAX_PATH];
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExA(flags, (LPCSTR) function, &module) || !GetModuleFileNameA(module, path, MAX_PATH)) {
        return "";
    }
    return path;
}

const char *const PREFIX = "", *const SUFFIX = ".dll", *const SLASHES = "/\\";
#else
void * open_library(const std::string & path, std::string * why) {
    void * res = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    *why       = res ? "" : dlerror();
    return res;
}

void * find_symbol(void * library, const char * name) {
    return dlsym(library, name);
}

std::string file_of(const void * function) {
    Dl_info info;
    return function && dladdr(function, &info) && info.dli_fname ? info.dli_fname : "";
}

const char *const PREFIX = "lib", *const SUFFIX = ".so", *const SLASHES = "/";
#endif

// The folder of the library that a function is in, with the slash behind it; "" where that is unknown.
std::string folder_of(const void * function) {
    const std::string file = file_of(function);
    const size_t      i    = file.find_last_of(SLASHES);
    return i == std::string::npos ? "" : file.substr(0, i + 1);
}

// Of what MORPHKV_CUDA_KERNELS says.
std::string setting() {
    const char * res = getenv("MORPHKV_CUDA_KERNELS");
    return res ? res : "";
}

// Null, and why: a library that is opened stays, as CUDA's own do.
std::unique_ptr<morphkv_kernels_library> open(const std::string & path, const std::string & registry,
                                              std::string * why) {
    void * library = open_library(path, why);
    if (!library) {
        return nullptr;
    }
    const auto version = (morphkv_kernels_version_t) find_symbol(library, "morphkv_kernels_version");
    const auto serves  = (morphkv_kernels_registry_t) find_symbol(library, "morphkv_kernels_registry");
    const auto run     = (morphkv_kernels_run_t) find_symbol(library, "morphkv_kernels_run");
    const auto n_bytes = (morphkv_kernels_n_bytes_t) find_symbol(library, "morphkv_kernels_n_bytes");
    if (!version || version() != MORPHKV_KERNELS_VERSION || !serves || !run || !n_bytes) {
        *why = "it must have version " + std::to_string(MORPHKV_KERNELS_VERSION) + " of MorphKV's kernels, and has " +
               (version ? std::to_string(version()) : "none");
        return nullptr;
    }
    if (registry != serves()) {
        *why = "";
        return nullptr;
    }
    return std::unique_ptr<morphkv_kernels_library>(
        new morphkv_kernels_library{ path, run, n_bytes, setting() == "unchecked" });
}

std::unique_ptr<morphkv_kernels_library> find(ggml_backend_reg_t reg) {
    const std::string registry = ggml_backend_reg_name(reg), given = setting();
    std::string       why;
    if (given == "0") {
        return nullptr;
    }
    if (given.find_first_of(SLASHES) != std::string::npos) {
        auto res = open(given, registry, &why);
        if (!why.empty()) {
            morphkv_kernels_log(GGML_LOG_LEVEL_WARN, "MORPHKV_CUDA_KERNELS=" + given + " is not used: " + why);
        }
        return res;
    }
    const std::string name = registry == "CUDA" ? "morphkv-cuda" : registry == "ROCm" ? "morphkv-hip" : "";
    if (name.empty()) {
        return nullptr;
    }
    // any function of the backend's
    const void * of_backend = ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
    for (const std::string & folder :
         { folder_of(of_backend), folder_of((const void *) &morphkv_kernels_library_for), std::string() }) {
        if (auto res = open(folder + PREFIX + name + SUFFIX, registry, &why)) {
            return res;
        }
    }
    return nullptr;
}

}  // namespace

void morphkv_kernels_log(ggml_log_level level, const std::string & text) {
    ggml_log_callback callback;
    void *            data;
    ggml_log_get(&callback, &data);
    callback(level, ("MorphKV: " + text + "\n").c_str(), data);
}

const morphkv_kernels_library * morphkv_kernels_library_for(ggml_backend_dev_t dev) {
    static std::mutex                                                                                     mutex;
    static std::map<std::pair<ggml_backend_reg_t, std::string>, std::unique_ptr<morphkv_kernels_library>> known;

    ggml_backend_reg_t reg = dev ? ggml_backend_dev_backend_reg(dev) : nullptr;
    if (!reg) {
        return nullptr;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    // tests change the setting
    const auto                        key = std::make_pair(reg, setting());
    auto                              it  = known.find(key);
    if (it == known.end()) {
        it = known.emplace(key, find(reg)).first;
    }
    return it->second.get();
}
