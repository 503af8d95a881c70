#include "morphkv-server.h"

#include "common.h"
#include "llama.h"
#include "log.h"
#include "morphkv-defaults.h"
#include "morphkv-load.h"
#include "morphkv-media.h"
#include "morphkv-system.h"
#include "server-task.h"

#include <csignal>
#include <stdexcept>

morphkv_observer g_morphkv;

static bool is_router(const common_params & params) {
    return params.model.path.empty() && params.model.hf_repo.empty() && params.model.docker_repo.empty();
}

bool morphkv_observer::prepare(common_params & params, server_routes & routes) {
    // a router's models are processes of their own
    if (!params.morphkv.enabled || is_router(params)) {
        return true;
    }
    // upstream's automatic choice of four slots, but for its unified cache; --kv-unified has been refused
    params.kv_unified = false;

    const morphkv_params & p       = params.morphkv.params;
    const int64_t          n_limit = (int64_t) p.capacity + std::max(p.interval, p.prompt_room);
    if (params.n_ctx != 0 && params.n_ctx < n_limit) {
        LOG_ERR("error: MorphKV: -c is the most tokens of a slot and costs no memory: leave it out for no limit, or "
                "give at least capacity + max(interval, prompt_room), got %d with %d\n",
                params.n_ctx, (int) n_limit);
        return false;
    }
    morphkv_tell_load(params);
#ifdef SIGXFSZ
    // A file that may not grow any more is an error of its write, as on a full disk, and not the end of the process.
    std::signal(SIGXFSZ, SIG_IGN);
#endif
    // one that comes with the model has not been fetched yet
    has_given_projector       = !params.mmproj.path.empty() || !params.mmproj.url.empty();
    params.morphkv.n_ctx_slot = params.n_ctx;
    if (p.large_capacity < 0 && params.n_ctx > 0) {
        // layers that keep all need no cells that no slot fills
        params.morphkv.params.large_capacity = p.capacity + params.n_ctx - n_limit;
    }
    params.n_ctx = 0;

    // To write each idle slot to the prompt cache at each request gains nothing: a slot that is to hold another chat is
    // written then, and none is emptied.
    params.cache_idle_slots = false;
    morphkv_name_model(params);
    morphkv_mend_errors(routes, why_no_images);
    view.join(routes);
    return true;
}

bool morphkv_observer::choose_projector(common_params & params) {
    if (!params.morphkv.enabled || params.mmproj.path.empty()) {
        return true;
    }
    const std::string why = morphkv_why_not_projector(params.mmproj.path);
    if (why.empty()) {
        return true;
    }
    if (has_given_projector) {
        LOG_ERR("error: MorphKV cannot serve the images of --mmproj %s: %s\n", params.mmproj.path.c_str(), why.c_str());
        return false;
    }
    LOG_WRN("MorphKV cannot serve this model's images and serves its text: %s\n", why.c_str());
    params.mmproj.path.clear();
    why_no_images = why;
    return true;
}

bool morphkv_observer::init(common_params & params, llama_context * ctx_tgt, int32_t & n_swa) {
    if (!params.morphkv.enabled) {
        return true;
    }
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx_tgt));

    n_swa     = 1;
    ctx       = ctx_tgt;
    given     = params.morphkv;
    n_between = given.recall_interval * given.params.interval;
    n_ctx_max = given.n_ctx_slot > 0 ? given.n_ctx_slot : std::numeric_limits<int32_t>::max();
    states.assign(params.n_parallel, {});

    // what never leaves has to fit into the layers that keep least
    morphkv_stats stats{};
    stats.size = sizeof(stats);
    morphkv_stats_get(ctx, 0, &stats);
    morphkv_common_params least = given;
    least.params.capacity       = stats.min_capacity;
    least.params.window         = stats.min_capacity - stats.n_distant;  // with the protected tokens before it
    keeper.start(least, llama_vocab_get_add_bos(vocab) ? 1 : 0);

    if (!start_archive(params) || !start_chats(params)) {
        return false;
    }
    const std::string why = keeper.why_not({ params.n_keep, 0, 0 });
    if (!why.empty()) {
        LOG_ERR("error: %s\n", why.c_str());
        return false;
    }
    view.start(given, ctx, params.n_parallel);
    retained.start(ctx, params.n_parallel);
    choose_checkpoints(params);
    n_checkpoints = params.n_ctx_checkpoints;
    view.tell({ archive_type, n_checkpoints, params.checkpoint_min_step, params.cache_ram_mib });
    say_what_is_on(params);
    return true;
}

