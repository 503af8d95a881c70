// A fuzzer of the state loader: whatever bytes are handed in, a state is loaded or refused, and the context goes on.
//
//   input    byte 0   how the rest becomes a state, and how that is loaded (struct recipe)
//            byte 1   what follows the load
//            rest     what MorphKV writes into a state, or the part of it that is worth mutating (enum form)
//
// What llama.cpp writes before it is put there by us, always right. Its reader of whole states takes a 32-bit length
// for the architecture's name and allocates that much: upstream's matter, with or without MorphKV.

#include "fuzz_target.h"

#include "llama/memory.h"
#include "support/tiny_context.h"

#include <cstring>

namespace {

// The layout of morphkv-state.cpp; make_cache() compares it with a state of the library. Behind the header each sequence
// has its fields, the positions of the ring, the tokens of the cells, the positions at the last rebase and, where there is
// one, the header of its archive. Then come a checksum of all that, the slices of tensors, and the archive's pages, each
// followed by the checksum plus its number, counted from 1.
constexpr size_t  N_HEADER    = 88;
constexpr size_t  AT_VERSION  = 4;
constexpr size_t  AT_ARCHIVE  = 72;  // in the header: not 0 where there is an archive
constexpr size_t  AT_NO_PAGES = 80;  // 1 in a checkpoint, where there is an archive
constexpr int32_t N_RING      = 36;  // votes and spare rows

struct stream_fields {
    int64_t  n_evictions;
    int64_t  n_evicted;
    int64_t  n_rebases;
    int64_t  n_recalls;
    int64_t  n_recalled;
    int32_t  pos_exact;
    int32_t  pos_prompt;
    int32_t  rotary_offset;
    uint32_t n_rebased;
    int32_t  n_keep;
    uint32_t n_used;
    int32_t  first_distant;
    int32_t  first_recent;
    int32_t  rotary_base;
    int32_t  zero;

    size_t n_rest() const { return N_RING + (size_t) n_used + n_rebased; }
};

constexpr size_t  N_ARCHIVE   = sizeof(morphkv_archive_header) / sizeof(int32_t);
constexpr int64_t N_PAGES_MAX = 8;  // that are made up

morphkv_archive_header read_archive(const std::vector<int32_t> & rest, const stream_fields & x) {
    morphkv_archive_header res;
    if (rest.size() >= x.n_rest() + N_ARCHIVE) {
        memcpy(&res, rest.data() + x.n_rest(), sizeof(res));
    }
    return res;
}

bool has_archive(const bytes & state) {
    uint64_t value = 0;
    memcpy(&value, state.data() + AT_ARCHIVE, state.size() < N_HEADER ? 0 : sizeof(value));
    return value != 0;
}

constexpr llama_seq_id N_SEQ = 2;

// The loader's own hash is hidden in morphkv-state.cpp; a second one here keeps the library without a door for tests.
uint64_t fnv_hash(const uint8_t * data, size_t size) {
    uint64_t res = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; ++i) {
        res = (res ^ data[i]) * 0x100000001b3;
    }
    return res;
}

//
// inputs
//

enum class way { SEQUENCE, CHECKPOINT, WHOLE, FILE };

// Mutations seldom keep a header or hit a checksum, and tensors are long and all alike. So all forms but the first begin
// behind the header and go on, without a checksum, with bytes that are repeated until the tensors are full.
enum class form {
    VERBATIM,
    COMPLETE,
    CUT,    // a few bytes of the end are missing
    SHORT,  // not repeated: the tensors end where the input ends
};

enum class next { NOTHING, RECALL, SINGLE, BOTH, PROMPT, DRAFT, REMOVE, COPY };

constexpr int N_CACHES = 4;

// bytes; what pretends to have more cells than there are is refused before its tensors
constexpr size_t MAX_SLICE = 1 << 16;

struct recipe {
    way          load;
    llama_seq_id seq;
    form         content;
    bool         is_mended;  // what mutations break most easily is put right, see mend()
    int          i_cache;
    next         then;
    int32_t      n;  // 0..31, for what follows

    int n_seq() const { return load == way::WHOLE ? N_SEQ : 1; }
};

