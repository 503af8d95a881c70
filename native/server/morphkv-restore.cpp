// The observer goes back by the archive: where a prompt parts from a slot's text at a place that is evicted in part, and no
// checkpoint is near, the text's cells are laid down again (morphkv_restore), and what is behind a changed beginning comes along
// (morphkv_passage_put).

#include "common.h"
#include "llama.h"
#include "log.h"
#include "morphkv-server.h"
#include "server-task.h"

#include <algorithm>

// First tokens of a prompt, which it shares with a slot's text up to n_common, that a checkpoint gives.
static int32_t n_by_checkpoint(const server_prompt & prompt, int32_t n_common) {
    int32_t res = 0;
    for (const auto & one : prompt.checkpoints) {
        if (one.pos_max <= n_common && (one.pos_min < n_common - 1 || one.pos_min == 0)) {
            res = std::max(res, (int32_t) one.n_tokens);
        }
    }
    return res;
}

bool morphkv_observer::restores(int32_t id_slot, const server_task & task, const server_prompt & prompt,
                                const llama_context * ctx_dft, int32_t & n_past) {
    state & now = states.at(id_slot);
    now.moved   = {};
    // a draft's context has no archive, and what is no words has no ids
    if (given.archive.empty() || !given.restores || ctx_dft || prompt.tokens.has_mtmd || task.tokens.has_mtmd) {
        return false;
    }
    const llama_tokens & text   = prompt.tokens.get_tokens();
    const llama_tokens & wanted = task.tokens.get_tokens();
    morphkv_change       plan{};
    plan.size = sizeof(plan);
    if (morphkv_change_plan(text.data(), text.size(), wanted.data(), wanted.size(), n_by_checkpoint(prompt, n_past),
                            &plan) != MORPHKV_STATUS_OK ||
        plan.n_first == 0) {
        return false;
    }
    auto worked = [&](morphkv_status status) {
        if (status != MORPHKV_STATUS_OK) {
            LOG_INF("slot %d: MorphKV: %s\n", id_slot, morphkv_last_error());
        }
        return status == MORPHKV_STATUS_OK;
    };
    moved_passage moved = { nullptr, plan.passage_to, plan.n_passage };
    if (plan.n_passage > 0) {
        morphkv_passage * passage = nullptr;
        if (!worked(morphkv_passage_take(ctx, id_slot, plan.passage_first, plan.n_passage, &passage))) {
            return false;
        }
        moved.passage.reset(passage, morphkv_passage_free);
    }
    morphkv_restored out{};
    out.size = sizeof(out);
    if (!worked(morphkv_restore(ctx, id_slot, text.data(), plan.n_first, &out))) {
        return false;
    }
    LOG_INF("slot %d: MorphKV: %d of %d tokens come back by the archive\n", id_slot, plan.n_first + plan.n_passage,
            task.n_tokens());
    n_past                 = plan.n_first;
    now.pending.n_restored = plan.n_first;
    now.moved              = moved;
    return true;
}

int32_t morphkv_observer::put_moved(int32_t id_slot, const server_task & task, int32_t & n_held) {
    state &             now   = states.at(id_slot);
    const moved_passage moved = now.moved;
    const llama_tokens  ids   = task.tokens.get_text_tokens();
    morphkv_restored    out{};
    out.size  = sizeof(out);
    now.moved = {};
    if (morphkv_passage_put(ctx, id_slot, moved.passage.get(), ids.data(), moved.to + moved.n, &out) !=
        MORPHKV_STATUS_OK) {
        LOG_WRN("slot %d: MorphKV: %s\n", id_slot, morphkv_last_error());
        // it may have been cleared
        n_held = holds(id_slot, n_held) ? n_held : 0;
        return 0;
    }
    now.prompt.n_past = moved.to + moved.n;
    now.pending.n_restored += moved.n;
    view.look_at(id_slot);
    return moved.n;
}