//
// tasks
//

static morphkv_keep keep_of(const server_task & task) {
    return { task.params.n_keep, task.n_tokens(), task.params.morphkv_n_system };
}

void morphkv_observer::accept(server_task & task, const server_chat_params & chat, const common_json & request,
                              const llama_vocab * vocab, const mtmd_context * mctx) const {
    if (!is_on()) {
        return;
    }
    const std::string too_long = morphkv_why_not_media(task.tokens, mctx, ctx, given.params);
    if (!too_long.empty()) {
        throw std::invalid_argument(too_long);
    }
    if (keeper.keeps_system()) {
        task.params.morphkv_n_system = morphkv_system_count(vocab, chat, request, task.tokens.get_text_tokens());
    }
    const std::string why = keeper.why_not(keep_of(task));
    if (!why.empty()) {
        throw std::invalid_argument(why);
    }
    // llama-server knows the messages of some templates, and makes a checkpoint before the last one of a user
    const llama_tokens words = task.tokens.get_text_tokens();
    if (task.params.message_spans.last_user_message_pos() < 0 && (int32_t) words.size() == task.n_tokens()) {
        const int32_t n = morphkv_question_start(vocab, chat, request, words);
        if (n > 0) {
            task.params.message_spans.add(COMMON_CHAT_ROLE_USER, n, task.n_tokens() - n);
        }
    }
}

void morphkv_observer::look_before_task(const server_task & task, bool is_decoding) {
    if (is_on() && chats.is_on()) {
        view.tell(chats.count_now());
    }
    // this one comes with each step, and nothing has happened since the last
    if (is_on() && !is_decoding && task.type != SERVER_TASK_TYPE_NEXT_RESPONSE) {
        view.look_at_all();
    }
}

bool morphkv_observer::holds(int32_t id_slot, int32_t pos_next) const {
    morphkv_stats now{};
    now.size = sizeof(now);
    return morphkv_stats_get(ctx, id_slot, &now) == MORPHKV_STATUS_OK && now.logical_pos == pos_next - 1;
}

//
// prompts
//

int32_t morphkv_observer::begin_prompt(int32_t id_slot, const server_task & task, const server_prompt & prompt,
                                       int32_t n_past, int32_t n_fixed) {
    const morphkv_keep  keep       = keep_of(task);
    state &             now        = states.at(id_slot);
    const int64_t       n_loaded   = now.pending.n_loaded;
    const int64_t       n_restored = now.pending.n_restored;
    const moved_passage moved      = now.moved;
    now.pending.n_loaded = now.pending.n_restored = 0;
    view.count(now.pending);  // a recall behind an answer's last token

    say_why_anew(id_slot, task, prompt, n_past);
    n_past              = keep_first_tokens(id_slot, keep, n_past);
    const bool is_again = is_asked_again(id_slot, task, n_past);

    now                    = {};
    now.id_task            = task.id;
    now.is_new             = true;
    now.n_first_checkpoint = morphkv_first_checkpoint(task.params.message_spans, n_checkpoints);
    now.prompt             = morphkv_prompt_begin(std::max(n_past, n_fixed), task.n_tokens());
    if (n_past > 0) {
        now.pending.n_loaded   = n_loaded;
        now.pending.n_restored = n_restored;
        now.moved              = moved;
    }
    if (!asks() || is_again) {
        now.prompt.stage = MORPHKV_PROMPT_STAGE_LAST;
    }
    morphkv_count_media(task.tokens, n_past, now.pending);
    now.pending.warning = keeper.warning(keep);
    if (!now.pending.warning.empty() && !has_warned) {
        LOG_WRN("slot %d: MorphKV: %s (told once)\n", id_slot, now.pending.warning.c_str());
        has_warned = true;
    }
    view.look_at(id_slot);
    return n_past;
}

