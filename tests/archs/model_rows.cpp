// What a context holds of any model in a GGUF, row by row. One JSON object on standard output; errors are parts of a row's
// length, of the worst row. tests/archs/rows.py says what they may be.
//
//   morphkv-model-rows moved MODEL TYPE     a text that begins far away, moved by one rebase, and decoded near
//   morphkv-model-rows worn MODEL TYPE      keys and queries turned by many small rebases, and at once
//   morphkv-model-rows recalled MODEL TYPE  rows that came back from an archive, and what they were when they were decoded
//   morphkv-model-rows votes MODEL LAYER READER...  what a layer keeps, and the joined votes of all layers that attend to it
//
// TYPE: of K and V, "f32", "f16", "q8_0".

#include "model_rows.h"

#include "ggml-cpu.h"

#include <set>

using layer_refs = std::vector<const morphkv_side_layer *>;

static model_ptr load_model(const char * path) {
    model_ptr res(llama_model_load_from_file(path, llama_model_default_params()));
    CHECK(res);
    return res;
}

static ggml_type type_of(const char * name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (ggml_type_name((ggml_type) i) && strcmp(ggml_type_name((ggml_type) i), name) == 0) {
            return (ggml_type) i;
        }
    }
    CHECK(false);
}

// Into an empty context, behind which decode() goes on.
static void decode_first(const context_ptr & ctx, llama_token token, llama_pos pos) {
    llama_batch batch    = llama_batch_init(1, 0, 1);
    batch.n_tokens       = 1;
    batch.token[0]       = token;
    batch.pos[0]         = pos;
    batch.n_seq_id[0]    = 1;
    batch.seq_id[0][0]   = 0;
    batch.logits[0]      = true;
    const int32_t status = llama_decode(ctx.get(), batch);
    llama_batch_free(batch);
    CHECK(status == 0);
}

static layer_refs layers_of(const context_ptr & ctx) {
    return morphkv_refs(cache_of(ctx).get_side().layers);
}

static layer_refs window_of(const context_ptr & ctx) {
    return morphkv_refs(cache_of(ctx).window->layers);
}

// Of each row of a against that of b, in parts of its length.
static floats errors_of(const floats & a, const floats & b, int64_t n_row) {
    CHECK(a.size() == b.size() && !a.empty());
    floats res;
    for (size_t i = 0; i < a.size(); i += n_row) {
        double error = 0.0, length = 0.0;
        for (int64_t j = 0; j < n_row; ++j) {
            CHECK(std::isfinite(a[i + j]) && std::isfinite(b[i + j]));
            error += std::pow((double) a[i + j] - b[i + j], 2);
            length += std::pow((double) b[i + j], 2);
        }
        res.push_back(std::sqrt(error / std::max(length, 1e-30)));
    }
    return res;
}

// Rows of a head each, turned once; in F32. by: one for each row.
static floats turned(const context_ptr & ctx, const floats & rows, int64_t n_embd_head, const morphkv_rope & rope,
                     const std::vector<int32_t> & by, bool is_window = false) {
    if (rope.is != morphkv_rope::kind::ROTATED) {
        return rows;
    }
    const int64_t          n = rows.size() / n_embd_head;
    const ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), 1);
    const ggml_context_ptr g(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    const morphkv_k_rot &  k_rot = is_window ? cache_of(ctx).window->k_rot : morphkv_inside::k_rot(ctx);
    ggml_tensor *          rot   = rope.is_multiplied ? k_rot.build(g.get()) : nullptr;
    ggml_tensor *          in    = ggml_new_tensor_2d(g.get(), GGML_TYPE_F32, n_embd_head, n);
    const auto             all   = rope.turns(by);
    ggml_tensor *          delta = ggml_new_tensor_1d(g.get(), GGML_TYPE_I32, all.size());
    ggml_tensor *          out   = morphkv_build_turned(g.get(), in, delta, rope, rot);
    ggml_cgraph *          gf    = ggml_new_graph(g.get());
    ggml_build_forward_expand(gf, out);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(g.get(), backend.get()));
    if (rot) {
        k_rot.fill(rot);
    }
    ggml_backend_tensor_set(in, rows.data(), 0, ggml_nbytes(in));
    ggml_backend_tensor_set(delta, all.data(), 0, ggml_nbytes(delta));
    CHECK(ggml_backend_graph_compute(backend.get(), gf) == GGML_STATUS_SUCCESS);
    floats res(rows.size());
    ggml_backend_tensor_get(out, res.data(), 0, ggml_nbytes(out));
    return res;
}

