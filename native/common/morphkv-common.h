// MorphKV in programs that use llama.cpp's common arguments: the options, and contexts that are made from them. The only
// functions that patches of common/ call. Without --morphkv each returns before it touches anything.
#pragma once

#include "morphkv.h"

#include <string>
#include <vector>

struct common_arg;
struct common_params;
struct llama_context_params;

// The member `morphkv` of common_params.
struct morphkv_common_params {
    bool        enabled     = false;
    bool        disabled    = false;  // by --no-morphkv
    bool        keep_system = false;  // the whole system prompt is never evicted
    std::string option;               // the first --morphkv-... that was given
    int32_t     n_ctx_slot = 0;       // llama-server: most tokens of a slot, 0 = no limit

    morphkv_params params = morphkv_params_default();

    // llama-server's archive
    std::string archive;         // "auto", "ram" or a path, empty = none
    std::string archive_option;  // the first that says how it is to be
    std::string archive_type;    // of K and V, empty = as in the cache, or, with "auto", q8_0
    int64_t     archive_max_mib = morphkv_archive_params_default().max_bytes / (1024 * 1024);  // 0 = no limit
    std::vector<std::string> attached;  // files that recalls bring from, too
    bool                     recalls  = true;
    bool                     restores = true;
    bool                     follows  = true;  // while an answer is written, as morphkv_write_next() says
    int32_t recall_interval = 0;  // evictions' intervals between recalls while an answer is written, 0 = none then
    float   recall_share    = morphkv_recall_params_default().share;
};

// llama-server's chats on disk, one folder in a process.
struct morphkv_state_options {
    std::string dir;             // empty = none
    std::string option;          // that needs one
    int64_t     max_mib = 8192;  // 0 = no limit
};

extern morphkv_state_options g_morphkv_states;

std::vector<common_arg> morphkv_common_args(const common_params & params);

// After all arguments have been read: throws std::invalid_argument with a sentence where they contradict.
void morphkv_common_args_check(common_params & params);

// ggml_type of --morphkv-archive-type, -1 = as in the cache. Throws std::invalid_argument.
int32_t morphkv_common_archive_type(const morphkv_common_params & morphkv);

// At the end of common_context_params_to_llama(): a context that is only measured has as many cells as MorphKV.
void morphkv_common_context_params(const common_params & params, llama_context_params & cparams);

// Around llama_init_from_model(): the context gets MorphKV, or is freed and nullptr after a log line that says why.
void            morphkv_common_before_context(const common_params & params, const llama_model * model,
                                              llama_context_params & cparams);
llama_context * morphkv_common_after_context(const common_params & params, llama_context * ctx);

// Before a tail is removed from a draft model's context. It evicts at other times than the target, so its recent region may
// be shorter: then the whole sequence is removed. That costs some accepted drafts; to fail would end the process.
void morphkv_common_before_draft_rm(llama_context * ctx_dft, int32_t seq_id, int32_t p0);