recipe read_recipe(const uint8_t * data) {
    recipe res;
    res.load      = way(data[0] & 3);
    res.seq       = data[0] >> 2 & 1;
    res.content   = form(data[0] >> 3 & 3);
    res.is_mended = data[0] >> 5 & 1;
    res.i_cache   = (data[0] >> 6) % N_CACHES;
    res.then      = next(data[1] & 7);
    res.n         = data[1] >> 3;
    return res;
}

bytes write_recipe(const recipe & r) {
    return { uint8_t(int(r.load) | r.seq << 2 | int(r.content) << 3 | r.is_mended << 5 | r.i_cache << 6),
             uint8_t(int(r.then) | r.n << 3) };
}

//
// caches
//

// A context, and what its sequences hold before each input.
struct cache {
    context_ptr ctx;
    bytes       base[N_SEQ];
    bytes       prefix_whole;  // what llama.cpp writes before what we write
    bytes       prefix_seq;
    bytes       prefix_file;
    bytes       header[N_SEQ];  // of a state of one sequence and of two
    int32_t     n_limit;
    int32_t     n_distant;
    uint32_t    n_slots;  // of all layers and heads

    struct slice {
        size_t n_fixed;
        size_t n_per_cell;
    };
    std::vector<slice> slices;          // of one sequence
    size_t             page_bytes = 0;  // of the archive; 0 = none
};

bytes save(const cache & c, llama_seq_id seq) {
    bytes res(llama_state_seq_get_size(c.ctx.get(), seq));
    CHECK(llama_state_seq_get_data(c.ctx.get(), res.data(), res.size(), seq) == res.size());
    return res;
}

bytes save_whole(const cache & c) {
    bytes res(llama_state_get_size(c.ctx.get()));
    CHECK(llama_state_get_data(c.ctx.get(), res.data(), res.size()) == res.size());
    return res;
}

// Without what llama.cpp wrote.
bytes save_ours(const cache & c, const recipe & r) {
    bytes res = r.load == way::WHOLE ? save_whole(c) : save(c, r.seq);
    res.erase(res.begin(), res.begin() + (r.load == way::WHOLE ? c.prefix_whole : c.prefix_seq).size());
    return res;
}

void load_base(const cache & c) {
    // tensors too: no input shall depend on an earlier one
    llama_memory_clear(memory(c.ctx), true);
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        const bytes & state = c.base[s];
        CHECK(llama_state_seq_set_data(c.ctx.get(), state.data(), state.size(), s) == state.size());
    }
}

// f(fields, the integers behind them) for each sequence of a state, which is written back. Stops where the state ends
// too early. Returns the size of all before the first checksum, 0 if it has stopped.
template <typename F> size_t for_each_stream(bytes & state, int n_seq, F && f) {
    size_t       res       = N_HEADER;
    const size_t n_archive = has_archive(state) ? N_ARCHIVE : 0;
    for (int i = 0; i < n_seq; ++i) {
        stream_fields fields;
        if (state.size() < res + sizeof(fields)) {
            return 0;
        }
        memcpy(&fields, &state[res], sizeof(fields));
        std::vector<int32_t> rest((state.size() - res - sizeof(fields)) / sizeof(int32_t));
        const auto           data = state.begin() + res + sizeof(fields);
        std::copy_n(data, rest.size() * sizeof(int32_t), (uint8_t *) rest.data());

        f(fields, rest);
        memcpy(&state[res], &fields, sizeof(fields));
        std::copy_n((const uint8_t *) rest.data(), rest.size() * sizeof(int32_t), data);

        if (fields.n_rest() + n_archive > rest.size()) {
            return 0;
        }
        res += sizeof(fields) + (fields.n_rest() + n_archive) * sizeof(int32_t);
    }
    return res;
}

size_t metadata_size(bytes & state, int n_seq) {
    return for_each_stream(state, n_seq, [](const stream_fields &, const std::vector<int32_t> &) {});
}

// Pages that a sequence's state has, the tail among them.
int64_t count_pages(const cache & c, const bytes & state, const morphkv_archive_header & archive) {
    if (c.page_bytes == 0) {
        return 0;
    }
    const int64_t n_full = state[AT_NO_PAGES] ? 0 : archive.n_full() - archive.dropped;
    return std::max<int64_t>(0, std::min(n_full, N_PAGES_MAX)) + 1;
}