// Of each row what the one error has above a few times that of the other, the worst.
static double excess(const floats & errors, const floats & others) {
    double res = 0.0;
    for (size_t i = 0; i < errors.size(); ++i) {
        res = std::max(res, (double) errors[i] - 3.0 * others[i]);
    }
    return res;
}

// What is not rotated of a head, or nothing.
static floats still_part(const floats & rows, int64_t n_embd_head, const morphkv_rope & rope) {
    floats res;
    for (size_t i = 0; i < rows.size(); ++i) {
        const int64_t j = i % n_embd_head - rope.n_offs;
        if (j < 0 || j >= rope.n_dims) {
            res.push_back(rows[i]);
        }
    }
    return res;
}

// Keys of a against those of b, turned by so much. The two texts are decoded by other sums, and deep layers of random
// weights make much of little: what counts is by how much keys are off more than values, which are never turned.
static double worst_keys(const context_ptr & b, const layer_refs & of_a, const layer_refs & of_b, int32_t n, int32_t by,
                         bool is_window) {
    double res = 0.0;
    for (size_t i = 0; i < of_a.size(); ++i) {
        const auto &               x = *of_a[i], &y = *of_b[i];
        const int64_t              n_embd_head = x.k->ne[0] / x.n_head_kv;
        const int32_t              n_cells     = std::min<int64_t>(n, x.k->ne[1]);
        const floats               keys        = heads_of(x.k, n_cells);
        const std::vector<int32_t> each(n_cells * x.n_head_kv, by);
        const floats               expected = turned(b, heads_of(y.k, n_cells), n_embd_head, y.rope, each, is_window);
        const floats               off      = errors_of(keys, expected, n_embd_head);
        floats                     others(off.size());
        if (x.v) {
            others = errors_of(heads_of(x.v, n_cells), heads_of(y.v, n_cells), x.v->ne[0] / x.n_head_kv);
        } else if (y.rope.n_dims > 0 && y.rope.n_dims < n_embd_head) {
            others = errors_of(still_part(keys, n_embd_head, y.rope), still_part(expected, n_embd_head, y.rope),
                               n_embd_head - y.rope.n_dims);
        }
        res = std::max(res, excess(off, others));
    }
    return res;
}

static morphkv_params roomy_params(int32_t capacity) {
    auto res       = small_params();
    res.capacity   = capacity;
    res.interval   = 1000 - capacity;
    res.rope_limit = 0;
    return res;
}

// K, V and the query of a token as they were when it was decoded, and where RoPE had it.
struct original {
    int32_t             rotary;
    std::vector<floats> k, v, q;  // by layer
};

// Decodes tokens one by one behind what there is, and notes what they leave.
static void decode_and_note(const context_ptr & ctx, const tokens & text, std::vector<original> & notes) {
    for (const llama_token token : text) {
        decode_singly(ctx, { token });
        const auto s = stats(ctx);
        original   note{ s.logical_pos - s.rotary_offset, {}, {}, {} };
        for (const auto & layer : cache_of(ctx).get_side().layers) {
            note.k.push_back(heads_of(layer.k, 1, s.n_used - 1));
            note.v.push_back(layer.v ? heads_of(layer.v, 1, s.n_used - 1) : floats());
            note.q.push_back(heads_of(layer.ring, 1, s.logical_pos % layer.ring->ne[1]));
        }
        notes.push_back(note);
    }
}

static floats part(const floats & row, int32_t head, int64_t n) {
    return floats(row.begin() + head * n, row.begin() + (head + 1) * n);
}

// What rows were and by how much they should have turned since; what they are.
struct row_pairs {
    floats               then, now;
    std::vector<int32_t> by;

    void add(const floats & a, int32_t delta, const floats & b) {
        then.insert(then.end(), a.begin(), a.end());
        now.insert(now.end(), b.begin(), b.end());
        by.push_back(delta);
    }

