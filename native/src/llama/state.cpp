// Saving: see llama/state.h.

#include "llama/state.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <cstring>

morphkv_state_header morphkv_make_state_header(const morphkv_params & p, const std::vector<morphkv_side_layer> & layers,
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
    res.n_layer     = layers.size();
    res.n_seq       = n_seq;

    morphkv_byte_hash hash;
    for (const auto & layer : layers) {
        const int64_t shape[] = { layer.il,
                                  layer.n_head,
                                  layer.n_head_kv,
                                  layer.k->type,
                                  layer.k->ne[0],
                                  layer.v ? layer.v->type : -1,
                                  layer.v ? layer.v->ne[0] : 0,
                                  layer.ring->type,
                                  layer.ring->ne[1],
                                  layer.serial->ne[0] };
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

morphkv_saved_text morphkv_cache::saved_text(llama_seq_id seq_id) const {
    const auto &       text = sequences[seq_id].text;
    morphkv_saved_text res  = { text, {}, {}, {} };
    for (size_t i = 0; i < groups.size(); ++i) {
        res.tokens.push_back(morphkv_get_tokens(groups[i], seq_id, 0, text.n_used(i)));
    }
    if (window) {
        res.windowed_tokens = window->get_tokens(seq_id, *text.windowed);
    }
    if (archives) {
        res.archive = archives->of(seq_id).get_header();
    }
    return res;
}

std::vector<morphkv_slice> morphkv_cache::slices(llama_seq_id seq_id, const morphkv_text & text) const {
    std::vector<morphkv_slice> res;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto of_group = groups[i].side.slices(seq_id, text.n_used(i));
        res.insert(res.end(), of_group.begin(), of_group.end());
    }
    if (window) {
        for (const auto & slice : window->slices(seq_id, *text.windowed)) {
            res.push_back(slice);
        }
    }
    return res;
}

// First and last sequence of a state; -1 is all.
std::pair<llama_seq_id, llama_seq_id> morphkv_cache::saved_range(llama_seq_id seq_id) const {
    const llama_seq_id n_seq = sequences.size();
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

    morphkv_io_writer     bytes(io);
    morphkv_hashed_writer out(bytes);
    auto header = morphkv_make_state_header(params, cut_layers(), window.get(), rope_limit(), n_rot(), last - first + 1,
                                            archives ? &archives->of(first) : nullptr, flags);
    header.attached = attached_hash();
    out.write(&header, sizeof(header));
    for (llama_seq_id s = first; s <= last; ++s) {
        morphkv_write_text(out, saved_text(s), archives != nullptr);
    }
    out.write_checksum();

    uint64_t n_marks = 0;
    for (llama_seq_id s = first; s <= last; ++s) {
        for (const auto & slice : slices(s, sequences[s].text)) {
            io.write_tensor(slice.tensor, slice.offset, slice.size);
            out.write_mark(++n_marks);
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
