#include "llama/hybrid.h"

#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama/batch-context.h"
#include "llama/recurrent.h"
#include "llama/state.h"

#include <algorithm>
#include <functional>

morphkv_hybrid::morphkv_hybrid(std::unique_ptr<morphkv_cache> attn, std::unique_ptr<llama_memory_recurrent> recr)
    : attn(std::move(attn)),
      recr(std::move(recr)),
      marks(*this->recr, this->attn->get_n_stream()),
      n_drafted(this->attn->get_n_stream(), 0) {
    this->attn->on_clear = [this](llama_seq_id seq_id) {
        this->recr->seq_rm(seq_id, -1, -1);
        marks.drop(seq_id);
        n_drafted[seq_id] = 0;
    };
}

//
// batches
//

namespace {

using note_fn = std::function<void(const llama_ubatch &)>;

// base: the class that graphs take the two parts from.
template <typename base> class hybrid_context : public base, public morphkv_context {
public:
    hybrid_context(morphkv_cache * mkv, note_fn note, std::vector<llama_ubatch> ubatches, llama_memory_context_i * attn,
                   llama_memory_context_i * recr)
        : base(std::move(ubatches), llama_memory_context_ptr(attn), llama_memory_context_ptr(recr)),
          mkv(mkv),
          note(std::move(note)),
          attn(attn),
          recr(recr) {}

    // The recurrent layers get no tokens that the others could not take.
    bool apply() override {
        if (!attn->apply() || !recr->apply()) {
            return false;
        }
        note(attn->get_ubatch());
        return true;
    }

    morphkv_cache *                     get_cache() const override { return mkv; }
    const llama_kv_cache_iswa_context * get_group(size_t i_group) const override {
        const auto * part = dynamic_cast<const morphkv_context *>(attn);
        return part ? part->get_group(i_group) : nullptr;
    }

private:
    morphkv_cache * mkv;
    note_fn         note;

    // owned by base
    llama_memory_context_i * attn;
    llama_memory_context_i * recr;
};

}  // namespace

llama_memory_context_ptr morphkv_hybrid::make_context(std::vector<llama_ubatch> ubatches,
                                                      llama_memory_context_ptr  ctx_attn,
                                                      llama_memory_context_ptr  ctx_recr) {
    auto note = [this](const llama_ubatch & ubatch) {
        note_decoded(ubatch);
    };
    if (attn->window) {
        return std::make_unique<hybrid_context<llama_memory_hybrid_iswa_context>>(
            attn.get(), std::move(note), std::move(ubatches), ctx_attn.release(), ctx_recr.release());
    }
    return std::make_unique<hybrid_context<llama_memory_hybrid_context>>(
        attn.get(), std::move(note), std::move(ubatches), ctx_attn.release(), ctx_recr.release());
}

llama_memory_context_ptr morphkv_hybrid::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    morphkv_error_clear();
    if (!attn->accepts(balloc.get_batch())) {
        return std::make_unique<llama_memory_hybrid_context>(LLAMA_MEMORY_STATUS_FAILED_COMPUTE);
    }

    // as llama_memory_hybrid splits: what may be taken back as a draft stays in one micro-batch, if there is room
    const uint32_t n_tail = recr->n_rs_seq > 0 ? recr->n_rs_seq + 1 : 0;
    auto           split  = [&](uint32_t n_max) {
        return embd_all ? balloc.split_seq(n_max)
                        : balloc.split_equal(n_max, attn->get_n_stream() > 1, n_max > n_tail ? n_tail : 0);
    };
    for (const bool is_careful : { false, true }) {
        auto plan = attn->plan_batch(balloc, n_ubatch, is_careful, split);
        if (plan && recr->prepare(plan->ubatches)) {
            auto ubatches = plan->ubatches;
            auto ctx_recr = std::make_unique<llama_memory_recurrent_context>(recr.get(), ubatches);
            return make_context(std::move(ubatches), attn->make_context(std::move(*plan)), std::move(ctx_recr));
        }
    }
    return std::make_unique<llama_memory_hybrid_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr morphkv_hybrid::init_full() {
    return make_context({}, attn->init_full(), recr->init_full());
}

llama_memory_context_ptr morphkv_hybrid::init_update(llama_context * lctx, bool optimize) {
    // recurrent layers have nothing to update
    return attn->init_update(lctx, optimize);
}

//
// sequences
//

bool morphkv_hybrid::get_can_shift() const {
    return attn->get_can_shift();
}

void morphkv_hybrid::clear(bool data) {
    attn->clear(data);
    recr->clear(data);
    marks.clear();
    n_drafted.assign(n_drafted.size(), 0);
}

void morphkv_hybrid::set_mark(llama_seq_id seq_id) {
    marks.set(seq_id, attn->text_of(seq_id).n_tokens());
}

void morphkv_hybrid::note_decoded(const llama_ubatch & ubatch) {
    const uint32_t n_new = ubatch.n_tokens / ubatch.n_seqs_unq;
    for (uint32_t i = 0; i < ubatch.n_tokens; i += n_new) {
        n_drafted[ubatch.seq_id[i][0]] = std::min(n_new - 1, recr->n_rs_seq);
    }
}

morphkv_hybrid::way morphkv_hybrid::find_way(llama_seq_id seq_id, int32_t serial) const {
    if (serial == marks.at(seq_id)) {
        return way::MARK;
    }
    return attn->text_of(seq_id).n_tokens() - serial <= n_drafted[seq_id] ? way::DRAFT : way::NONE;
}