    double worst(const context_ptr & ctx, int64_t n_embd, const morphkv_rope & rope) const {
        double res = 0.0;
        if (!by.empty()) {
            for (const float error : errors_of(now, turned(ctx, then, n_embd, rope, by), n_embd)) {
                res = std::max(res, (double) error);
            }
        }
        return res;
    }
};

static void moved(llama_model * model, ggml_type type) {
    const auto text   = some_tokens(101);
    auto       params = roomy_params(200);
    const auto near   = create(model, params, params_of(type));
    params.rope_limit = 1000;
    const auto far    = create(model, params, params_of(type));
    decode_first(far, text[0], 900);
    decode_first(near, text[0], 0);
    for (const auto * ctx : { &far, &near }) {
        decode_singly(*ctx, tokens(text.begin() + 1, text.end()));
    }
    CHECK(stats(far).n_evictions == 0 && stats(near).n_rebases == 0);
    CHECK(stats(far).n_rebases == 1 && stats(far).rotary_offset == 900);

    const auto of_far = layers_of(far), of_near = layers_of(near);
    double     keys = worst_keys(near, of_far, of_near, 101, 0, false), queries = 0.0;
    if (cache_of(far).window) {
        keys = std::max(keys, worst_keys(near, window_of(far), window_of(near), 101, 0, true));
    }
    for (size_t i = 0; i < of_far.size(); ++i) {
        const auto &  x = *of_far[i], &y = *of_near[i];
        const int32_t n_ring = x.ring->ne[1];
        const int64_t n      = x.ring->ne[0] / x.n_head;
        const floats  a = heads_of(x.ring, n_ring), b = heads_of(y.ring, n_ring);
        // of a query that was not rotated nothing is known but that the layer's text is off by so much
        const floats  text_a = heads_of(x.v ? x.v : x.k, 101), text_b = heads_of(y.v ? y.v : y.k, 101);
        const floats  others = errors_of(text_a, text_b, (x.v ? x.v : x.k)->ne[0]);
        const float   most   = x.v ? *std::max_element(others.begin(), others.end()) : 0.0f;
        const floats  off    = errors_of(a, b, n);
        queries              = std::max(queries, excess(off, floats(off.size(), most)));
    }
    printf("{\"keys\": %g, \"queries\": %g}\n", keys, queries);
}

// The newest tokens stay, so that all that is held stands one behind the other, and a rebase at each cut changes no
// distance. A key is turned some 30 times before it goes.
static void worn(llama_model * model, ggml_type type) {
    auto params        = small_params();
    params.capacity    = 64;
    params.window      = 16;
    params.interval    = 2;
    params.keep        = 0;
    params.prompt_room = 0;
    params.policy      = MORPHKV_POLICY_RECENCY;
    params.rope_limit  = 0;
    const auto still   = create(model, params, params_of(type));
    params.rope_limit  = 66;
    const auto often   = create(model, params, params_of(type));
    const auto text    = some_tokens(250);

    std::vector<original> notes;
    decode_and_note(often, text, notes);
    decode_singly(still, text);
    const auto s = stats(often);
    CHECK(stats(still).n_rebases == 0 && stats(still).n_evictions == s.n_evictions && s.n_rebases >= 80);

    double     keys = 0.0, queries = 0.0;
    const auto layers = layers_of(often);
    for (size_t i = 0; i < layers.size(); ++i) {
        const auto &  layer   = *layers[i];
        const int64_t n_embd  = layer.k->ne[0] / layer.n_head_kv;
        const auto    slots   = retained(often, 0, layer.il);
        const int32_t n_first = s.logical_pos + 1 - s.n_used;  // token of cell 0, if it were a recent one
        row_pairs     k, q;
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            for (int32_t cell = 0; cell < s.n_used; ++cell) {
                const int32_t serial = cell < s.n_distant ? slots[h * s.n_distant + cell] : n_first + cell;
                k.add(part(notes[serial].k[i], h, n_embd), serial - s.rotary_offset - notes[serial].rotary,
                      row_of(layer.k, cell, h, layer.n_head_kv));
            }
        }
        for (int32_t serial = s.logical_pos - 8; serial <= s.logical_pos; ++serial) {
            const floats now = heads_of(layer.ring, 1, serial % layer.ring->ne[1]);
            for (int32_t h = 0; h < layer.n_head; ++h) {
                q.add(part(notes[serial].q[i], h, n_embd), serial - s.rotary_offset - notes[serial].rotary,
                      part(now, h, n_embd));
            }
        }
        keys    = std::max(keys, k.worst(often, n_embd, layer.rope));
        queries = std::max(queries, q.worst(often, n_embd, layer.query_rope()));
    }
    const double window = cache_of(often).window
                              ? worst_keys(still, window_of(often), window_of(still), 250, -s.rotary_offset, true)
                              : 0.0;
    printf("{\"keys\": %g, \"queries\": %g, \"window\": %g, \"n_rebases\": %d}\n", keys, queries, window,
           (int) s.n_rebases);
}

