// The observer's start: what is on where its user has said nothing, and the line that says so.

#include "common.h"
#include "ggml-backend.h"
#include "llama.h"
#include "log.h"
#include "morphkv-defaults.h"
#include "morphkv-server.h"

#include <algorithm>

// Tokens from one checkpoint to the next, where there are too many. With MorphKV each is of constant size, however far the next.
static constexpr int32_t CHECKPOINT_MIN_STEP = 32;

static morphkv_status start_archive_as(llama_context * ctx, const morphkv_common_params & given, int32_t type) {
    morphkv_archive_params settings = morphkv_archive_params_default();
    settings.type_k = settings.type_v = type;
    settings.max_bytes                = given.archive_max_mib * 1024 * 1024;
    settings.path = given.archive == "ram" || given.archive == "auto" ? nullptr : given.archive.c_str();
    return morphkv_archive_start(ctx, &settings);
}

bool morphkv_observer::start_archive(const common_params & params) {
    archive_type.clear();
    if (given.archive.empty()) {
        return true;
    }
    const bool           is_auto = given.archive == "auto";
    const int32_t        wanted  = morphkv_common_archive_type(given);
    // rows may be too short for blocks of q8_0
    std::vector<int32_t> types   = { wanted };
    if (is_auto && wanted < 0) {
        types = { GGML_TYPE_Q8_0, -1 };
    }
    std::string why;
    for (const int32_t type : types) {
        if (start_archive_as(ctx, given, type) == MORPHKV_STATUS_OK) {
            archive_type = ggml_type_name(type >= 0 ? (ggml_type) type : params.cache_type_k);
            return attach_files(params.model.path);
        }
        why = morphkv_last_error();
    }
    if (!is_auto || !given.attached.empty()) {
        LOG_ERR("error: MorphKV: %s\n", why.c_str());
        return false;
    }
    LOG_WRN("MorphKV: there is no archive, what is evicted is gone: %s\n", why.c_str());
    given.archive.clear();
    return true;
}

bool morphkv_observer::attach_files(const std::string & model_path) {
    for (const auto & path : given.attached) {
        if (morphkv_archive_attach(ctx, path.c_str(), model_path.c_str()) != MORPHKV_STATUS_OK) {
            LOG_ERR("error: MorphKV: %s\n", morphkv_last_error());
            return false;
        }
    }
    return true;
}

std::vector<morphkv_attachment> morphkv_observer::attachments(int32_t id_slot) const {
    std::vector<morphkv_attachment> res(given.attached.size());
    for (size_t i = 0; i < res.size(); ++i) {
        res[i].size = sizeof(res[i]);
        morphkv_attachment_get(ctx, id_slot, i, &res[i]);
    }
    return res;
}

// With the archive, what a chat on disk must have in common.
std::string morphkv_observer::name_archive() const {
    std::string res = archive_type;
    for (const auto & file : attachments(0)) {
        res += string_format(" and %016llx", (unsigned long long) file.id);
    }
    return res;
}

bool morphkv_observer::start_chats(const common_params & params) {
    lora_of_all = morphkv_name_loras(params.lora_adapters);
    if (g_morphkv_states.dir.empty()) {
        return true;
    }
    const std::string why = chats.start(g_morphkv_states.dir, g_morphkv_states.max_mib * 1024 * 1024,
                                        morphkv_name_settings(params, name_archive()), !params.mmproj.path.empty());
    if (!why.empty()) {
        LOG_ERR("error: MorphKV: %s\n", why.c_str());
        return false;
    }
    view.tell(chats.count_now());
    return true;
}

// Upstream's defaults are for caches whose checkpoints are small and far apart.
void morphkv_observer::choose_checkpoints(common_params & params) const {
    const common_params upstream{};
    if (params.n_ctx_checkpoints == upstream.n_ctx_checkpoints) {
        const uint64_t slot_bytes = view.of(0).kv_bytes / params.n_parallel;
        params.n_ctx_checkpoints  = morphkv_n_checkpoints(slot_bytes, params.n_parallel);
    }
    if (params.checkpoint_min_step == upstream.checkpoint_min_step) {
        params.checkpoint_min_step = CHECKPOINT_MIN_STEP;
    }
}

static std::string name_devices(const common_params & params) {
    std::string res;
    for (size_t i = 0; params.n_gpu_layers != 0 && i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        const auto         type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            res += (res.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(dev));
        }
    }
    return res.empty() ? "the CPU" : res;
}

// Of a slot; layers that keep more have more.
static std::string name_cells(const morphkv_stats & stats) {
    const int32_t n_most = GGML_PAD(stats.max_capacity + stats.n_limit - stats.min_capacity, 256);
    return std::to_string(stats.n_cells) + (stats.n_groups > 1 ? " to " + std::to_string(n_most) : "");
}

void morphkv_observer::say_what_is_on(const common_params & params) const {
    std::string archive = "no archive";
    if (!given.archive.empty()) {
        const bool is_ram = given.archive == "auto" || given.archive == "ram";
        archive =
            "archive in " + (is_ram ? "RAM" : given.archive) + " (" + archive_type + ", " +
            (given.archive_max_mib > 0 ? std::to_string(given.archive_max_mib) + " MiB over all slots" : "no limit") +
            ")";
    }
    for (const auto & file : attachments(0)) {
        archive += string_format(", %s attached (%lld tokens)", file.path, (long long) file.n_tokens);
    }
    LOG_INF(
        "MorphKV: on %s, %d slots of %s cells each for texts of any length, K and V %.1f MiB and %.1f MiB beside them; "
        "system prompts %s; %s; up to %d checkpoints a slot; chats %s\n",
        name_devices(params).c_str(), params.n_parallel, name_cells(view.of(0)).c_str(),
        view.of(0).kv_bytes / 1048576.0, view.of(0).extra_bytes / 1048576.0,
        given.keep_system ? "kept" : "may be evicted", archive.c_str(), params.n_ctx_checkpoints,
        chats.is_on() ? ("on disk in " + g_morphkv_states.dir).c_str() : "end with the server");
}
