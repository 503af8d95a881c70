#include "plan.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr size_t ALIGNMENT = 256;

int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

int32_t power_of_2(int32_t n) {
    int32_t res = 1;
    while (res < n) {
        res *= 2;
    }
    return res;
}

// Counts bytes; a pointer is where it will be, from 0 on.
class arena {
public:
    template <typename T> T * add(int64_t n) {
        T * res = (T *) n_bytes;
        n_bytes += round_up(n * sizeof(T), ALIGNMENT);
        return res;
    }

    size_t n_bytes = 0;
};

// of the largest word that all of these are multiples of
int32_t width_of(const void * p, int64_t row_bytes, int64_t head_bytes) {
    int32_t res = 16;
    while (((uintptr_t) p | row_bytes | head_bytes) % res != 0) {
        res /= 2;
    }
    return res;
}

template <typename T> void move_to(T *& p, char * base) {
    p = (T *) (base + (size_t) p);
}

}  // namespace

morphkv_kernels_plan morphkv_plan_kernels(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                          int32_t n_layers) {
    morphkv_kernels_plan              res;
    std::vector<morphkv_kernels_args> all;
    std::vector<int32_t>              ints;  // behind the arguments
    std::vector<size_t>               i_votes, i_graduates;
    arena                             scratch;

    int32_t n_cuts = 0;
    for (int32_t i = 0; i < n_layers; ++i) {
        n_cuts = std::max(n_cuts, layers[i].i_cut + 1);
    }
    for (int32_t i = 0; i < n_cuts; ++i) {
        i_votes.push_back(ints.size());
        ints.insert(ints.end(), cuts[i].vote_rows, cuts[i].vote_rows + cuts[i].n_votes);
        i_graduates.push_back(ints.size());
        ints.insert(ints.end(), cuts[i].graduates, cuts[i].graduates + cuts[i].n_grad);
    }
    const size_t args_bytes = n_layers * sizeof(morphkv_kernels_args);

    for (int32_t i = 0; i < n_layers; ++i) {
        const auto & layer = layers[i];
        const auto & cut   = cuts[layer.i_cut];

        morphkv_kernels_args a{};
        a.k         = (char *) layer.k;
        a.v         = (char *) layer.v;
        a.ring      = (const char *) layer.ring;
        a.serial    = layer.serial;
        a.score     = layer.score;
        a.sinks     = layer.sinks;
        a.vote_rows = (const int32_t *) (args_bytes + i_votes[layer.i_cut] * sizeof(int32_t));
        a.graduates = (const int32_t *) (args_bytes + i_graduates[layer.i_cut] * sizeof(int32_t));

        a.k_row_bytes    = layer.k_row_bytes;
        a.v_row_bytes    = layer.v_row_bytes;
        a.ring_row_bytes = layer.ring_row_bytes;
        a.k_head_bytes   = layer.k_head_bytes;
        a.v_head_bytes   = layer.v_head_bytes;
        a.type_k         = layer.type_k;
        a.k_width        = width_of(layer.k, layer.k_row_bytes, layer.k_head_bytes);
        a.v_width        = layer.v ? width_of(layer.v, layer.v_row_bytes, layer.v_head_bytes) : 1;
        a.n_head_kv      = layer.n_head_kv;
        a.n_group        = layer.n_group;
        a.n_readers      = layer.n_readers;
        a.n_embd_head    = layer.n_embd_head;
        a.scale          = layer.scale;
        a.softcap        = layer.softcap;
        a.carried        = cut.carried;
        a.by_committees  = cut.by_committees && layer.score;
        a.use_max        = cut.use_max;
        a.n_keep         = cut.n_keep;
        a.n_distant      = cut.n_distant;
        a.n_grad         = cut.n_grad;
        a.n_window       = cut.n_window;
        a.n_votes        = cut.n_votes;
        a.n_old          = cut.n_distant + cut.n_grad;
        a.n_pairs        = std::min(cut.n_grad, cut.n_distant - cut.n_keep);
        a.n_parts        = (a.n_old + MORPHKV_CELLS - 1) / MORPHKV_CELLS;

        const int64_t n_head = a.n_head_kv;
        const int64_t n_rows = (int64_t) a.n_votes * a.n_group;
        a.n_keys   = power_of_2(a.by_committees ? a.n_old - a.n_keep : std::max(a.n_distant - a.n_keep, a.n_grad));
        a.part_max = scratch.add<float>(n_head * a.n_parts * n_rows);
        a.part_sum = scratch.add<float>(n_head * a.n_parts * n_rows);
        a.votes    = scratch.add<float>(n_head * a.n_old);
        a.sums     = a.score ? scratch.add<float>(n_head * a.n_old) : a.votes;
        a.ranks    = scratch.add<float>(a.by_committees ? n_head * a.n_old : 0);
        a.src      = scratch.add<int32_t>(n_head * a.n_pairs);
        a.dst      = scratch.add<int32_t>(n_head * a.n_pairs);

        // null means shared memory, and 0 is an offset: one more
        const bool is_shared = a.n_keys <= MORPHKV_N_SHARED;
        a.keys               = is_shared ? nullptr : scratch.add<uint64_t>(n_head * a.n_keys) + 1;
        res.n_keys           = is_shared ? std::max(res.n_keys, a.n_keys) : res.n_keys;
        all.push_back(a);

        const int64_t n_columns = a.k_row_bytes / a.k_width + (a.v ? a.v_row_bytes / a.v_width : 0);
        const int64_t n[5]      = {
            n_head * a.n_parts * ((n_rows + MORPHKV_TILE - 1) / MORPHKV_TILE),
            n_head * ((a.n_old + MORPHKV_TILE - 1) / MORPHKV_TILE),
            n_head,
            n_head * 2 * ((a.n_pairs + MORPHKV_PAIRS - 1) / MORPHKV_PAIRS),
            n_columns / MORPHKV_COLUMNS + 2,
        };
        for (int j = 0; j < 5; ++j) {
            res.n_blocks[j] = std::max<int64_t>(res.n_blocks[j], n[j]);
        }
    }
    res.n_layers      = n_layers;
    res.scratch_bytes = scratch.n_bytes;
    res.table.resize(args_bytes + ints.size() * sizeof(int32_t));
    memcpy(res.table.data(), all.data(), args_bytes);
    memcpy(res.table.data() + args_bytes, ints.data(), ints.size() * sizeof(int32_t));
    return res;
}

void morphkv_place_kernels(morphkv_kernels_plan & plan, char * table, char * scratch) {
    auto * all = (morphkv_kernels_args *) plan.table.data();
    for (int32_t i = 0; i < plan.n_layers; ++i) {
        auto & a = all[i];
        move_to(a.vote_rows, table);
        move_to(a.graduates, table);
        move_to(a.part_max, scratch);
        move_to(a.part_sum, scratch);
        move_to(a.votes, scratch);
        move_to(a.sums, scratch);
        move_to(a.ranks, scratch);
        move_to(a.src, scratch);
        move_to(a.dst, scratch);
        if (a.keys) {
            move_to(a.keys, scratch - sizeof(uint64_t));
        }
    }
}
