// Moves: where the tokens of a sequence come to stand at a recall or a rebase, and the graphs that bring them there.

#include "core/moves.h"

#include "llama/memory.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace {

constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
constexpr size_t  N_LAYERS  = 4;                                    // in a graph that gets rows from the host
constexpr size_t  N_TENSORS = 2 * MORPHKV_ROTATE_MAX_TENSORS + 24;  // of a layer in a graph
constexpr int64_t MAX_TURN  = 1 << 30;

// A key that has to move, or a token that comes into a slot.
struct origin {
    int64_t i_page;  // -1: it is in none, or needs none
    int32_t i_row;   // of the page
    int32_t pos;
    int32_t i_layer;
    int32_t row;
    int32_t head;
    int32_t at;
    int32_t by;
    bool    is_new;
    bool    is_kept;  // its original is
};

float bits_of(ggml_type type) {
    return 8.0f * ggml_type_size(type) / ggml_blck_size(type);
}

bool is_held(const morphkv_archive & archive, int64_t i_page) {
    return i_page >= archive.n_dropped() && i_page < archive.n_full();
}

}  // namespace

// Adds what the archive has of these, a page at a time, as a page may be megabytes in a file. kept: by layer, or empty.
static void add_moves(std::vector<origin> origins, const morphkv_archive * archive, const morphkv_pages & pages,
                      std::vector<morphkv_originals> & kept, std::vector<morphkv_move> & moves) {
    for (origin & from : origins) {
        from.is_kept = !from.is_new && !kept.empty() && kept[from.i_layer].pos[from.row] == from.pos;
        from.i_page  = from.is_kept ? -1 : from.i_page;
    }
    std::stable_sort(origins.begin(), origins.end(),
                     [](const origin & a, const origin & b) { return a.i_page < b.i_page; });
    const std::map<int64_t, morphkv_archive::page_ptr> held(pages.begin(), pages.end());

    morphkv_archive::page_ptr page;
    for (size_t i = 0; i < origins.size(); ++i) {
        const origin & from = origins[i];
        if (from.i_page >= 0 && (i == 0 || from.i_page != origins[i - 1].i_page)) {
            const auto it = held.find(from.i_page);
            page          = it != held.end() ? it->second : archive->find_page(from.i_page);
        }
        auto & move = moves[from.i_layer];
        if (!page && !from.is_kept) {
            GGML_ASSERT(!from.is_new);
            move.turned.push_back(from.row);
            move.by.push_back(from.by);
            continue;
        }
        const auto &    layer = archive->layout.layers[from.i_layer];
        const size_t    n_k   = ggml_row_size(archive->layout.type_k, layer.n_embd_k);
        const size_t    n_v   = ggml_row_size(archive->layout.type_v, layer.n_embd_v);
        const size_t    i_row = from.i_row * layer.n_head_kv + from.head;
        const uint8_t * k =
            from.is_kept ? kept[from.i_layer].k.data() + from.row * n_k : page->data() + layer.k_at + i_row * n_k;
        move.placed.push_back(from.row);
        move.at.push_back(from.at);
        move.k.insert(move.k.end(), k, k + n_k);
        if (from.is_new) {
            const uint8_t * v = page->data() + layer.v_at + i_row * n_v;
            move.filled.push_back(from.row);
            move.v.insert(move.v.end(), v, v + n_v);
        }
        if (!kept.empty() && !from.is_kept) {
            kept[from.i_layer].pos[from.row] = from.pos;
            memcpy(kept[from.i_layer].k.data() + from.row * n_k, k, n_k);
        }
    }
}

// Room for the originals of all slots, once there is one to put.
static void reserve_originals(const morphkv_page_layout & layout, uint32_t n_distant,
                              std::vector<morphkv_originals> & kept) {
    for (size_t il = kept.size(); il < layout.layers.size(); ++il) {
        const size_t n_rows = n_distant * layout.layers[il].n_head_kv;
        kept.push_back({ std::vector<int32_t>(n_rows, -1), std::vector<uint8_t>(n_distant * layout.k_bytes(il)) });
    }
}

int64_t morphkv_cache::rotary_position(llama_seq_id seq_id, llama_pos pos, size_t i_head) const {
    const auto &  stream = streams[seq_id];
    const int64_t rotary = (int64_t) pos - stream.rotary_offset;
    if (rotary < (int64_t) stream.rotary_base + n_distant && !stream.rebased.empty()) {
        const auto ranked = stream.rebased.begin() + i_head * n_distant;
        const auto it     = std::lower_bound(ranked, ranked + n_distant, pos);
        if (it != ranked + n_distant && *it == pos) {
            return stream.rotary_base + (it - ranked);
        }
    }
    return rotary;
}