// f(number, bytes) for each slice of tensors and each page.
template <typename F> void for_each_slice(const cache & c, bytes & state, int n_seq, F && f) {
    std::vector<std::pair<uint32_t, int64_t>> sizes;
    for_each_stream(state, n_seq, [&](const stream_fields & x, const std::vector<int32_t> & rest) {
        sizes.emplace_back(x.n_used, count_pages(c, state, read_archive(rest, x)));
    });
    uint64_t n = 0;
    for (const auto & [n_cells, n_pages] : sizes) {
        for (const auto & slice : c.slices) {
            f(++n, slice.n_fixed + slice.n_per_cell * n_cells);
        }
        for (int64_t i = 0; i < n_pages; ++i) {
            f(++n, c.page_bytes);
        }
    }
}

// Learns the sizes of slices from two states of different length, and whether the layout is what we believe.
void measure(cache & c) {
    std::vector<size_t> sizes[N_SEQ];
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        bytes        ours(c.base[s].begin() + c.prefix_seq.size(), c.base[s].end());
        const size_t n_meta = metadata_size(ours, 1);
        uint64_t     mark   = fnv_hash(ours.data(), n_meta);
        for (auto it = ours.begin() + n_meta; it < ours.end(); it += sizes[s].back() + sizeof(mark)) {
            const auto end = std::search(it, ours.end(), (uint8_t *) &mark, (uint8_t *) (&mark + 1));
            sizes[s].push_back(end - it);
            mark++;
        }
        for_each_stream(ours, 1, [&](const stream_fields & x, const std::vector<int32_t> & rest) {
            for (int64_t i = count_pages(c, ours, read_archive(rest, x)); i > 0; --i) {
                CHECK(sizes[s].back() == c.page_bytes);
                sizes[s].pop_back();
            }
        });
    }
    const int32_t n_used[N_SEQ] = { stats(c.ctx, 0).n_used, stats(c.ctx, 1).n_used };

    bool is_known = sizes[0].size() > 1 && sizes[0].size() == sizes[1].size() && sizes[0][0] == 0 && sizes[1][0] == 0;
    for (size_t i = 1; is_known && i < sizes[0].size(); ++i) {
        const size_t n_per_cell = (sizes[0][i] - sizes[1][i]) / (n_used[0] - n_used[1]);
        c.slices.push_back({ sizes[0][i] - n_used[0] * n_per_cell, n_per_cell });
        is_known = sizes[1][i] == c.slices.back().n_fixed + n_used[1] * n_per_cell;
    }
    if (!is_known) {
        fprintf(stderr, "the layout of states has changed: change fuzz_state.cpp too, then write the corpus anew\n");
        exit(1);
    }
}

cache make_cache(llama_model * model, int i_cache) {
    auto params        = small_params();
    params.capacity    = 12;
    params.window      = 4;
    params.interval    = 4;
    params.keep        = 2;
    params.prompt_room = 6;
    params.rope_limit  = 24;
    auto cparams       = context_params(N_SEQ);
    switch (i_cache) {
        case 0:
            params.decay = 0.5f;
            break;
        case 1:
            params.fusion  = MORPHKV_FUSION_MAX;
            cparams.type_k = cparams.type_v = GGML_TYPE_Q8_0;
            break;
        case 2:
            params.policy  = MORPHKV_POLICY_RECENCY;
            cparams.type_k = cparams.type_v = GGML_TYPE_F32;
            break;
        case 3:
            // two pages fit
            params.capacity   = 40;
            params.rope_limit = 60;
            break;
    }

    cache res;
    res.ctx       = create(model, params, cparams);
    res.n_limit   = stats(res.ctx).n_limit;
    res.n_distant = stats(res.ctx).n_distant;
    int32_t n_head_kv;
    CHECK(morphkv_retained_shape(res.ctx.get(), 0, &n_head_kv, &res.n_distant) == MORPHKV_STATUS_OK);
    res.n_slots = llama_model_n_layer(model) * n_head_kv * res.n_distant;
    if (i_cache == 3) {
        const auto archive = morphkv_archive_params_default();
        CHECK(morphkv_archive_start(res.ctx.get(), &archive) == MORPHKV_STATUS_OK);
        for (const auto & layer :
             dynamic_cast<morphkv_cache &>(*(llama_memory_i *) memory(res.ctx)).get_side().layers) {
            res.page_bytes += morphkv_archive::N_PAGE * (layer.k->nb[1] + layer.v->nb[1]);
        }
    }
    CHECK(decode(res.ctx, some_tokens(2 * params.capacity + 16), { 0 }) == 0);
    decode_to_a_cut(res.ctx, 0);
    decode_singly(res.ctx, some_tokens(2), { 0 });
    CHECK(decode(res.ctx, some_tokens(5, 2), { 1 }) == 0);
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        res.base[s] = save(res, s);
    }

    const bytes    whole  = save_whole(res);
    const uint32_t file[] = { LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION, /*n_tokens =*/0 };
    append(res.prefix_whole, whole.data(), sizeof(uint32_t) + strlen("llama"));
    append(res.prefix_seq, res.base[0].data(), 2 * sizeof(uint32_t));
    append(res.prefix_file, file, sizeof(file));
    append(res.header[0], res.base[0].data() + res.prefix_seq.size(), N_HEADER);
    append(res.header[1], whole.data() + res.prefix_whole.size(), N_HEADER);
    measure(res);

    load_base(res);
    return res;
}

