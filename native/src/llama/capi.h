// The C API: check, call, catch all. No exception leaves it.
#pragma once

#include "core/params.h"

#include <exception>
#include <new>
#include <string>

struct llama_context;
class morphkv_cache;

// The cache of a context, for one of its sequences. Throws morphkv_error where it has none, or no such sequence.
morphkv_cache & cache_of(llama_context * ctx, int32_t seq_id);

template <typename F> morphkv_status guarded(F && call) {
    morphkv_error_clear();
    try {
        call();
        return MORPHKV_STATUS_OK;
    } catch (const morphkv_error & err) {
        return morphkv_error_set(err.status, err.what());
    } catch (const std::bad_alloc &) {
        return morphkv_error_set(MORPHKV_STATUS_FAILED, "out of memory");
    } catch (const std::exception & err) {
        return morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
    } catch (...) {
        return morphkv_error_set(MORPHKV_STATUS_FAILED, "unknown error");
    }
}

inline void require(bool ok, const std::string & rule) {
    if (!ok) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, rule);
    }
}

template <typename T> void require_size(const T * out, const char * name) {
    require(out, std::string(name) + " must not be NULL");
    require(out->size == sizeof(T), std::string(name) + ".size must be " + std::to_string(sizeof(T)) + ", got " +
                                        std::to_string(out->size) + " (header and library differ)");
}
