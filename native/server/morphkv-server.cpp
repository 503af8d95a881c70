#include "morphkv-server.h"

#include "common.h"
#include "llama.h"
#include "log.h"

#include <algorithm>
#include <csignal>
#include <limits>

// llama-server's default of 32 is for checkpoints of a few MiB. Here each is as large as a slot.
static constexpr int32_t N_CHECKPOINTS = 4;

// Most tokens of a prompt's end that are decoded again after a recall.
static constexpr int32_t N_REDO = 128;

// llama-server has one model in a process.
static bool g_enabled = false;

static morphkv_stats stats_of(llama_context * ctx, int32_t seq_id) {
    morphkv_stats res{};
    res.size = sizeof(res);
    morphkv_stats_get(ctx, seq_id, &res);
    return res;
}

bool morphkv_server_prepare(common_params & params) {
    if (!params.morphkv.enabled) {
        return true;
    }
    if (params.n_parallel < 0) {
        // upstream's automatic choice, but for its unified cache
        params.n_parallel = 4;
    }
    const morphkv_params & p       = params.morphkv.params;
    const int64_t          n_limit = (int64_t) p.capacity + std::max(p.interval, p.prompt_room);
    if (params.n_ctx != 0 && params.n_ctx < n_limit) {
        LOG_ERR(
            "error: MorphKV: -c is the most tokens of a slot and costs no memory; it must be 0 (no limit) or at least "
            "capacity + max(interval, prompt_room), got %d with %d\n",
            params.n_ctx, (int) n_limit);
        return false;
    }
#ifdef SIGXFSZ
    // A file that may not grow any more is an error of its write, as on a full disk, and not the end of the process.
    std::signal(SIGXFSZ, SIG_IGN);
#endif
    g_enabled                 = true;
    params.morphkv.n_ctx_slot = params.n_ctx;
    params.n_ctx              = 0;

    if (params.n_ctx_checkpoints == common_params().n_ctx_checkpoints) {
        params.n_ctx_checkpoints = N_CHECKPOINTS;
    }
    return true;
}

bool morphkv_server_is_bad_request(const std::exception & error) {
    return g_enabled && dynamic_cast<const common_json_error *>(&error);
}

bool morphkv_server::init(const common_params & params, llama_context * ctx_tgt) {
    ctx = nullptr;
    if (!params.morphkv.enabled) {
        return true;
    }
    if (!params.mmproj.path.empty()) {
        LOG_ERR("error: MorphKV serves text only, got a projector for images or audio: use --no-mmproj\n");
        return false;
    }

    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx_tgt));

    ctx          = ctx_tgt;
    this->params = params.morphkv.params;
    keep_system  = params.morphkv.keep_system;
    n_ctx_max    = params.morphkv.n_ctx_slot > 0 ? params.morphkv.n_ctx_slot : std::numeric_limits<int32_t>::max();
    n_bos        = llama_vocab_get_add_bos(vocab) ? 1 : 0;

    reads.assign(params.n_parallel, {});
    pending.assign(params.n_parallel, {});
    stats.resize(params.n_parallel);
    stopped.resize(params.n_parallel);
    total.is_on = true;
    if (!start_archive(params.morphkv)) {
        return false;
    }
    look_at_all();

    const std::string why = why_not({ params.n_keep, 0, 0 });
    if (!why.empty()) {
        LOG_ERR("error: %s\n", why.c_str());
        return false;
    }
    LOG_INF("MorphKV: %d slots of %d cells each, K and V %.1f MiB and %.1f MiB beside them, for texts of any length: a "
            "prompt may be longer than its cells, and context shift is not needed\n",
            params.n_parallel, stats[0].n_cells, stats[0].kv_bytes / 1048576.0, stats[0].extra_bytes / 1048576.0);
    return true;
}

//
// archive and recall
//

bool morphkv_server::start_archive(const morphkv_common_params & given) {
    has_archive       = !given.archive.empty();
    recalls           = has_archive && given.recalls;
    n_between         = given.recall_interval * params.interval;
    share             = given.recall_share;
    archive           = given.archive;
    archive_max_mib   = given.archive_max_mib;
    total.has_archive = has_archive;
    if (!has_archive) {
        return true;
    }
    morphkv_archive_params settings = morphkv_archive_params_default();
    settings.type_k = settings.type_v = morphkv_common_archive_type(given);
    settings.max_bytes                = archive_max_mib * 1024 * 1024;
    settings.path                     = archive == "ram" ? nullptr : archive.c_str();
    if (morphkv_archive_start(ctx, &settings) != MORPHKV_STATUS_OK) {
        LOG_ERR("error: MorphKV: %s\n", morphkv_last_error());
        return false;
    }
    return true;
}

// Tokens that came back; the chat goes on without where it fails.
int64_t morphkv_server::recall_now(int32_t id_slot) {
    morphkv_recall_params settings = morphkv_recall_params_default();
    settings.share                 = share;
    morphkv_recalled res{};
    res.size = sizeof(res);
    if (morphkv_recall(ctx, id_slot, &settings, &res) != MORPHKV_STATUS_OK) {
        LOG_WRN("slot %d: MorphKV: %s\n", id_slot, morphkv_last_error());
        return 0;
    }
    pending[id_slot].n_recalls++;
    pending[id_slot].n_recalled += res.n_recalled;
    pending[id_slot].recall_ms += res.took_ms;
    return res.n_recalled;
}