void morphkv_hybrid::go_back(llama_seq_id seq_id, int32_t serial) {
    if (find_way(seq_id, serial) == way::MARK) {
        marks.go_back(seq_id);
    } else {
        // a mark that shares the sequence's cell would follow it
        if (marks.at(seq_id) > serial) {
            marks.drop(seq_id);
        }
        const bool is_done = recr->seq_rm(seq_id, attn->text_of(seq_id).pos_of(serial), -1);
        GGML_ASSERT(is_done);
    }
    n_drafted[seq_id] = 0;
}

llama_pos morphkv_hybrid::mark_pos(llama_seq_id seq_id) const {
    if (marks.at(seq_id) == 0) {
        return -1;
    }
    auto until_mark = attn->text_of(seq_id).positions;
    until_mark.truncate(marks.at(seq_id));
    const llama_pos res = until_mark.next();
    return attn->plan_removal(seq_id, res, -1) == morphkv_removal::REFUSED ? -1 : res;
}

bool morphkv_hybrid::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const llama_seq_id n_seq = attn->get_n_stream();
    const llama_seq_id first = std::max(seq_id, 0), end = seq_id < 0 ? n_seq : std::min(seq_id + 1, n_seq);

    auto serial_of = [&](llama_seq_id s) {
        return attn->text_of(s).positions.serial_from(std::max(p0, 0));
    };
    for (llama_seq_id s = first; s < end; ++s) {
        const auto removal = attn->plan_removal(s, p0, p1);
        if (removal == morphkv_removal::REFUSED ||
            (removal == morphkv_removal::TAIL && find_way(s, serial_of(s)) == way::NONE)) {
            return false;
        }
    }
    for (llama_seq_id s = first; s < end; ++s) {
        if (attn->plan_removal(s, p0, p1) == morphkv_removal::TAIL) {
            go_back(s, serial_of(s));
        }
    }
    return attn->seq_rm(seq_id, p0, p1);
}

void morphkv_hybrid::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    if (attn->copy(seq_id_src, seq_id_dst, p0, p1)) {
        recr->seq_cp(seq_id_src, seq_id_dst, -1, -1);
        recr->set_rs_idx(seq_id_dst, recr->rs_idx[seq_id_src]);
        marks.copy(seq_id_src, seq_id_dst);
        // they share a cell now, and what has been taken back of it
        recr->set_rs_idx(seq_id_dst, recr->rs_idx[seq_id_src]);
        n_drafted[seq_id_src] = n_drafted[seq_id_dst] = 0;
    }
}

void morphkv_hybrid::seq_keep(llama_seq_id seq_id) {
    attn->seq_keep(seq_id);
}

void morphkv_hybrid::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    attn->seq_add(seq_id, p0, p1, shift);
}

void morphkv_hybrid::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    attn->seq_div(seq_id, p0, p1, d);
}

llama_pos morphkv_hybrid::seq_pos_min(llama_seq_id seq_id) const {
    return std::max(attn->seq_pos_min(seq_id), recr->seq_pos_min(seq_id));
}

llama_pos morphkv_hybrid::seq_pos_max(llama_seq_id seq_id) const {
    return std::min(attn->seq_pos_max(seq_id), recr->seq_pos_max(seq_id));
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_hybrid::memory_breakdown() const {
    auto res = attn->memory_breakdown();
    for (const auto & [buft, n_bytes] : recr->memory_breakdown()) {
        res[buft] += n_bytes;
    }
    return res;
}

//
// state
//

void morphkv_hybrid::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    attn->state_write(io, seq_id, flags);
    const morphkv_marks::hidden hidden(marks);
    morphkv_recurrent_state::write(io, *recr, seq_id, flags);
}

void morphkv_hybrid::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    morphkv_error_clear();
    try {
        auto                   state = attn->read_state(io, seq_id, flags);
        std::vector<llama_pos> newest;
        for (const auto & sequence : state->sequences) {
            const auto & text = sequence.text.text;
            newest.push_back(text.is_empty() ? -1 : text.pos_of(text.n_tokens() - 1));
        }
        const morphkv_recurrent_state recurrent(io, *recr, seq_id, flags, newest, /*has_end =*/state->version >= 5);
        morphkv_require_end(io);
        attn->apply_state(std::move(state));  // empties sequences, and so drops their marks
        recurrent.apply(*recr);
    } catch (const std::exception & err) {
        // llama.cpp says it to the log alone
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

//
// what hosts ask
//

void morphkv_hybrid::get_stats(llama_seq_id seq_id, morphkv_stats & out) const {
    attn->get_stats(seq_id, out);
    const auto & text = attn->text_of(seq_id);
    if (!text.is_empty()) {
        out.complete_pos = std::max(out.complete_pos, text.pos_of(text.n_tokens() - 1 - n_drafted[seq_id]));
        out.exact_pos    = std::max(out.exact_pos, out.complete_pos + 1);
    }
    out.mark_pos = mark_pos(seq_id);
    out.extra_bytes += marks.n_bytes();
}

morphkv_cache * morphkv_find_cache(llama_memory_i * memory) {
    if (auto * hybrid = dynamic_cast<morphkv_hybrid *>(memory)) {
        return &hybrid->get_cache();
    }
    return dynamic_cast<morphkv_cache *>(memory);
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_kv_breakdown(llama_memory_i * memory) {
    if (const auto * cache = morphkv_find_cache(memory)) {
        return cache->kv_breakdown();
    }
    if (const auto * hybrid = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return hybrid->get_mem_attn()->memory_breakdown();
    }
    if (const auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return hybrid->get_mem_attn()->memory_breakdown();
    }
    return memory->memory_breakdown();
}