static void recalled(llama_model * model, ggml_type type) {
    auto params       = small_params();
    params.capacity   = 100;
    params.rope_limit = 2000;
    const auto ctx    = create(model, params, params_of(type));
    CHECK(start_archive(ctx, alone(false, type)));
    std::vector<original> notes;
    decode_and_note(ctx, some_tokens(330), notes);
    settled(ctx);
    const auto                        layers = layers_of(ctx);
    std::vector<std::vector<int32_t>> before;
    for (const auto * layer : layers) {
        before.push_back(retained(ctx, 0, layer->il));
    }
    CHECK(recall(ctx).n_recalled > 0 && stats(ctx).n_recalls == 1);

    const auto    s    = stats(ctx);
    const int32_t base = s.logical_pos + 1 - s.n_used - s.rotary_offset;  // slots end where the recent ones begin
    double        keys = 0.0, values = 0.0;
    size_t        n = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        const auto &  layer  = *layers[i];
        const int64_t n_embd = layer.k->ne[0] / layer.n_head_kv;
        const auto    slots  = retained(ctx, 0, layer.il);
        row_pairs     k;
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto              first = slots.begin() + h * s.n_distant;
            std::vector<int32_t>    ordered(first, first + s.n_distant);
            const auto              old_first = before[i].begin() + h * s.n_distant;
            const std::set<int32_t> old(old_first, old_first + s.n_distant);
            std::sort(ordered.begin(), ordered.end());
            for (int32_t slot = 0; slot < s.n_distant; ++slot) {
                const int32_t serial = first[slot];
                if (old.count(serial)) {
                    continue;
                }
                const int32_t rank = std::lower_bound(ordered.begin(), ordered.end(), serial) - ordered.begin();
                k.add(part(notes[serial].k[i], h, n_embd), base + rank - notes[serial].rotary,
                      row_of(layer.k, slot, h, layer.n_head_kv));
                if (layer.v) {
                    const int64_t n_v   = layer.v->ne[0] / layer.n_head_kv;
                    const floats  value = row_of(layer.v, slot, h, layer.n_head_kv);
                    values = std::max(values, (double) errors_of(value, part(notes[serial].v[i], h, n_v), n_v)[0]);
                }
                n++;
            }
        }
        keys = std::max(keys, k.worst(ctx, n_embd, layer.rope));
    }
    // and the text goes on
    for (int i = 0; i < 3; ++i) {
        decode_singly(ctx, some_tokens(40, i));
        recall(ctx);
        CHECK(all_finite(logits(ctx)));
    }
    printf("{\"keys\": %g, \"values\": %g, \"n_rows\": %zu}\n", keys, values, n);
}

int main(int argc, char ** argv) {
    CHECK(argc >= 4);
    log_errors_only();
    llama_backend_init();
    const std::string what  = argv[1];
    const auto        model = load_model(argv[2]);
    if (what == "votes") {
        std::vector<int32_t> readers;
        for (int i = 3; i < argc; ++i) {
            readers.push_back(std::atoi(argv[i]));
        }
        votes(model.get(), readers[0], readers);
    } else {
        CHECK(what == "moved" || what == "worn" || what == "recalled");
        (what == "moved" ? moved : what == "worn" ? worn : recalled)(model.get(), type_of(argv[3]));
    }
    return 0;
}
