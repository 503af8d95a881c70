#include "morphkv-defaults.h"

#include "common.h"
#include "core/hash.h"
#include "ggml-backend.h"
#include "morphkv-values.h"
#include "server-context.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>

namespace fs = std::filesystem;

//
// checkpoints
//

static constexpr int32_t N_LEAST = 4;
static constexpr int32_t N_MOST  = 32;
// Checkpoints of a text that is read anew beside those before its questions: some hundred tokens before its end, and there.
static constexpr int32_t N_LAST  = 2;

int32_t morphkv_n_checkpoints(uint64_t slot_bytes, int32_t n_slots) {
    size_t n_free = 0, n_total = 0;
    ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &n_free, &n_total);
    const uint64_t n_fit = n_total / 8 / std::max<uint64_t>(1, slot_bytes * n_slots);
    return std::clamp<uint64_t>(n_fit, N_LEAST, N_MOST);
}

int32_t morphkv_first_checkpoint(const common_chat_msg_spans & spans, int32_t n_checkpoints) {
    int32_t n_left = std::max(1, n_checkpoints - N_LAST);
    for (auto it = spans.spans.rbegin(); it != spans.spans.rend(); ++it) {
        if (it->role == COMMON_CHAT_ROLE_USER && --n_left == 0) {
            return it->pos;
        }
    }
    return 0;
}

//
// names
//

void morphkv_name_model(common_params & params) {
    const std::string path = params.model.path;
    if (path.empty() || params.model_alias.size() > 1 ||
        (params.model_alias.size() == 1 && *params.model_alias.begin() != path)) {
        return;
    }
    const std::string stem = fs::u8path(path).stem().u8string();
    params.model_alias     = { std::regex_replace(stem, std::regex("-\\d{5}-of-\\d{5}$"), "") };
}

std::string morphkv_name_loras(const std::vector<common_adapter_lora_info> & loras) {
    std::string res;
    for (const auto & one : loras) {
        res += one.path + "=" + std::to_string(one.scale) + ";";
    }
    return res;
}

static uint64_t look_into(const std::string & path) {
    static constexpr size_t N_LOOKS = 256, N_BYTES = 4096;
    morphkv_word_hash       hash;
    std::error_code         ec;
    const fs::path          file   = fs::u8path(path);
    const uint64_t          n_file = fs::file_size(file, ec);
    std::ifstream           in(file, std::ios::binary);
    std::vector<char>       bytes(N_BYTES);
    hash.add(n_file);
    for (size_t i = 0; in && n_file > N_BYTES && i < N_LOOKS; ++i) {
        in.seekg((n_file - N_BYTES) / (N_LOOKS - 1) * i);
        in.read(bytes.data(), bytes.size());
        hash.add(bytes.data(), bytes.size());
    }
    return hash.get();
}

std::string morphkv_name_settings(const common_params & params, const std::string & archive_type) {
    const morphkv_params & p = params.morphkv.params;
    // told apart where they are not as in chats that were saved before there was a choice
    const std::string      ranking =
        p.policy == MORPHKV_POLICY_MORPHKV && p.protect < 0
            ? ""
            : string_format(", policy %s, protect %d", morphkv_policy_name(p.policy).c_str(), p.protect);
    return string_format(
        "%s %016llx, capacity %d, window %d, interval %d, keep %d, prompt_room %d, votes %d, fusion %d, "
        "decay %.6f, rope_limit %d, rope %d %.3f %.6f, K %s, V %s, archive %s, images %d, adapters %s%s",
        fs::u8path(params.model.path).filename().u8string().c_str(), (unsigned long long) look_into(params.model.path),
        p.capacity, p.window, p.interval, p.keep, p.prompt_room, p.votes, p.fusion, (double) p.decay, p.rope_limit,
        (int) params.rope_scaling_type, (double) params.rope_freq_base, (double) params.rope_freq_scale,
        ggml_type_name(params.cache_type_k), ggml_type_name(params.cache_type_v), archive_type.c_str(),
        !params.mmproj.path.empty(), morphkv_name_loras(params.lora_adapters).c_str(), ranking.c_str());
}

//
// errors
//

static void replace(std::string & text, const std::string & old, const std::string & now) {
    const size_t at = text.find(old);
    if (at != std::string::npos) {
        text.replace(at, old.size(), now);
    }
}

static std::string mend(std::string text, const std::string & why_no_images) {
    replace(text, "Start it with `--embeddings`",
            "MorphKV serves texts that are written: start another llama-server, "
            "without --morphkv and with `--embeddings`");
    replace(text, "Start it with `--reranking`",
            "MorphKV serves texts that are written: start another llama-server, "
            "without --morphkv and with `--reranking`");
    replace(text, "tokens), try increasing it", "tokens), which -c of the server set: leave it out for no limit");
    if (!why_no_images.empty()) {
        replace(text, "hint: if this is unexpected, you may need to provide the mmproj",
                "MorphKV serves this model's text: " + why_no_images);
    }
    return text;
}

template <typename error> static void throw_mended(const error & err, const std::string & why_no_images) {
    const std::string text = mend(err.what(), why_no_images);
    if (text != err.what()) {
        throw error(text);
    }
}

static void mend_route(server_http_context::handler_t & route, const std::string & why_no_images) {
    route = [inner = std::move(route), &why_no_images](const server_http_req & req) {
        try {
            server_http_res_ptr res = inner(req);
            if (res->status >= 400) {
                res->data = mend(res->data, why_no_images);
            }
            return res;
        } catch (const std::invalid_argument & err) {
            throw_mended(err, why_no_images);
            throw;
        } catch (const std::runtime_error & err) {
            throw_mended(err, why_no_images);
            throw;
        }
    };
}

void morphkv_mend_errors(server_routes & routes, const std::string & why_no_images) {
    for (auto * route : { &routes.post_completions, &routes.post_completions_oai, &routes.post_chat_completions,
                          &routes.post_responses_oai, &routes.post_anthropic_messages, &routes.post_infill,
                          &routes.post_embeddings, &routes.post_embeddings_oai, &routes.post_rerank }) {
        mend_route(*route, why_no_images);
    }
}