int32_t morphkv_observer::keep_first_tokens(int32_t id_slot, const morphkv_keep & keep, int32_t n_past) const {
    if (n_past > 0) {
        if (keeper.leaves(keep) || morphkv_keep_set(ctx, id_slot, keeper.n_wanted(keep)) == MORPHKV_STATUS_OK) {
            return n_past;
        }
        LOG_WRN("slot %d: %d first tokens are to be kept and some may be evicted already: processing the prompt anew\n",
                id_slot, keeper.n_wanted(keep));
    }
    llama_memory_seq_rm(llama_get_memory(ctx), id_slot, -1, -1);
    if (morphkv_keep_set(ctx, id_slot, keeper.n_wanted(keep)) != MORPHKV_STATUS_OK) {
        LOG_ERR("slot %d: %s\n", id_slot, morphkv_last_error());  // unreachable behind why_not()
    }
    return 0;
}

// Whether a prompt is there but for its end, as the same prompt has left it: it has nothing new to ask for, and its answer begins
// where the first one did.
bool morphkv_observer::is_asked_again(int32_t id_slot, const server_task & task, int32_t n_past) const {
    const state & last = states.at(id_slot);
    morphkv_stats now{};
    now.size = sizeof(now);
    // llama-server goes back to one token less than a checkpoint has; one from before the recalls has fewer of them
    if ((int32_t) last.asked.size() != task.n_tokens() || n_past < std::max(1, task.n_tokens() - 2) ||
        morphkv_stats_get(ctx, id_slot, &now) != MORPHKV_STATUS_OK || now.n_recalls < last.n_recalls) {
        return false;
    }
    for (int32_t i = 0; i < task.n_tokens(); ++i) {
        // images have no tokens, and are the same where the text before is
        if (last.asked[i] != task.tokens[i]) {
            return false;
        }
    }
    return true;
}

void morphkv_observer::note_asked(int32_t id_slot, const server_task & task) {
    state & now = states.at(id_slot);
    now.asked.clear();
    for (int32_t i = 0; i < task.n_tokens(); ++i) {
        now.asked.push_back(task.tokens[i]);
    }
    view.look_at(id_slot);
    now.n_recalls = view.of(id_slot).n_recalls;
}

// From where the slot's text can go on, at pos_end or before, or -1.
int32_t morphkv_observer::find_start(int32_t id_slot, int32_t pos_end) {
    view.look_at(id_slot);
    const morphkv_stats & now = view.of(id_slot);
    if (now.logical_pos + 1 == pos_end) {
        return pos_end;
    }
    return now.mark_pos <= pos_end ? now.mark_pos : -1;
}

const morphkv_prompt & morphkv_observer::read_prompt(int32_t id_slot, const server_task & task, int32_t n_held,
                                                     int32_t pos_next, int32_t n_fixed, bool has_checkpoints) {
    state & now         = states.at(id_slot);
    now.prompt.n_past   = std::max(now.prompt.n_past, n_fixed);
    now.next_recall_pos = pos_next - 1 + n_between;
    if (!asks() && has_checkpoints) {
        // Batches are those of llama-server, and recurrent layers can go back to where the last one began: to its checkpoint.
        if (n_held > 0 && morphkv_mark_set(ctx, id_slot) != MORPHKV_STATUS_OK) {
            LOG_WRN("slot %d: MorphKV: %s\n", id_slot, morphkv_last_error());
        }
        now.prompt.n_end = task.n_tokens();
        return now.prompt;
    }
    const auto           params = recall_params();
    const morphkv_status status = morphkv_prompt_next(ctx, id_slot, &params, &now.prompt, n_held);
    if (status != MORPHKV_STATUS_OK || now.prompt.n_recalls > 0) {
        recalled(id_slot, status, now.prompt.recalled);
    }
    if (asks() && now.prompt.n_end == task.n_tokens()) {
        note_asked(id_slot, task);
    }
    return now.prompt;
}

//
// recalls
//

morphkv_recall_params morphkv_observer::recall_params() const {
    morphkv_recall_params res = morphkv_recall_params_default();
    res.share                 = given.recall_share;
    return res;
}

// The chat goes on without where it fails.
void morphkv_observer::recalled(int32_t id_slot, morphkv_status status, const morphkv_recalled & brought) {
    if (status != MORPHKV_STATUS_OK) {
        LOG_WRN("slot %d: MorphKV: %s\n", id_slot, morphkv_last_error());
        return;
    }
    morphkv_counts & pending = states[id_slot].pending;
    pending.n_recalls++;
    pending.n_recalled += brought.n_recalled;
    pending.n_reread += brought.n_reread;
    pending.recall_ms += brought.took_ms;
}