const cache & get_cache(int i_cache) {
    // Never freed: libFuzzer exits by ways on which destructors meet ggml's, already gone.
    static cache * const all = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        static llama_model * const model = tiny_model_load({ 2, 1, 32, "llama", 2 }).release();
        auto *                     res   = new cache[N_CACHES];
        for (int i = 0; i < N_CACHES; ++i) {
            res[i] = make_cache(model, i);
        }
        return res;
    }();
    return all[i_cache];
}

//
// from an input to a state
//

// What the loader asks of each cell and of each row of the ring is hardly ever true after a mutation.
void mend(const cache & c, bytes & state, int n_seq) {
    for_each_stream(state, n_seq, [&](stream_fields & x, std::vector<int32_t> & rest) {
        x.n_used %= c.n_limit + 1;
        x.first_distant = x.n_used == 0 ? 0 : x.first_distant;
        if (x.n_evictions == 0) {
            x.first_recent = (uint32_t) x.first_distant + c.n_distant;
        }
        x.n_evicted            = (int64_t) x.first_recent - x.first_distant - c.n_distant;
        const int32_t n_recent = (int32_t) x.n_used - c.n_distant;
        const int64_t end  = n_recent > 0 ? (int64_t) x.first_recent + n_recent : (int64_t) x.first_distant + x.n_used;
        x.n_keep           = (uint32_t) x.n_keep % c.n_distant;
        x.n_recalls        = x.n_evictions > 0 ? std::abs(x.n_recalls % 100) : 0;
        x.n_recalled       = std::abs(x.n_recalled % 100);
        x.n_rebases        = std::max<int64_t>(x.n_rebases, 0);
        const int64_t most = x.n_evictions > 0 ? (int64_t) x.first_recent - c.n_distant : x.first_distant;
        x.rotary_offset    = x.n_rebases == 0 ? 0 : std::max<int64_t>(0, std::min<int64_t>(x.rotary_offset, most));
        x.n_rebases        = std::min<int64_t>(x.n_rebases, x.rotary_offset);
        const bool is_turned = x.n_evictions > 0 && (x.n_rebases > 0 || x.n_recalls > 0);
        x.n_rebased          = is_turned && x.n_rebased > 0 ? c.n_slots : 0;
        const bool has_base  = x.n_rebased > 0 && x.n_recalls > 0;
        x.rotary_base = has_base ? std::max<int64_t>(0, std::min<int64_t>(x.rotary_base, most - x.rotary_offset)) : 0;
        x.zero        = 0;
        const size_t n_rest = std::min(rest.size(), x.n_rest());
        for (size_t i = N_RING + x.n_used; i < n_rest; i += c.n_distant) {
            std::sort(rest.begin() + i, rest.begin() + std::min(n_rest, i + c.n_distant));
        }
        for (int32_t i = 0; i < (int32_t) std::min<size_t>(rest.size(), N_RING + x.n_used); ++i) {
            if (rest[i] < 0) {
                rest[i] = -1;
            } else if (i < N_RING) {
                const int64_t pos = (int64_t) rest[i] - rest[i] % N_RING + i;
                rest[i]           = pos < end ? pos : -1;
            }
        }
        x.n_recalled = std::abs(x.n_recalled % 100);
        if (c.page_bytes > 0 && rest.size() >= x.n_rest() + N_ARCHIVE) {
            auto a = read_archive(rest, x);
            if (a.why_not().empty() && a.end() <= (x.n_evictions > 0 ? x.first_recent : 0)) {
                return;
            }
            a.n_tokens = std::max<int64_t>(0, std::min<int64_t>(a.n_tokens, 16 * N_PAGES_MAX));
            a.dropped  = std::max<int64_t>(0, std::min(a.dropped, a.n_full()));
            a.first    = x.first_recent - a.n_tokens;
            a.zero     = 0;
            if (a.n_tokens == 0 || a.first < 0 || x.n_evictions == 0) {
                a = {};
            }
            memcpy(rest.data() + x.n_rest(), &a, sizeof(a));
        }
    });
}

