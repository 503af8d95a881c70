#include "morphkv-common.h"

#include "arg.h"
#include "common.h"
#include "core/types.h"
#include "log.h"
#include "morphkv-values.h"
#include "speculative.h"

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>

morphkv_state_options g_morphkv_states;

//
// options
//

static std::invalid_argument refusal(const std::string & sentence) {
    return std::invalid_argument("error: " + sentence);
}

static morphkv_params & given(common_params & params, const char * option) {
    if (params.morphkv.option.empty()) {
        params.morphkv.option = option;
    }
    return params.morphkv.params;
}

static morphkv_common_params & given_archive(common_params & params, const char * option) {
    given(params, option);
    if (params.morphkv.archive_option.empty()) {
        params.morphkv.archive_option = option;
    }
    return params.morphkv;
}

// As `morphkv chat` calls it: --capacity is --morphkv-capacity, --no-archive is --no-morphkv-archive.
static const char * short_name(const std::string & name) {
    static std::set<std::string> names;
    const size_t                 at = name.find("-morphkv-");
    return at == std::string::npos ? nullptr : names.insert(std::string(name).erase(at, 8)).first->c_str();
}

std::vector<common_arg> morphkv_common_args(const common_params & params) {
    const morphkv_params & p = params.morphkv.params;

    std::vector<common_arg> res;
    auto                    add = [&](common_arg arg, const char * env) {
        for (auto * names : { &arg.args, &arg.args_neg }) {
            if (const char * name = short_name(names->empty() ? "" : names->front())) {
                names->push_back(name);
            }
        }
        res.push_back(arg.set_env(env));
    };

    add(common_arg(
            { "--morphkv" }, { "--no-morphkv" },
            string_format("MorphKV: a KV cache of constant size per slot, for texts of any length. Per layer and KV "
                          "head it keeps the newest tokens, plus older tokens that recent queries still attend to. "
                          "--keep N: the first N are never evicted (0: %d); -c N: limit of a slot (0: no limit); "
                          "--ctx-checkpoints: before and behind each answer, as many as fit in an eighth of the "
                          "memory, 4 to 32 a slot, 32 tokens apart "
                          "(default: %s)",
                          p.keep, params.morphkv.enabled ? "enabled" : "disabled"),
            [](common_params & params, bool value) {
                params.morphkv.enabled  = value;
                params.morphkv.disabled = !value;
            }),
        "LLAMA_ARG_MORPHKV");
    add(common_arg(
            { "--morphkv-capacity" }, "N",
            string_format("MorphKV: tokens kept per KV head after an eviction, everything included (default: %d)",
                          p.capacity),
            [](common_params & params, int value) { given(params, "--morphkv-capacity").capacity = value; }),
        "LLAMA_ARG_MORPHKV_CAPACITY");
    add(common_arg({ "--morphkv-window" }, "N",
                   string_format("MorphKV: newest tokens, never evicted; their queries vote (default: %d)", p.window),
                   [](common_params & params, int value) { given(params, "--morphkv-window").window = value; }),
        "LLAMA_ARG_MORPHKV_WINDOW");
    add(common_arg({ "--morphkv-votes" }, "N",
                   string_format("MorphKV: how many of the newest queries vote (default: %d, 0 = the window)", p.votes),
                   [](common_params & params, int value) { given(params, "--morphkv-votes").votes = value; }),
        "LLAMA_ARG_MORPHKV_VOTES");
    add(common_arg(
            { "--morphkv-prompt-room" }, "N",
            string_format("MorphKV: cells beyond the capacity that a prompt may fill before tokens are evicted; "
                          "they cost memory (default: %d)",
                          p.prompt_room),
            [](common_params & params, int value) { given(params, "--morphkv-prompt-room").prompt_room = value; }),
        "LLAMA_ARG_MORPHKV_PROMPT_ROOM");
    add(common_arg(
            { "--morphkv-interval" }, "N",
            string_format("MorphKV: evict when the recent tokens exceed the window by N (default: %d)", p.interval),
            [](common_params & params, int value) { given(params, "--morphkv-interval").interval = value; }),
        "LLAMA_ARG_MORPHKV_INTERVAL");
    add(common_arg({ "--morphkv-fusion" }, "{sum,max}",
                   string_format("MorphKV: how the votes of the window's queries are combined (default: %s)",
                                 p.fusion == MORPHKV_FUSION_MAX ? "max" : "sum"),
                   [](common_params & params, const std::string & value) {
                       given(params, "--morphkv-fusion").fusion = morphkv_to_fusion(value);
                   }),
        "LLAMA_ARG_MORPHKV_FUSION");
    add(common_arg(
            { "--morphkv-policy" }, "NAME",
            string_format("MorphKV: what ranks older tokens: morphkv (votes of the newest queries) or committees "
                          "(half by these, half by the sums of a token's votes), or for comparison h2o (by the "
                          "sums), recency or random (default: %s)",
                          morphkv_policy_name(p.policy).c_str()),
            [](common_params & params, const std::string & value) {
                given(params, "--morphkv-policy").policy = morphkv_to_policy(value);
            }),
        "LLAMA_ARG_MORPHKV_POLICY");
    add(common_arg({ "--morphkv-protect" }, "N",
                   string_format("MorphKV: tokens before the window that are never evicted either, and do not vote "
                                 "(default: %d, -1 = as many as the policy takes)",
                                 p.protect),
                   [](common_params & params, int value) { given(params, "--morphkv-protect").protect = value; }),
        "LLAMA_ARG_MORPHKV_PROTECT");
    add(common_arg({ "--morphkv-decay" }, "X",
                   string_format("MorphKV: weight of a token's score at the last eviction, in [0, 1) (default: %.1f)",
                                 (double) p.decay),
                   [](common_params & params, const std::string & value) {
                       given(params, "--morphkv-decay").decay = morphkv_to_float(value);
                   }),
        "LLAMA_ARG_MORPHKV_DECAY");
    add(common_arg({ "--morphkv-rope-limit" }, "N",
                   string_format("MorphKV: RoPE's positions stay below N, while the text's go on (default: %d, "
                                 "-1 = the trained context, 0 = no limit)",
                                 p.rope_limit),
                   [](common_params & params, int value) { given(params, "--morphkv-rope-limit").rope_limit = value; }),
        "LLAMA_ARG_MORPHKV_ROPE_LIMIT");
    add(common_arg({ "--morphkv-layers" }, "{equal,FILE,all:N:FILE}",
                   "MorphKV: how layers share the cells: all alike, or by a profile, in which a quarter of them keeps "
                   "more; with all:N those N that need it most keep all tokens, up to -c or the trained context, in "
                   "memory of their own (default: equal)",
                   [](common_params & params, const std::string & value) {
                       auto & p         = given(params, "--morphkv-layers");
                       p.n_large        = 0;
                       p.large_capacity = 0;
                       if (value != "equal") {
                           const auto large = morphkv_read_large_layers(value);
                           p.n_large        = large.layers.size();
                           p.large_capacity = large.keeps_all ? -1 : 0;
                           std::copy(large.layers.begin(), large.layers.end(), p.large_layers);
                       }
                   }),
        "LLAMA_ARG_MORPHKV_LAYERS");
    add(common_arg({ "--morphkv-keep-system" }, { "--no-morphkv-keep-system" },
                   string_format("MorphKV: never evict the system prompt of a chat, instead of its first --keep tokens "
                                 "(default: %s)",
                                 params.morphkv.keep_system ? "enabled" : "disabled"),
                   [](common_params & params, bool value) {
                       given(params, "--morphkv-keep-system");
                       params.morphkv.keep_system = value;
                   })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_KEEP_SYSTEM");
    add(common_arg({ "--morphkv-archive" }, "{auto,ram,PATH}",
                   "MorphKV: store what leaves a slot's window in memory, or in a file (slot N > 0: PATH.N), and "
                   "recall it when a prompt asks for it; auto: in memory, in q8_0, where the model allows it "
                   "(default: nothing is stored)",
                   [](common_params & params, const std::string & value) {
                       given(params, "--morphkv-archive");
                       params.morphkv.archive = value;
                   })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_ARCHIVE");
    add(common_arg({ "--no-morphkv-archive" }, "MorphKV: store nothing",
                   [](common_params & params) {
                       given(params, "--no-morphkv-archive");
                       params.morphkv.archive.clear();
                   })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_NO_MORPHKV_ARCHIVE");
    add(common_arg(
            { "--morphkv-archive-type" }, "TYPE",
            "MorphKV: data type of archived K and V: f32, f16, bf16, q8_0, q5_0 or q4_0 (default: as in the cache)",
            [](common_params & params, const std::string & value) {
                given_archive(params, "--morphkv-archive-type").archive_type = value;
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_ARCHIVE_TYPE");
    add(common_arg(
            { "--morphkv-archive-max" }, "N",
            string_format(
                "MorphKV: limit in MiB for the archives of all slots together, in equal parts; the oldest tokens "
                "are dropped (default: %d, 0 = no limit)",
                (int) params.morphkv.archive_max_mib),
            [](common_params & params, int value) {
                given_archive(params, "--morphkv-archive-max").archive_max_mib = value;
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_ARCHIVE_MAX");
    add(common_arg(
            { "--morphkv-attach" }, "FILE",
            "MorphKV: a text that `morphkv read` has written to FILE: all slots recall from it, beside their own "
            "archives (default: auto); it is read only, and others may share it; may be repeated",
            [](common_params & params, const std::string & value) {
                given(params, "--morphkv-attach");
                params.morphkv.attached.push_back(value);
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_ATTACH");
    add(common_arg(
            { "--morphkv-recall" }, "{auto,prompt,off,N}",
            "MorphKV: when to recall from the archive: at each prompt and while an answer is written as it needs "
            "(auto), at each prompt alone, never, or (N) at each prompt and every N intervals of evictions "
            "(default: auto)",
            [](common_params & params, const std::string & value) {
                auto & morphkv          = given_archive(params, "--morphkv-recall");
                morphkv.recalls         = value != "off";
                morphkv.follows         = value == "auto";
                morphkv.recall_interval = morphkv_to_recall_interval(value);
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_RECALL");
    add(common_arg(
            { "--morphkv-recall-share" }, "X",
            string_format(
                "MorphKV: the largest part of a slot's older cells that a recall fills, in (0, 1] (default: %.2f)",
                (double) params.morphkv.recall_share),
            [](common_params & params, const std::string & value) {
                given_archive(params, "--morphkv-recall-share").recall_share = morphkv_to_float(value);
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_RECALL_SHARE");
    add(common_arg(
            { "--morphkv-restore" }, { "--no-morphkv-restore" },
            string_format("MorphKV: where a prompt edits a slot's text far back or changes its beginning, go back "
                          "by the archive and not evaluate the text again (default: %s)",
                          params.morphkv.restores ? "enabled" : "disabled"),
            [](common_params & params, bool value) {
                given(params, "--morphkv-restore");
                params.morphkv.restores = value;
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_RESTORE");
    add(common_arg({ "--morphkv-state-dir" }, "PATH",
                   "MorphKV: a folder for chats: each is written behind each of its answers, and goes on from there "
                   "when the server has been started again (default: none)",
                   [](common_params & params, const std::string & value) {
                       given(params, "--morphkv-state-dir");
                       g_morphkv_states.dir = value;
                   })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_STATE_DIR");
    add(common_arg({ "--morphkv-state-max" }, "N",
                   string_format("MorphKV: limit in MiB for the chats in that folder; the least recently used are "
                                 "removed (default: %d, 0 = no limit)",
                                 (int) g_morphkv_states.max_mib),
                   [](common_params & params, int value) {
                       given(params, "--morphkv-state-max");
                       g_morphkv_states.option  = "--morphkv-state-max";
                       g_morphkv_states.max_mib = value;
                   })
            .set_examples({ LLAMA_EXAMPLE_SERVER }),
        "LLAMA_ARG_MORPHKV_STATE_MAX");
    return res;
}

static void check_speculative(const common_params_speculative & speculative) {
    for (const common_speculative_type type : speculative.types) {
        if (type == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH || type == COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK) {
            throw refusal(
                "MorphKV speculates with heads (draft-mtp, draft-eagle3), a draft model or n-grams, not with blocks "
                "whose tokens attend both ways, got --spec-type " +
                common_speculative_type_name_str({ type }));
        }
    }
}

int32_t morphkv_common_archive_type(const morphkv_common_params & morphkv) {
    if (morphkv.archive_type.empty()) {
        return -1;
    }
    for (const ggml_type type : MORPHKV_ROW_TYPES) {
        if (morphkv.archive_type == ggml_type_name(type)) {
            return type;
        }
    }
    throw refusal("MorphKV: --morphkv-archive-type must be one of " + morphkv_row_type_names() + ", got " +
                  morphkv.archive_type);
}

static void check_states(const morphkv_state_options & states) {
    if (states.dir.empty() && !states.option.empty()) {
        throw refusal("MorphKV: " + states.option + " needs --morphkv-state-dir PATH");
    }
    if (states.max_mib < 0) {
        throw refusal("MorphKV: --morphkv-state-max must not be negative, got " + std::to_string(states.max_mib));
    }
}

static void check_archive(morphkv_common_params & morphkv) {
    if (morphkv.archive == "off") {
        throw refusal("MorphKV: --morphkv-archive must be auto, ram or a path, got off: --no-morphkv-archive stores "
                      "nothing, and a file of that name is ./off");
    }
    if (morphkv.archive.empty() && !morphkv.attached.empty()) {
        morphkv.archive = "auto";
    }
    if (morphkv.archive.empty() && !morphkv.archive_option.empty()) {
        throw refusal("MorphKV: " + morphkv.archive_option + " needs --morphkv-archive {auto,ram,PATH}");
    }
    if (morphkv.archive_max_mib < 0) {
        throw refusal("MorphKV: --morphkv-archive-max must not be negative, got " +
                      std::to_string(morphkv.archive_max_mib));
    }
    if (!(morphkv.recall_share > 0.0f && morphkv.recall_share <= 1.0f)) {
        throw refusal("MorphKV: --morphkv-recall-share must be in (0, 1], got " + std::to_string(morphkv.recall_share));
    }
    morphkv_common_archive_type(morphkv);
}

void morphkv_common_args_check(common_params & params) {
    auto & morphkv = params.morphkv;
    if (!morphkv.enabled) {
        if (!morphkv.option.empty() && !morphkv.disabled) {
            throw refusal(morphkv.option + " needs --morphkv");
        }
        return;
    }

    // 0 is upstream's default: nobody asked
    if (params.n_keep > 0) {
        morphkv.params.keep = params.n_keep;
    }
    if (morphkv_params_check(&morphkv.params) != MORPHKV_STATUS_OK) {
        throw refusal(std::string("MorphKV: ") + morphkv_last_error());
    }
    if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        throw refusal("MorphKV needs flash attention, got --flash-attn off");
    }
    if (params.kv_unified || params.kv_unified_per_slot > 0) {
        throw refusal(std::string("MorphKV gives every slot cells of its own, got ") +
                      (params.kv_unified ? "--kv-unified" : "--kv-unified-per-slot"));
    }
    if (params.embedding || params.pooling_type == LLAMA_POOLING_TYPE_RANK) {
        throw refusal("MorphKV serves texts that are written, got --embedding or --reranking");
    }
    check_speculative(params.speculative);
    check_archive(morphkv);
    check_states(g_morphkv_states);

    if (params.ctx_shift) {
        LOG_WRN("MorphKV needs no context shift: --context-shift is ignored\n");
        params.ctx_shift = false;
    }
}