morphkv_cache::move_plan morphkv_cache::plan_moves(llama_seq_id seq_id, llama_pos offset, llama_pos base,
                                                   const std::vector<morphkv_slots> & slots,
                                                   const morphkv_pages &              pages) {
    const morphkv_archive * archive = archives ? &archives->of(seq_id) : nullptr;
    const bool      has_originals   = archive && bits_of(archive->layout.type_k) >= bits_of(side.layers[0].k->type);
    const llama_pos recent_by       = streams[seq_id].rotary_offset - offset;

    move_plan           res{ offset, base, {}, std::vector<morphkv_move>(side.layers.size()) };
    std::vector<origin> origins;
    size_t              i_head = 0;  // of all layers
    for (size_t il = 0; il < side.layers.size(); ++il) {
        const auto &  layer  = side.layers[il];
        const bool    turns  = layer.rope.is == morphkv_rope::kind::ROTATED;
        const int32_t n_head = layer.n_head_kv;
        if (turns && recent_by != 0) {
            auto & move = res.layers[il];
            for (uint32_t row = has_evicted(seq_id) ? n_distant * n_head : 0; row < n_used(seq_id) * n_head; ++row) {
                move.turned.push_back(row);
            }
            move.by.assign(move.turned.size(), recent_by);
        }
        for (int32_t h = 0; has_evicted(seq_id) && h < n_head; ++h, ++i_head) {
            const auto             before = slots[il].before.begin() + h * n_distant;
            const auto             after  = slots[il].after.begin() + h * n_distant;
            std::vector<llama_pos> ordered(after, after + n_distant);
            std::sort(ordered.begin(), ordered.end());
            for (uint32_t i = 0; i < n_distant; ++i) {
                // a hostile state may have any bits for positions
                const llama_pos pos    = after[i];
                const bool      is_new = before[i] != pos;
                const int64_t   rank   = std::lower_bound(ordered.begin(), ordered.end(), pos) - ordered.begin();
                const int64_t   moved  = (int64_t) pos - offset;
                const int64_t   to     = moved < (int64_t) base + n_distant ? base + rank : moved;
                const int64_t   by     = to - rotary_position(seq_id, pos, i_head);
                if (!is_new && (by == 0 || !turns)) {
                    continue;
                }
                const int64_t i_token = has_originals || is_new ? (int64_t) pos - archive->pos_of(0) : -1;
                const int64_t i_page  = i_token < 0 ? -1 : i_token / N_PAGE;

                origin from{};
                from.i_page  = i_page >= 0 && is_held(*archive, i_page) ? i_page : -1;
                from.i_row   = i_token < 0 ? 0 : i_token % N_PAGE;
                from.pos     = pos;
                from.i_layer = il;
                from.row     = i * n_head + h;
                from.head    = h;
                from.at      = std::clamp<int64_t>(to, 0, MAX_TURN);
                from.by      = std::clamp<int64_t>(by, -MAX_TURN, MAX_TURN);
                from.is_new  = is_new;
                origins.push_back(from);
            }
            res.rebased.insert(res.rebased.end(), ordered.begin(), ordered.end());
        }
    }
    auto & kept = streams[seq_id].originals;
    if (keeps_originals && has_originals && !origins.empty()) {
        reserve_originals(archive->layout, n_distant, kept);
    }
    add_moves(std::move(origins), archive, pages, kept, res.layers);
    return res;
}