bool morphkv_server::waits_for_recall(int32_t id_slot, int32_t n_prompt, int32_t n_task) const {
    return is_on() && reads.at(id_slot).stage != reading::DONE && n_prompt == n_task - 1;
}

bool morphkv_server::decodes_again(int32_t id_slot) const {
    return is_on() && reads.at(id_slot).stage == reading::AGAIN;
}

int32_t morphkv_server::recall(int32_t id_slot, int32_t n_prompt, int32_t n_task) {
    if (!waits_for_recall(id_slot, n_prompt, n_task)) {
        return 0;
    }
    auto &        read       = reads[id_slot];
    const bool    is_first   = read.stage == reading::FIRST;
    const int64_t n_recalled = recall_now(id_slot);
    const auto    s          = stats_of(ctx, id_slot);
    read.stage               = reading::DONE;
    read.next_recall_pos     = s.logical_pos + n_between;
    if (!is_first || n_recalled == 0) {
        return 0;
    }
    const int32_t n_redo = std::min({ n_prompt - read.n_past, N_REDO, s.logical_pos - s.complete_pos });
    if (n_redo <= 0) {
        return 0;
    }
    read.stage = reading::AGAIN;
    return n_redo;
}

void morphkv_server::recall_while_writing() {
    for (size_t i = 0; n_between > 0 && i < reads.size(); ++i) {
        if (reads[i].stage == reading::DONE && stats[i].logical_pos >= reads[i].next_recall_pos) {
            recall_now(i);
            reads[i].next_recall_pos = stats[i].logical_pos + n_between;
        }
    }
}

//
// what is never evicted
//

int32_t morphkv_server::n_wanted(const morphkv_keep & keep) const {
    // llama-server counts --keep without the tokenizer's first token
    int32_t n = keep.n_keep > 0 ? std::min(keep.n_keep, params.capacity) + n_bos : params.keep;
    if (keep.n_keep < 0) {
        n = std::min(keep.n_tokens, n_keep_max());
    }
    const bool fits = keep.n_system <= n_keep_max();
    return keep_system && fits ? std::max(n, keep.n_system) : n;
}

std::string morphkv_server::why_not(const morphkv_keep & keep) const {
    if (!is_on() || n_wanted(keep) <= n_keep_max()) {
        return "";
    }
    return "n_keep must be below capacity - window = " + std::to_string(n_keep_max() + 1) + " tokens to be kept, got " +
           std::to_string(n_wanted(keep)) + ": start the server with a larger --morphkv-capacity";
}

// Kept in part it would leave no room for what else the chat holds: then it is text like any other.
void morphkv_server::warn_of_system(int32_t id_slot, const morphkv_keep & keep) {
    if (!keep_system || keep.n_system <= n_keep_max()) {
        return;
    }
    const std::string warning =
        string_format("the system prompt can be evicted: it has %d tokens, and capacity - window - 1 = %d can be kept; "
                      "start the server "
                      "with --morphkv-capacity %d",
                      keep.n_system, n_keep_max(), GGML_PAD(keep.n_system + params.capacity, 256));
    if (!has_warned) {
        LOG_WRN("slot %d: MorphKV: %s (told once)\n", id_slot, warning.c_str());
        has_warned = true;
    }
    pending[id_slot].warning = warning;
}

int32_t morphkv_server::begin_prompt(int32_t id_slot, const morphkv_keep & keep, int32_t n_past) {
    if (!is_on()) {
        return n_past;
    }
    n_past = keep_first_tokens(id_slot, keep, n_past);
    total.add(pending[id_slot]);  // a recall behind an answer's last token
    pending[id_slot] = {};
    warn_of_system(id_slot, keep);
    reads[id_slot].stage  = recalls ? reading::FIRST : reading::DONE;
    reads[id_slot].n_past = n_past;
    return n_past;
}

int32_t morphkv_server::keep_first_tokens(int32_t id_slot, const morphkv_keep & keep, int32_t n_past) {
    if (n_past > 0) {
        if (keep.n_keep < 0 && !keep_system) {
            return n_past;
        }
        if (morphkv_keep_set(ctx, id_slot, n_wanted(keep)) == MORPHKV_STATUS_OK) {
            return n_past;
        }
        LOG_WRN("slot %d: %d first tokens are to be kept and some may be evicted already: processing the prompt anew\n",
                id_slot, n_wanted(keep));
    }
    llama_memory_seq_rm(llama_get_memory(ctx), id_slot, -1, -1);
    if (morphkv_keep_set(ctx, id_slot, n_wanted(keep)) != MORPHKV_STATUS_OK) {
        LOG_ERR("slot %d: %s\n", id_slot, morphkv_last_error());  // unreachable behind why_not()
    }
    return 0;
}