// The part of a state that is ours.
bytes make_content(const cache & c, const recipe & r, const uint8_t * data, size_t size) {
    if (r.content == form::VERBATIM) {
        return bytes(data, data + size);
    }
    bytes res = c.header[r.n_seq() - 1];
    if (r.load == way::CHECKPOINT && c.page_bytes > 0) {
        res[AT_NO_PAGES] = 1;
    }
    append(res, data, size);
    if (r.is_mended) {
        mend(c, res, r.n_seq());
    }
    const size_t n_meta = metadata_size(res, r.n_seq());
    if (n_meta == 0) {
        return res;
    }
    const bytes rest(res.begin() + n_meta, res.end());
    res.resize(n_meta);
    const uint64_t hash = fnv_hash(res.data(), n_meta);
    append(res, &hash, sizeof(hash));

    bytes  tensors;
    size_t i_rest = 0;
    for_each_slice(c, res, r.n_seq(), [&](uint64_t i, size_t size) {
        auto is_over = [&] {
            return r.content == form::SHORT && i_rest == rest.size();
        };
        if (size > MAX_SLICE || is_over()) {
            return;
        }
        for (; size > 0 && !is_over(); --size) {
            tensors.push_back(rest.empty() ? 0 : rest[i_rest++ % rest.size()]);
        }
        const uint64_t mark = hash + i;
        append(tensors, &mark, size == 0 ? sizeof(mark) : 0);
    });
    append(res, tensors.data(), tensors.size());
    if (r.content == form::CUT) {
        res.resize(res.size() - 1 - r.n);
    }
    return res;
}

//
// one input
//