std::string morphkv_cache::compute_moves(llama_seq_id seq_id, const std::vector<morphkv_move> & moves,
                                         llama_pos query_delta, morphkv_runner & runner) const {
    ggml_tensor * rot          = nullptr;
    ggml_tensor * rot_window   = nullptr;
    ggml_tensor * query_deltas = nullptr;
    size_t        i_layer      = 0;

    auto begin = [&](morphkv_inputs & inputs) {
        rot          = build_input_k_rot(inputs.ctx);
        query_deltas = nullptr;
        if (rot) {
            inputs.add(rot, [this](ggml_tensor * t) { set_input_k_rot(t); });
        }
        rot_window = window ? window->build_input_k_rot(inputs.ctx) : nullptr;
        if (rot_window) {
            inputs.add(rot_window, [this](ggml_tensor * t) { window->set_input_k_rot(t); });
        }
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        ggml_context * ctx   = inputs.ctx;
        const bool     turns = layer.rope.is == morphkv_rope::kind::ROTATED;
        if (i_layer >= side.layers.size()) {
            if (turns) {
                window->build_rotate(inputs, gf, layer, seq_id, query_delta, rot_window);
            }
            return;
        }
        const auto & move  = moves[i_layer++];
        // a row for each head of each cell
        auto         heads = [&](ggml_tensor * t) {
            return ggml_view_2d(ctx, t, t->ne[0] / layer.n_head_kv, t->ne[1] * layer.n_head_kv,
                                t->nb[1] / layer.n_head_kv, seq_id * t->nb[2]);
        };
        auto put = [&](ggml_tensor * t, ggml_tensor * src, ggml_tensor * rows) {
            ggml_build_forward_expand(gf, ggml_set_rows(ctx, heads(t), src, rows));
        };
        auto numbers = [&](const std::vector<int32_t> & x) {
            return inputs.add(GGML_TYPE_I32, x.size(), 1, x);
        };
        auto from_host = [&](const std::vector<uint8_t> & data, ggml_type type, int64_t n_embd, int64_t n) {
            ggml_tensor * res = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd, n);
            inputs.add(res, [&data, type](ggml_tensor * t) {
                std::vector<float> floats(ggml_nelements(t));
                morphkv_convert_rows(type, data.data(), GGML_TYPE_F32, floats.data(), t->ne[1], t->ne[0]);
                ggml_backend_tensor_set(t, floats.data(), 0, ggml_nbytes(t));
            });
            return res;
        };
        if (!move.turned.empty()) {
            ggml_tensor * rows = numbers(move.turned);
            ggml_tensor * k    = ggml_get_rows(ctx, heads(layer.k), rows);
            put(layer.k, morphkv_build_turned(ctx, k, numbers(move.by), layer.rope, rot), rows);
        }
        if (!move.placed.empty()) {
            const auto &  layout = archives->of(seq_id).layout;
            const int64_t n      = move.placed.size();
            ggml_tensor * k      = from_host(move.k, layout.type_k, layer.k->ne[0] / layer.n_head_kv, n);
            ggml_tensor * at     = turns ? numbers(move.at) : nullptr;
            put(layer.k, morphkv_build_rotated(ctx, k, at, layer.rope, rot), numbers(move.placed));
        }
        if (!move.filled.empty()) {
            const auto & layout = archives->of(seq_id).layout;
            put(layer.v, from_host(move.v, layout.type_v, layer.v->ne[0] / layer.n_head_kv, move.filled.size()),
                numbers(move.filled));
        }
        if (turns && query_delta != 0) {
            const int64_t n_queries = layer.n_head * layer.ring->ne[1];
            if (!query_deltas || query_deltas->ne[0] != n_queries) {
                query_deltas = numbers(std::vector<int32_t>(n_queries, query_delta));
            }
            ggml_tensor * ring = morphkv_side::stream(ctx, layer.ring, seq_id);
            ggml_build_forward_expand(gf, morphkv_build_rotate(ctx, ring, layer.n_head, query_deltas, layer.rope, rot));
        }
    };
    // recent tokens of windowed layers turn by as much as the queries
    runner.set_layers(query_delta != 0 ? turned_layers() : layers());
    const bool has_rows =
        std::any_of(moves.begin(), moves.end(), [](const morphkv_move & move) { return !move.placed.empty(); });
    runner.n_max_layers = has_rows ? N_LAYERS : SIZE_MAX;
    return runner.run(N_TENSORS, begin, build);
}

void morphkv_cache::note_moves(llama_seq_id seq_id, move_plan plan) {
    auto & stream        = streams[seq_id];
    stream.rotary_offset = plan.offset;
    stream.rotary_base   = plan.base;
    stream.rebased       = std::move(plan.rebased);
    stream.pos_exact     = seq_pos_max(seq_id) + 1;
}

std::vector<const morphkv_side_layer *> morphkv_cache::turned_layers() const {
    std::vector<const morphkv_side_layer *> res = layers();
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        res.push_back(&window->layers[i]);
    }
    return res;
}

std::vector<uint32_t> morphkv_cache::sizes_up_to(uint32_t n) {
    constexpr uint32_t    N_STEPS = 16;
    std::vector<uint32_t> res;
    for (uint32_t i = N_STEPS; i > 0; --i) {
        res.push_back(std::max(1u, n * i / N_STEPS));
    }
    res.push_back(1);
    return res;
}

std::string morphkv_cache::why_not_moved(uint32_t n_turned, uint32_t n_placed, bool is_recall) const {
    std::vector<morphkv_move> moves(side.layers.size());
    for (size_t il = 0; il < moves.size(); ++il) {
        const auto & layer = side.layers[il];
        auto         rows  = [&](uint32_t n_cells) {
            return std::vector<int32_t>(n_cells * layer.n_head_kv);
        };
        if (layer.rope.is == morphkv_rope::kind::ROTATED) {
            moves[il].turned = moves[il].by = rows(n_turned);
        }
        moves[il].placed = moves[il].at = rows(n_placed);
        moves[il].filled                = rows(is_recall ? n_placed : 0);
    }
    morphkv_runner runner(lctx, layers());
    runner.check_only = true;
    return compute_moves(0, moves, /*query_delta =*/is_recall ? 0 : 1, runner);
}