//
// tokens that are written
//

// Tokens that a context takes before an eviction or a rebase falls due. Negative: one is due.
static int32_t n_before_change(const morphkv_stats & stats, const morphkv_params & params) {
    const int32_t n_free   = stats.min_capacity + params.interval - stats.n_used;
    const int32_t n_rotary = stats.rope_limit - (stats.logical_pos + 1 - stats.rotary_offset);
    return stats.rope_limit > 0 ? std::min(n_free, n_rotary) : n_free;
}

int32_t morphkv_observer::write_token(int32_t id_slot, const server_task & task, llama_context * ctx_dft) {
    state & now = states.at(id_slot);
    view.look_at(id_slot);
    const int32_t pos = view.of(id_slot).logical_pos;
    if (now.id_task != task.id) {
        // one of several answers to a prompt, which another slot has read
        view.count(now.pending);
        now                 = {};
        now.id_task         = task.id;
        now.is_new          = true;
        now.next_recall_pos = pos + n_between;
    }
    if (n_between > 0 && pos >= now.next_recall_pos) {
        const auto       params = recall_params();
        morphkv_recalled brought{};
        brought.size = sizeof(brought);
        recalled(id_slot, morphkv_recall(ctx, id_slot, &params, &brought), brought);
        now.next_recall_pos = pos + n_between;
    }
    const bool follows = !given.archive.empty() && given.follows;
    if (follows) {
        const auto      params = recall_params();
        morphkv_writing writing{};
        writing.size                = sizeof(writing);
        const morphkv_status status = morphkv_write_next(ctx, id_slot, &params, &writing);
        if (status != MORPHKV_STATUS_OK || writing.n_recalls > 0) {
            recalled(id_slot, status, writing.recalled);
        }
    }
    // One more token is decoded with the draft. Where an eviction is due already, it comes alone: the eviction may wait for
    // it. What drafts decodes them one by one, with the text that the target has: it is due there at about the same time, and
    // a draft must not vote.
    const morphkv_params & p     = given.params;
    int32_t                n_fit = n_before_change(view.of(id_slot), p);
    morphkv_stats          dft{};
    dft.size = sizeof(dft);
    if (ctx_dft && morphkv_stats_get(ctx_dft, id_slot, &dft) == MORPHKV_STATUS_OK) {
        n_fit = std::min(n_fit, n_before_change(dft, p));
    }
    // and a recall comes between the same tokens
    int32_t n_unasked = n_between > 0 ? now.next_recall_pos - pos : MORPHKV_DRAFT_MAX;
    if (follows) {
        n_unasked = std::min(n_unasked, MORPHKV_WRITE_STEP - (pos + 1) % MORPHKV_WRITE_STEP);
    }
    return std::min({ n_fit - 1, n_unasked - 1, MORPHKV_DRAFT_MAX - 1, p.window - 2 });
}

morphkv_counts morphkv_observer::cost(int32_t id_slot, const server_task & task) {
    state & now = states.at(id_slot);
    if (now.id_task != task.id) {
        return {};  // none of its tokens were decoded
    }
    const morphkv_stats before = view.of(id_slot);
    view.look_at(id_slot);
    const morphkv_stats & after = view.of(id_slot);

    morphkv_counts res = now.pending;
    now.pending        = {};
    res.is_on          = true;
    res.has_archive    = !given.archive.empty();
    res.n_evictions    = after.n_evictions - before.n_evictions;
    res.n_evicted      = after.n_evicted - before.n_evicted;
    res.n_rebases      = after.n_rebases - before.n_rebases;
    res.evict_ms       = after.seq_evict_ms - before.seq_evict_ms;
    res.n_kept         = after.n_used;
    now.n_from.resize(given.attached.size());
    for (size_t i = 0; i < now.n_from.size(); ++i) {
        const auto file       = attachments(id_slot).at(i);
        res.n_from[file.path] = file.n_recalled - now.n_from[i];
        now.n_from[i]         = file.n_recalled;
    }
    view.count(res);
    return res;
}