int32_t morphkv_server::n_draft_max(int32_t id_slot, int32_t n_max) const {
    if (!is_on()) {
        return n_max;
    }
    // One more token is decoded with the draft. Where an eviction is due already, it comes alone: the eviction may wait for
    // it. A draft model decodes its drafts one by one, and an eviction among them leaves it the window to go back in.
    const int32_t n_free = params.capacity + params.interval - stats_of(ctx, id_slot).n_used - 1;
    return std::min({ n_max, n_free, MORPHKV_DRAFT_MAX - 1, params.window - 2 });
}

bool morphkv_server::keeps_text(int32_t id_slot, int32_t n_prompt, size_t n_read) const {
    return is_on() && n_read == 0 && stats_of(ctx, id_slot).logical_pos == n_prompt - 1;
}

void morphkv_server::forget_draft(llama_context * ctx_dft, int32_t id_slot) const {
    if (is_on() && ctx_dft) {
        llama_memory_seq_rm(llama_get_memory(ctx_dft), id_slot, -1, -1);
    }
}

//
// what clients see
//

void morphkv_server::look_at(int32_t id_slot) {
    stats[id_slot] = stats_of(ctx, id_slot);
    if (has_archive) {
        stopped[id_slot] = morphkv_archive_why_stopped(ctx, id_slot);
    }
}

void morphkv_server::look_at_all() {
    for (size_t i = 0; i < stats.size(); ++i) {
        look_at(i);
    }
}

void morphkv_server::before_task(bool may_wait) {
    if (is_on() && !may_wait) {
        look_at_all();
    }
}

void morphkv_server::before_decode() {
    if (!is_on()) {
        return;
    }
    recall_while_writing();
    look_at_all();
}

morphkv_counts morphkv_server::after_decode(int32_t id_slot) {
    if (!is_on()) {
        return {};
    }
    const morphkv_stats before = stats[id_slot];
    look_at(id_slot);
    const morphkv_stats & now = stats[id_slot];

    morphkv_counts cost = pending[id_slot];
    pending[id_slot]    = {};
    cost.is_on          = true;
    cost.has_archive    = has_archive;
    cost.n_evictions    = now.n_evictions - before.n_evictions;
    cost.n_evicted      = now.n_evicted - before.n_evicted;
    cost.n_rebases      = now.n_rebases - before.n_rebases;
    cost.evict_ms       = now.seq_evict_ms - before.seq_evict_ms;
    total.add(cost);
    return cost;
}

morphkv_metrics morphkv_server::metrics() const {
    morphkv_metrics res;
    res.counts = total;
    for (const morphkv_stats & s : stats) {
        res.n_cells += s.n_cells;
        res.n_used += s.n_used;
        res.n_archived += s.n_archived;
        // each tells these of all slots
        res.kv_bytes      = s.kv_bytes;
        res.extra_bytes   = s.extra_bytes;
        res.archive_bytes = s.archive_bytes;
    }
    return res;
}

common_json morphkv_server::props() const {
    if (!is_on()) {
        return nullptr;
    }
    common_json res = {
        { "capacity", params.capacity },
        { "window", params.window },
        { "votes", params.votes > 0 ? params.votes : params.window },
        { "prompt_room", params.prompt_room },
        { "interval", params.interval },
        { "fusion", params.fusion == MORPHKV_FUSION_MAX ? "max" : "sum" },
        { "decay", params.decay },
        { "keep", params.keep },
        { "keep_system", keep_system },
        { "rope_limit", stats[0].rope_limit },
        { "n_cells", stats[0].n_cells },
        { "kv_bytes", stats[0].kv_bytes },
        { "extra_bytes", stats[0].extra_bytes },
    };
    if (has_archive) {
        res["archive"]         = archive;
        res["archive_max_mib"] = archive_max_mib;
        res["recall"]          = recalls;
        res["recall_share"]    = share;
    }
    return res;
}

void morphkv_server::add_to_slot(common_json & slot, int32_t id_slot) const {
    if (!is_on()) {
        return;
    }
    const morphkv_stats & s = stats.at(id_slot);

    slot["morphkv"] = {
        { "capacity", s.capacity },
        { "keep", s.keep },
        { "n_cells", s.n_cells },
        { "n_used", s.n_used },
        { "n_evictions", s.n_evictions },
        { "n_evicted", s.n_evicted },
        { "evict_ms", s.seq_evict_ms },
        { "logical_pos", s.logical_pos },
        { "complete_pos", s.complete_pos },
        { "exact_pos", s.exact_pos },
        { "rotary_offset", s.rotary_offset },
        { "n_rebases", s.n_rebases },
    };
    if (has_archive) {
        slot["morphkv"]["n_archived"]        = s.n_archived;
        slot["morphkv"]["n_archive_lost"]    = s.n_archive_lost;
        slot["morphkv"]["n_archive_damaged"] = s.n_archive_damaged;
        slot["morphkv"]["archive_stopped"]   = stopped.at(id_slot);  // why, or empty
        slot["morphkv"]["n_recalls"]         = s.n_recalls;
        slot["morphkv"]["n_recalled"]        = s.n_recalled;
        slot["morphkv"]["recall_ms"]         = s.recall_ms;
    }
}
