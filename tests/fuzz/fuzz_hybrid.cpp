// A fuzzer of the states of models with recurrent layers: of their recurrent part, behind a part of the other layers that
// is right. A state is loaded as a whole or refused without a change, and the context goes on.
//
//   input    byte 0   how it is loaded, and what the rest is (struct recipe)
//            byte 1   what follows the load
//            rest     the recurrent part, or its numbers alone

#include "fuzz_target.h"

#include "support/hybrid_model.h"
#include "support/inside.h"

#include "llama-io.h"

#include <cstring>

const size_t fuzz_n_recipe = 2;

namespace {

constexpr llama_seq_id N_SEQ    = 2;
constexpr int          N_CACHES = 2;

// bytes that llama.cpp writes before all: a magic and the sequence, or the architecture's name and its length
constexpr size_t N_PREFIX = 8;

//
// inputs
//

enum class way { SEQUENCE, CHECKPOINT, WHOLE, FILE };

// Mutations of rows are all alike, so most forms leave them out.
enum class form {
    VERBATIM,
    NUMBERS,  // rows are filled with the input's bytes
    CUT,      // the same, and bytes of the end are missing
    OTHERS,   // the same, and a bit of the other layers' part is another one
};

enum class next { NOTHING, ONE, BOTH, COPY };

struct recipe {
    way          load;
    llama_seq_id seq;
    form         content;
    int          i_cache;
    next         then;
    int32_t      n;  // 0..63, for the form and for what follows
};

recipe read_recipe(const uint8_t * data) {
    recipe res;
    res.load    = way(data[0] & 3);
    res.seq     = data[0] >> 2 & 1;
    res.content = form(data[0] >> 3 & 3);
    res.i_cache = data[0] >> 5 & 1;
    res.then    = next(data[1] & 3);
    res.n       = data[1] >> 2;
    return res;
}

bytes write_recipe(const recipe & r) {
    return { uint8_t(int(r.load) | r.seq << 2 | int(r.content) << 3 | r.i_cache << 5),
             uint8_t(int(r.then) | r.n << 2) };
}

//
// caches
//

// A context, and what its sequences hold before each input.
struct cache {
    context_ptr         ctx;
    bytes               base[N_SEQ];
    bytes               whole;
    size_t              n_others[N_SEQ];  // bytes of a state that come before the recurrent part, llama.cpp's too
    size_t              n_others_whole;
    std::vector<size_t> row_bytes;        // in the order of a state
};

size_t count_others(const cache & c, llama_seq_id seq) {
    struct counter : llama_io_write_i {
        void   write(const void *, size_t size) override { n += size; }
        void   write_tensor(ggml_tensor *, size_t, size_t size) override { n += size; }
        size_t n_bytes() override { return n; }
        size_t n = 0;
    } io;
    dynamic_cast<morphkv_hybrid &>(*(llama_memory_i *) memory(c.ctx)).get_cache().state_write(io, seq, 0);
    return N_PREFIX + io.n;
}

// More cells than there can be are refused before their rows.
uint32_t count_cells(const bytes & part) {
    uint32_t res = 0;
    memcpy(&res, part.data(), part.size() < sizeof(res) ? 0 : sizeof(res));
    return std::min<uint32_t>(res, 2 * N_SEQ);
}

// f(offset, size) where each block of rows is, or is to be put; has_rows: whether they are there.
template <typename F> void walk(const cache & c, const bytes & part, bool has_rows, F && f) {
    size_t at   = 0;
    auto   read = [&](auto value) {
        if (at + sizeof(value) <= part.size()) {
            memcpy(&value, part.data() + at, sizeof(value));
        }
        at += sizeof(value);
        return value;
    };
    const auto n_cells = count_cells(part);
    read(uint32_t());
    for (uint32_t i = 0; i < n_cells; ++i) {
        read(llama_pos());
        for (uint32_t n_ids = std::min<uint32_t>(read(uint32_t()), 2 * N_SEQ); n_ids > 0; --n_ids) {
            read(llama_seq_id());
        }
    }
    read(uint64_t());  // transposed, layers
    for (const size_t size : c.row_bytes) {
        read(int32_t());
        read(uint64_t());
        f(at, n_cells * size);
        at += has_rows ? n_cells * size : 0;
    }
}

bytes without_rows(const cache & c, const bytes & part) {
    bytes  res;
    size_t i_next = 0;
    walk(c, part, true, [&](size_t at, size_t size) {
        append(res, part.data() + i_next, at - i_next);
        i_next = at + size;
    });
    append(res, part.data() + i_next, part.size() - i_next);
    return res;
}

bytes with_rows(const cache & c, const bytes & numbers) {
    bytes  res;
    size_t i_next = 0;
    walk(c, numbers, false, [&](size_t at, size_t size) {
        at = std::min(at, numbers.size());
        append(res, numbers.data() + i_next, at - i_next);
        i_next = at;
        for (size_t i = 0; i < size; ++i) {
            res.push_back(numbers[i % numbers.size()]);
        }
    });
    append(res, numbers.data() + i_next, numbers.size() - i_next);
    return res;
}

void load_base(const cache & c) {
    llama_memory_clear(memory(c.ctx), true);
    CHECK(load_all(c.ctx, c.whole));
}

// The second one has a window in one layer, and its sequences share a recurrent state.
cache make_cache(int i_cache) {
    static model_ptr models[N_CACHES];

    auto & model = models[i_cache];
    model        = hybrid_model_load(/*has_window =*/i_cache == 1);

    auto params        = small_params();
    params.capacity    = 12;
    params.window      = 4;
    params.interval    = 4;
    params.keep        = 2;
    params.prompt_room = 6;

    cache res;
    res.ctx = create(model.get(), params, context_params(N_SEQ));
    CHECK(decode(res.ctx, some_tokens(40), { 0 }) == 0);
    decode_to_a_cut(res.ctx, 0);
    if (i_cache == 0) {
        CHECK(decode(res.ctx, some_tokens(5, 2), { 1 }) == 0);
    } else {
        llama_memory_seq_cp(memory(res.ctx), 0, 1, -1, -1);
    }
    const auto shape = hybrid_shape();
    for (const uint32_t n_embd : { model->hparams.n_embd_r(), model->hparams.n_embd_s() }) {
        for (const uint32_t is_recurrent : shape.is_recurrent) {
            if (is_recurrent) {
                res.row_bytes.push_back(n_embd * sizeof(float));
            }
        }
    }
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        res.base[s]     = save(res.ctx, s);
        res.n_others[s] = count_others(res, s);
    }
    res.whole          = save_all(res.ctx);
    res.n_others_whole = count_others(res, -1);
    load_base(res);
    CHECK(save_all(res.ctx) == res.whole);
    return res;
}

