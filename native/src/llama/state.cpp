// Saving: see morphkv-state.h.

#include "llama/state.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <cstring>

morphkv_state_header morphkv_make_state_header(const morphkv_params & p, const morphkv_side & side,
                                               const morphkv_window * window, int32_t rope_limit, uint32_t n_rot,
                                               uint32_t n_seq, const morphkv_archive * archive,
                                               llama_state_seq_flags flags) {
    morphkv_state_header res{};
    res.capacity    = p.capacity;
    res.window      = p.window;
    res.interval    = p.interval;
    res.keep        = p.keep;
    res.prompt_room = p.prompt_room;
    res.votes       = p.votes;
    res.fusion      = p.fusion;
    res.policy      = p.policy;
    res.decay       = p.decay;
    res.seed        = p.seed;
    res.rope_limit  = rope_limit;
    res.n_rot       = n_rot;
    res.n_layer     = side.layers.size();
    res.n_seq       = n_seq;

    morphkv_fnv_hash hash;
    for (const auto & layer : side.layers) {
        const int64_t shape[] = { layer.il,
                                  layer.n_head,
                                  layer.n_head_kv,
                                  layer.k->type,
                                  layer.k->ne[0],
                                  layer.v ? layer.v->type : -1,
                                  layer.v ? layer.v->ne[0] : 0,
                                  layer.ring->type,
                                  layer.ring->ne[1],
                                  layer.pos->ne[0] };
        hash.add(shape, sizeof(shape));
    }
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        const auto &  layer   = window->layers[i];
        const int64_t shape[] = { layer.il,       layer.n_head_kv, layer.k->type, layer.k->ne[0],
                                  layer.k->ne[1], layer.v->type,   layer.v->ne[0] };
        hash.add(shape, sizeof(shape));
    }
    res.layers = hash.value;

    res.archive      = archive ? archive->layout.hash() : 0;
    res.has_no_pages = archive && (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    return res;
}

uint32_t morphkv_cache::n_rot() const {
    ggml_context_ptr    ctx(ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    const ggml_tensor * rot = build_input_k_rot(ctx.get());
    return rot ? rot->ne[0] : 0;
}

void morphkv_cache::write_stream(morphkv_hashed_writer & out, llama_seq_id seq_id) const {
    const auto & stream = streams[seq_id];
    const auto   cells  = get_cell_list(seq_id, 0);

    morphkv_stream_header header{};
    header.n_evictions   = stream.n_evictions;
    header.n_evicted     = stream.n_evicted;
    header.pos_exact     = stream.pos_exact;
    header.pos_prompt    = stream.pos_prompt;
    header.n_rebases     = stream.n_rebases;
    header.n_recalls     = stream.n_recalls;
    header.n_recalled    = stream.n_recalled;
    header.rotary_offset = stream.rotary_offset;
    header.rotary_base   = stream.rotary_base;
    header.n_rebased     = stream.rebased.size();
    header.n_keep        = stream.n_keep;
    header.n_used        = cells.pos.size();
    header.first_distant = cells.pos.empty() ? 0 : cells.pos[0];
    header.first_recent  = cells.pos.size() > n_distant ? cells.pos[n_distant] : header.first_distant + n_distant;
    out.write(&header, sizeof(header));
    out.write(stream.ring_pos.data(), stream.ring_pos.size() * sizeof(llama_pos));
    out.write(cells.token.data(), cells.token.size() * sizeof(llama_token));
    out.write(stream.rebased.data(), stream.rebased.size() * sizeof(llama_pos));
    if (window) {
        const auto                  run         = window->get_run(seq_id);
        const morphkv_window_header with_window = { run.newest, run.i_newest, (uint32_t) run.tokens.size() };
        out.write(&with_window, sizeof(with_window));
        out.write(run.tokens.data(), run.tokens.size() * sizeof(llama_token));
    }
    if (archives) {
        const auto held = archives->of(seq_id).get_header();
        out.write(&held, sizeof(held));
    }
}

// First and last sequence of a state; -1 is all.
std::pair<llama_seq_id, llama_seq_id> morphkv_cache::saved_range(llama_seq_id seq_id) const {
    const llama_seq_id n_seq = streams.size();
    if (seq_id >= n_seq) {
        throw std::runtime_error("seq_id must be below " + std::to_string(n_seq) + ", got " + std::to_string(seq_id));
    }
    return seq_id < 0 ? std::make_pair(0, n_seq - 1) : std::make_pair(seq_id, seq_id);
}

static morphkv_page lost_page(const morphkv_archive & archive, int64_t i_page) {
    morphkv_page   res(archive.layout.page_bytes);
    const uint64_t hash = archive.hash_of(i_page);
    memcpy(res.data(), &hash, std::min(sizeof(hash), res.size()));
    return res;
}

// A checkpoint (PARTIAL_ONLY) needs all but the archive's pages, as what is distant changes.
void morphkv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    morphkv_error_clear();
    try {
        write_state(io, seq_id, flags);
    } catch (const std::exception & err) {
        // llama.cpp says it to the log alone
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

void morphkv_cache::write_state(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const auto         range = saved_range(seq_id);
    const llama_seq_id first = range.first, last = range.second;

    morphkv_hashed_writer out(io);
    const auto header = morphkv_make_state_header(params, side, window.get(), rope_limit(), n_rot(), last - first + 1,
                                                  archives ? &archives->of(first) : nullptr, flags);
    out.write(&header, sizeof(header));
    for (llama_seq_id s = first; s <= last; ++s) {
        write_stream(out, s);
    }
    out.write_checksum();

    uint64_t n_marks = 0;
    for (llama_seq_id s = first; s <= last; ++s) {
        auto write = [&](ggml_tensor * t, size_t offset, size_t size) {
            io.write_tensor(t, offset, size);
            out.write_mark(++n_marks);
        };
        side.for_each_slice(s, n_used(s), write);
        if (window) {
            window->for_each_slice(s, window->get_run(s), write);
        }
        if (!archives) {
            continue;
        }
        const auto & archive    = archives->of(s);
        auto         write_page = [&](const morphkv_page & page, bool is_lost) {
            io.write(page.data(), page.size());
            out.write_mark(++n_marks, is_lost);
        };
        for (int64_t i = archive.n_dropped(); !header.has_no_pages && i < archive.n_full(); ++i) {
            const auto page = archive.find_page(i);
            write_page(page ? *page : lost_page(archive, i), !page);
        }
        write_page(archive.get_tail(), false);
    }
}