bool load(const cache & c, const recipe & r, const bytes & content) {
    // of its exact size: AddressSanitizer shall see the first byte beyond
    const bytes & prefix = r.load == way::WHOLE ? c.prefix_whole : r.load == way::FILE ? c.prefix_file : c.prefix_seq;
    bytes         state(prefix.size() + content.size());
    std::copy(content.begin(), content.end(), std::copy(prefix.begin(), prefix.end(), state.begin()));

    size_t n = 0;
    switch (r.load) {
        case way::SEQUENCE:
            n = llama_state_seq_set_data(c.ctx.get(), state.data(), state.size(), r.seq);
            break;
        case way::CHECKPOINT:
            n = llama_state_seq_set_data_ext(c.ctx.get(), state.data(), state.size(), r.seq,
                                             LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
            break;
        case way::WHOLE:
            n = llama_state_set_data(c.ctx.get(), state.data(), state.size());
            break;
        case way::FILE: {
            // several fuzzers may run at once
            static const std::string path = "fuzz-state-" + std::to_string(std::random_device()()) + ".tmp";

            FILE * f = fopen(path.c_str(), "wb");
            CHECK(f && fwrite(state.data(), 1, state.size(), f) == state.size() && fclose(f) == 0);
            llama_token token;
            size_t      n_tokens = 0;
            n                    = llama_state_seq_load_file(c.ctx.get(), path.c_str(), r.seq, &token, 1, &n_tokens);
            std::remove(path.c_str());
        } break;
    }
    CHECK(n <= state.size());
    return n > 0;
}

void check_is_sound(const cache & c, llama_seq_id seq) {
    const auto      st  = stats(c.ctx, seq);
    const llama_pos min = llama_memory_seq_pos_min(memory(c.ctx), seq);
    CHECK(st.n_used >= 0 && st.n_used <= c.n_limit);
    CHECK(st.logical_pos == llama_memory_seq_pos_max(memory(c.ctx), seq));
    CHECK(st.complete_pos == min && min <= st.logical_pos);
    CHECK((st.n_used == 0) == (st.logical_pos == -1) && (st.n_used == 0) == (min == -1));
    CHECK(st.n_used <= (int64_t) st.logical_pos + 1);
    CHECK(st.exact_pos >= 0 && st.exact_pos <= (int64_t) st.logical_pos + 1);
    CHECK(st.n_evictions >= 0 && st.n_evicted >= st.n_evictions);
}

// What of a state must survive loading and saving: all but checksums and the version. Empty if the state is too short.
bytes essence(const cache & c, const recipe & r, bytes state) {
    if (state.size() >= N_HEADER) {
        std::fill_n(state.begin() + AT_VERSION, sizeof(uint32_t), 0);
    }
    // the hash of the newest page, as pages are made up here
    for_each_stream(state, r.n_seq(), [&](const stream_fields & x, std::vector<int32_t> & rest) {
        if (c.page_bytes > 0 && rest.size() >= x.n_rest() + N_ARCHIVE) {
            auto archive   = read_archive(rest, x);
            archive.newest = 0;
            memcpy(rest.data() + x.n_rest(), &archive, sizeof(archive));
        }
    });
    size_t i = metadata_size(state, r.n_seq());
    bytes  res(state.begin(), state.begin() + i);
    for_each_slice(c, state, r.n_seq(), [&](uint64_t, size_t size) {
        i += sizeof(uint64_t);
        if (i + size <= state.size()) {
            append(res, state.data() + i, size);
        }
        i += size;
    });
    return i <= state.size() ? res : bytes();
}

// More tokens, and what hosts do with sequences.
void go_on(const cache & c, const recipe & r) {
    const llama_seq_id other = 1 - r.seq;
    const int32_t      few   = 1 + r.n / 4;

    auto newest = [&](llama_seq_id s) {
        return llama_memory_seq_pos_max(memory(c.ctx), s);
    };
    auto tell = [&](int32_t n, const std::vector<llama_seq_id> & seqs, want logits = want::LAST) {
        CHECK(decode(c.ctx, some_tokens(n, r.n), seqs, logits) == 0);
    };
    auto tell_singly = [&](int32_t n, const std::vector<llama_seq_id> & seqs) {
        for (int32_t i = 0; i < n; ++i) {
            tell(1, seqs);
        }
    };
    auto remove_newest = [&](int32_t n) {
        const llama_pos first = std::max(0, newest(r.seq) - n + 1);
        if (llama_memory_seq_rm(memory(c.ctx), r.seq, first, -1)) {
            CHECK(newest(r.seq) < first);
        }
    };

    switch (r.then) {
        case next::RECALL: {
            auto params     = morphkv_recall_params_default();
            params.share    = 1.0f;
            params.distance = 20;
            morphkv_recalled out{};
            out.size = sizeof(out);
            CHECK((morphkv_recall(c.ctx.get(), r.seq, &params, &out) == MORPHKV_STATUS_OK) == (c.page_bytes > 0));
            tell_singly(few, { r.seq });
        } break;
        case next::SINGLE:
            tell_singly(few, { r.seq });
            break;
        case next::BOTH:
            tell_singly(few, { 0, 1 });
            break;
        case next::PROMPT:
            tell(1 + r.n, { r.seq });
            break;
        case next::DRAFT:
            tell(few, { r.seq }, want::ALL);
            remove_newest(few / 2);
            tell(1, { r.seq });
            break;
        case next::REMOVE:
            remove_newest(r.n);
            tell(1, { r.seq });
            break;
        case next::COPY: {
            llama_memory_seq_cp(memory(c.ctx), r.seq, other, -1, -1);
            bytes from = save(c, r.seq), to = save(c, other);
            CHECK(
                std::equal(from.begin() + c.prefix_seq.size(), from.end(), to.begin() + c.prefix_seq.size(), to.end()));
            tell(1, { 0, 1 });
        } break;
        default:
            break;
    }

    retained(c.ctx, r.seq, 0);

    // NaN in one sequence stays there
    if (r.load != way::WHOLE && r.then != next::BOTH && r.then != next::COPY) {
        CHECK(save(c, other) == c.base[other]);
        tell(1, { other });
        CHECK(all_finite(logits(c.ctx)));
    }
}

int64_t n_evictions(const cache & c) {
    int64_t res = 0;
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        res += stats(c.ctx, s).n_evictions;
    }
    return res;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_report_at_exit();
    if (size < 2) {
        return 0;
    }
    const recipe  r = read_recipe(data);
    const cache & c = get_cache(r.i_cache);

    const bytes content  = make_content(c, r, data + 2, size - 2);
    const bool  has_load = load(c, r, content);

    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        const bool is_target = r.load == way::WHOLE || s == r.seq;
        check_is_sound(c, s);
        CHECK((has_load && is_target) || save(c, s) == c.base[s]);
    }
    // a checkpoint has no pages
    if (has_load && !(r.load == way::CHECKPOINT && c.page_bytes > 0)) {
        const bytes loaded = essence(c, r, content);
        CHECK(!loaded.empty() && essence(c, r, save_ours(c, r)) == loaded);
    }
    g_fuzz_counts[has_load ? "loaded" : "refused"]++;

    // Where nothing has changed going on is nothing new, and the slowest part: seldom.
    const bool goes_on = r.then != next::NOTHING && (has_load || r.n == 0);
    if (goes_on) {
        const int64_t n_before = n_evictions(c);
        go_on(c, r);
        for (llama_seq_id s = 0; s < N_SEQ; ++s) {
            check_is_sound(c, s);
        }
        g_fuzz_counts["went on with tokens"]++;
        g_fuzz_counts["of these with an eviction"] += n_evictions(c) > n_before;
    }
    if (has_load || goes_on) {
        load_base(c);
    }
    return 0;
}

