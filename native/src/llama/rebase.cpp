// Rotary rebase: callers' positions go on for ever, those that RoPE sees stay below a limit.
//
// When the next rotary position would reach the limit, all keys and the queries in the ring are turned. The recent tokens
// and those that came up to n_near() before them keep their distances; older ones come to stand at 0, 1, 2, ... in their
// order, head by head. Only then: closing gaps at every eviction was measurably worse (shared/DESIGN.md, section 10), and
// so was closing all of them, which puts the oldest tokens right before the recent ones (native/README.md).

#include "llama/memory.h"

#include "llama-context.h"

namespace {

// Gives an input of the decode graph the rotary positions of a ubatch; the model's own input has filled it before.
class position_input : public llm_graph_input_i {
public:
    position_input(const morphkv_cache * mkv, ggml_tensor * pos) : mkv(mkv), pos(pos) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!pos->buffer || !ubatch->pos) {
            return;
        }
        bool                   is_moved = false;
        std::vector<llama_pos> data(ubatch->n_tokens);
        for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
            const llama_pos offset = mkv->rotary_offset(ubatch->seq_id[i][0]);
            data[i]                = ubatch->pos[i] - offset;
            is_moved |= offset != 0;
        }
        if (!is_moved) {
            return;
        }
        GGML_ASSERT((int64_t) data.size() == ggml_nelements(pos));
        ggml_backend_tensor_set(pos, data.data(), 0, ggml_nbytes(pos));
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * mctx = dynamic_cast<const morphkv_context *>(params.mctx);
        return mctx && mctx->get_cache() == mkv && pos->ne[0] == params.ubatch.n_tokens;
    }

private:
    const morphkv_cache * mkv;
    ggml_tensor *         pos;
};

}  // namespace

void morphkv_cache::build_rotary_positions(llm_graph_result * res, ggml_tensor * pos) {
    // several positions a token (M-RoPE) and learned ones are not rebased
    if (params.rope_limit != 0 && n_pos == 1 && pos_end == 0) {
        res->add_input(std::make_unique<position_input>(this, pos));
    }
}

const morphkv_side_layer * morphkv_cache::find_unknown_rope() const {
    for (const auto & layer : side.layers) {
        if (layer.rope.is == morphkv_rope::kind::UNKNOWN) {
            return &layer;
        }
    }
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        if (window->layers[i].rope.is == morphkv_rope::kind::UNKNOWN) {
            return &window->layers[i];
        }
    }
    return nullptr;
}

llama_pos morphkv_cache::n_near() const {
    return (rope_limit() - (llama_pos) n_limit(params)) / 2;
}

bool morphkv_cache::make_rotary_room(llama_seq_id seq_id, llama_pos pos) {
    const llama_pos limit = rope_limit();
    if (limit == 0 || pos - streams[seq_id].rotary_offset < limit || n_used(seq_id) == 0) {
        return true;
    }
    return rebase(seq_id);
}

bool morphkv_cache::rebase(llama_seq_id seq_id) {
    auto & stream = streams[seq_id];

    // without an eviction the first token of all comes to 0
    const auto &    cells = get_cells(seq_id);
    const llama_pos offset =
        has_evicted(seq_id) ? cells.pos_get(n_distant) - (llama_pos) n_distant - n_near() : cells.pos_get(0);

    ggml_backend_sched_synchronize(lctx->get_sched());
    std::vector<morphkv_slots> slots;
    for (size_t il = 0; has_evicted(seq_id) && il < side.layers.size(); ++il) {
        const auto pos = side.get_positions(side.layers[il], seq_id);
        slots.push_back({ pos, pos });
    }
    morphkv_runner runner(lctx, layers());
    runner.inject_failure = inject_failure;
    move_plan   plan;
    std::string why;
    try {
        plan = plan_moves(seq_id, offset, /*base =*/0, slots, {});
        why  = compute_moves(seq_id, plan.layers, stream.rotary_offset - offset, runner);
    } catch (const std::exception & err) {
        why = err.what();
    }
    n_sched_uses++;
    if (!why.empty()) {
        return fail("rebase", seq_id, why, runner.has_changed);
    }
    note_moves(seq_id, std::move(plan));
    stream.n_rebases++;
    return true;
}

std::string morphkv_cache::why_not_rebased() const {
    for (const uint32_t n_used : sizes_up_to(n_limit(params))) {
        const std::string why = why_not_moved(n_used, 0, /*is_recall =*/false);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_computed(llama_context * lctx) {
    this->lctx      = lctx;
    std::string why = why_not_evicted();
    return why.empty() && rope_limit() > 0 ? why_not_rebased() : why;
}