const cache & get_cache(int i_cache) {
    // Never freed: libFuzzer exits by ways on which destructors meet ggml's, already gone.
    static cache * const all = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        auto * res = new cache[N_CACHES];
        for (int i = 0; i < N_CACHES; ++i) {
            res[i] = make_cache(i);
        }
        return res;
    }();
    return all[i_cache];
}

//
// one input
//

// Of a whole context, or of a sequence.
bytes others_of(const cache & c, const recipe & r) {
    const bytes & state = r.load == way::WHOLE ? c.whole : c.base[r.seq];
    return bytes(state.begin(), state.begin() + (r.load == way::WHOLE ? c.n_others_whole : c.n_others[r.seq]));
}

bytes make_state(const cache & c, const recipe & r, const bytes & input) {
    bytes       res  = others_of(c, r);
    const bytes part = r.content == form::VERBATIM ? input : with_rows(c, input);
    if (r.content == form::OTHERS) {
        const size_t i = N_PREFIX + (res.size() - N_PREFIX) * r.n / 64;
        res[i] ^= 1 << r.n % 8;
    }
    append(res, part.data(), part.size());
    if (r.content == form::CUT) {
        res.resize(std::max(N_PREFIX, res.size() - 1 - r.n));
    }
    return res;
}

// How many bytes; 0 = it was refused.
size_t try_to_load(const cache & c, const recipe & r, const bytes & state) {
    switch (r.load) {
        case way::SEQUENCE:
            return load_some(c.ctx, state, r.seq);
        case way::CHECKPOINT:
            return load_some(c.ctx, state, r.seq, CHECKPOINT);
        case way::WHOLE:
            return load_some_of_all(c.ctx, state);
        case way::FILE: {
            static const std::string path = "fuzz-hybrid-" + std::to_string(std::random_device()()) + ".tmp";

            const uint32_t head[] = { LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION, /*n_tokens =*/0 };
            FILE *         f      = fopen(path.c_str(), "wb");
            CHECK(f && fwrite(head, sizeof(head), 1, f) == 1);
            CHECK(fwrite(state.data() + N_PREFIX, 1, state.size() - N_PREFIX, f) == state.size() - N_PREFIX);
            CHECK(fclose(f) == 0);
            llama_token token;
            size_t      n_tokens = 0;
            const auto  n        = llama_state_seq_load_file(c.ctx.get(), path.c_str(), r.seq, &token, 1, &n_tokens);
            std::remove(path.c_str());
            return n == 0 ? 0 : n - sizeof(head) + N_PREFIX;
        }
    }
    return 0;
}