void fuzz_write_corpus(const std::string & folder) {
    int  n_seeds = 0;
    auto write   = [&](const cache & c, const recipe & r) {
        bytes        ours   = save_ours(c, r);
        const size_t n_meta = metadata_size(ours, r.n_seq());

        bytes out = write_recipe(r);
        if (r.content == form::VERBATIM) {
            append(out, ours.data(), ours.size());
        } else {
            // the first values of K stand for all tensors
            append(out, ours.data() + N_HEADER, n_meta - N_HEADER);
            append(out, ours.data() + n_meta + sizeof(uint64_t), 16);
        }
        fuzz_write_seed(folder, n_seeds++, out);
    };

    for (int i = 0; i < N_CACHES; ++i) {
        const cache & c = get_cache(i);
        if (c.page_bytes > 0) {
            write(c, { way::SEQUENCE, 0, form::COMPLETE, false, i, next::RECALL, 27 });
        }
        write(c, { way::SEQUENCE, 0, form::COMPLETE, true, i, next::SINGLE, 27 });
        write(c, { way::WHOLE, 0, form::COMPLETE, true, i, next::BOTH, 27 });

        // a tail removed: the ring has rows without a query
        decode_singly(c.ctx, some_tokens(3), { 0 });
        CHECK(llama_memory_seq_rm(memory(c.ctx), 0, stats(c.ctx, 0).logical_pos - 1, -1));
        write(c, { way::CHECKPOINT, 0, form::COMPLETE, false, i, next::DRAFT, 27 });

        // all cells, no eviction yet
        llama_memory_clear(memory(c.ctx), true);
        CHECK(decode(c.ctx, some_tokens(c.n_limit)) == 0);
        write(c, { way::FILE, 0, form::COMPLETE, true, i, next::COPY, 0 });
        if (i == 0) {
            write(c, { way::CHECKPOINT, 1, form::COMPLETE, false, i, next::PROMPT, 27 });  // empty
            write(c, { way::SEQUENCE, 0, form::VERBATIM, false, i, next::REMOVE, 3 });
        }
        load_base(c);
    }
}