// All layers hold the same text.
void check_is_sound(const cache & c) {
    for (llama_seq_id s = 0; s < N_SEQ; ++s) {
        const auto st = stats(c.ctx, s);
        CHECK(st.logical_pos == llama_memory_seq_pos_max(memory(c.ctx), s));
        CHECK(st.complete_pos == llama_memory_seq_pos_min(memory(c.ctx), s));
        CHECK((st.n_used == 0) == (st.logical_pos == -1));
    }
}

void go_on(const cache & c, const recipe & r) {
    const llama_seq_id other = 1 - r.seq;
    const auto         few   = some_tokens(1 + r.n / 16, r.n);
    switch (r.then) {
        case next::ONE:
            CHECK(decode(c.ctx, few, { r.seq }) == 0);
            break;
        case next::BOTH:
            decode_singly(c.ctx, few, { 0, 1 });
            break;
        case next::COPY:
            llama_memory_seq_cp(memory(c.ctx), r.seq, other, -1, -1);
            decode_singly(c.ctx, few, { other });
            CHECK(llama_memory_seq_rm(memory(c.ctx), r.seq, -1, -1));
            decode_singly(c.ctx, few, { 0, 1 });
            break;
        case next::NOTHING:
            break;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_report_at_exit();
    if (size < 3) {
        return 0;
    }
    const recipe  r = read_recipe(data);
    const cache & c = get_cache(r.i_cache);

    const bytes  state    = make_state(c, r, bytes(data + 2, data + size));
    const size_t n        = try_to_load(c, r, state);
    const bool   has_load = n > 0;
    CHECK(n <= state.size());
    check_is_sound(c);
    if (!has_load) {
        g_fuzz_counts["refused"]++;
        CHECK(save_all(c.ctx) == c.whole);
    } else {
        g_fuzz_counts["loaded"]++;
        const bytes saved = r.load == way::WHOLE ? save_all(c.ctx) : save(c.ctx, r.seq);
        CHECK(saved.size() == n && std::equal(saved.begin() + N_PREFIX, saved.end(), state.begin() + N_PREFIX));
        CHECK(r.load == way::WHOLE || save(c.ctx, 1 - r.seq) == c.base[1 - r.seq]);
    }

    // The slowest part: seldom, and more so where nothing has changed.
    const bool goes_on = r.then != next::NOTHING && r.n % (has_load ? 4 : 32) == 0;
    if (goes_on) {
        go_on(c, r);
        check_is_sound(c);
        g_fuzz_counts["went on with tokens"]++;
    }
    if (goes_on || has_load) {
        load_base(c);
    }
    return 0;
}

void fuzz_write_corpus(const std::string & folder) {
    int n_seeds = 0;
    for (int i = 0; i < N_CACHES; ++i) {
        const cache & c     = get_cache(i);
        auto          write = [&](const recipe & r) {
            const bytes & state = r.load == way::WHOLE ? c.whole : c.base[r.seq];
            const bytes   part(state.begin() + others_of(c, r).size(), state.end());
            bytes         out     = write_recipe(r);
            const bytes   content = r.content == form::VERBATIM ? part : without_rows(c, part);
            append(out, content.data(), content.size());
            fuzz_write_seed(folder, n_seeds++, out);
        };
        write({ way::SEQUENCE, 0, form::VERBATIM, i, next::ONE, 20 });
        write({ way::SEQUENCE, 0, form::NUMBERS, i, next::ONE, 20 });
        write({ way::CHECKPOINT, 1, form::NUMBERS, i, next::COPY, 20 });
        write({ way::WHOLE, 0, form::NUMBERS, i, next::BOTH, 20 });
        write({ way::FILE, 1, form::NUMBERS, i, next::NOTHING, 0 });
    }
}
