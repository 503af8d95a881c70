// A fuzzer of the state loader: whatever bytes are handed in, a state is loaded or refused, and the context goes on.
//
//   input    bytes 0 to 2   how the rest becomes a state, how that is loaded, and what follows (struct recipe)
//            rest           what MorphKV writes into a state, or its texts and some bytes of its tensors (enum form)
//
// What llama.cpp writes before it is put there by us, always right. Its reader of whole states takes a 32-bit length
// for the architecture's name and allocates that much: upstream's matter, with or without MorphKV.

#include "fuzz_state_input.h"

#include <cstring>

namespace {

// Without what llama.cpp writes.
state_parts save_parts(const fuzz_context & c, const recipe & r) {
    const bytes  state    = r.load == way::WHOLE ? save_all(c.ctx) : save(c.ctx, r.seq);
    const size_t n_prefix = (r.load == way::WHOLE ? c.prefix_whole : c.prefix_seq).size();
    return take_apart(c.ctx, state.data() + n_prefix, state.size() - n_prefix);
}

bool try_to_load(const fuzz_context & c, const recipe & r, const bytes & content) {
    // of its exact size: AddressSanitizer shall see the first byte beyond
    bytes state(content.size());
    std::copy(content.begin(), content.end(), state.begin());

    switch (r.load) {
        case way::SEQUENCE:
            return load_some(c.ctx, state, r.seq) > 0;
        case way::CHECKPOINT:
            return load_some(c.ctx, state, r.seq, CHECKPOINT) > 0;
        case way::WHOLE:
            return load_some_of_all(c.ctx, state) > 0;
        case way::FILE: {
            // several fuzzers may run at once
            static const std::string path = "fuzz-state-" + std::to_string(std::random_device()()) + ".tmp";

            FILE * f = fopen(path.c_str(), "wb");
            CHECK(f && fwrite(state.data(), 1, state.size(), f) == state.size() && fclose(f) == 0);
            llama_token token;
            size_t      n_tokens = 0;
            const auto  n        = llama_state_seq_load_file(c.ctx.get(), path.c_str(), r.seq, &token, 1, &n_tokens);
            std::remove(path.c_str());
            CHECK(n <= state.size());
            return n > 0;
        }
    }
    return false;
}

void check_is_sound(const fuzz_context & c, llama_seq_id seq) {
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

// What was loaded is what is saved now, as the present version has it.
void check_is_the_same(const fuzz_context & c, const recipe & r, state_parts loaded) {
    state_parts saved     = save_parts(c, r);
    loaded.header.version = MORPHKV_STATE_VERSION;
    for (auto * parts : { &loaded, &saved }) {
        for (auto & text : parts->texts) {
            // a hash of pages, which are made up
            text.archive.newest = 0;
        }
    }
    CHECK(memcmp(&saved.header, &loaded.header, sizeof(saved.header)) == 0);
    CHECK(texts_as_bytes(saved) == texts_as_bytes(loaded));
    CHECK(saved.tensors.size() == loaded.tensors.size());
    for (size_t i = 0; i < saved.tensors.size(); ++i) {
        CHECK(saved.tensors[i].is_lost == loaded.tensors[i].is_lost && saved.tensors[i].data == loaded.tensors[i].data);
    }
}

// More tokens, and what hosts do with sequences.
void go_on(const fuzz_context & c, const recipe & r) {
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
            auto params     = all_slots();
            params.distance = 20;
            morphkv_recalled out{};
            CHECK((try_recall(c.ctx, out, r.seq, params) == MORPHKV_STATUS_OK) == c.has_archive());
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
        case next::COPY:
            llama_memory_seq_cp(memory(c.ctx), r.seq, other, -1, -1);
            CHECK(save(c.ctx, r.seq) == save(c.ctx, other));
            tell(1, { 0, 1 });
            break;
        default:
            break;
    }

    retained(c.ctx, r.seq, c.i_layer);

    // NaN in one sequence stays there
    if (r.load != way::WHOLE && r.then != next::BOTH && r.then != next::COPY) {
        CHECK(save(c.ctx, other) == c.base[other]);
        tell(1, { other });
        CHECK(all_finite(logits(c.ctx)));
    }
}

int64_t n_evictions(const fuzz_context & c) {
    int64_t res = 0;
    for (llama_seq_id s = 0; s < FUZZ_N_SEQ; ++s) {
        res += stats(c.ctx, s).n_evictions;
    }
    return res;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_report_at_exit();
    if (size < fuzz_n_recipe) {
        return 0;
    }
    const recipe         r = read_recipe(data);
    const fuzz_context & c = fuzz_get_context(r.i_context);

    const made_state made     = make_state(c, r, data + fuzz_n_recipe, size - fuzz_n_recipe);
    const bool       has_load = try_to_load(c, r, made.data);
    CHECK(r.content == form::VERBATIM || has_load == made.is_right);

    for (llama_seq_id s = 0; s < FUZZ_N_SEQ; ++s) {
        const bool is_target = r.load == way::WHOLE || s == r.seq;
        check_is_sound(c, s);
        CHECK((has_load && is_target) || save(c.ctx, s) == c.base[s]);
    }
    // a checkpoint has no pages
    if (made.is_right && !made.parts.header.has_no_pages) {
        check_is_the_same(c, r, made.parts);
    }
    g_fuzz_counts[has_load ? "loaded" : "refused"]++;
    g_fuzz_counts["loaded, of an older version"] += has_load && r.version < MORPHKV_STATE_VERSION;

    // Where nothing has changed going on is nothing new, and the slowest part: seldom.
    const bool goes_on = r.then != next::NOTHING && (has_load || r.n == 0);
    if (goes_on) {
        const int64_t n_before = n_evictions(c);
        go_on(c, r);
        for (llama_seq_id s = 0; s < FUZZ_N_SEQ; ++s) {
            check_is_sound(c, s);
        }
        g_fuzz_counts["went on with tokens"]++;
        g_fuzz_counts["of these with an eviction"] += n_evictions(c) > n_before;
    }
    if (has_load || goes_on) {
        fuzz_load_base(c);
    }
    return 0;
}

void fuzz_write_corpus(const std::string & folder) {
    int  n_seeds = 0;
    auto write   = [&](const fuzz_context & c, const recipe & r) {
        auto  parts = save_parts(c, r);
        bytes out   = write_recipe(r);
        if (r.content == form::VERBATIM) {
            const bytes ours = put_together({}, parts.header, texts_as_bytes(parts), parts.tensors);
            append(out, ours.data(), ours.size());
        } else {
            parts.header.version = r.is_mended ? MORPHKV_STATE_VERSION : r.version;
            const bytes texts    = texts_as_bytes(parts);
            append(out, texts.data(), texts.size());
            // the first values of K stand for all tensors
            const auto values = std::find_if(parts.tensors.begin(), parts.tensors.end(),
                                             [](const auto & p) { return !p.data.empty(); });
            append(out, values->data.data(), values != parts.tensors.end() ? 16 : 0);
        }
        fuzz_write_seed(folder, n_seeds++, out);
    };

    for (int i = 0; i < FUZZ_N_CONTEXTS; ++i) {
        const fuzz_context & c = fuzz_get_context(i);
        if (c.has_archive()) {
            write(c, { way::SEQUENCE, 0, form::COMPLETE, false, 6, next::RECALL, 27, i });
            write(c, { way::SEQUENCE, 0, form::COMPLETE, false, 5, next::RECALL, 27, i, /*has_lost =*/true });
        }
        write(c, { way::SEQUENCE, 0, form::COMPLETE, true, 6, next::SINGLE, 27, i });
        write(c, { way::SEQUENCE, 1, form::COMPLETE, i % 2 == 0, i % 2 ? 5u : 4u, next::SINGLE, 27, i });
        write(c, { way::WHOLE, 0, form::COMPLETE, true, 6, next::BOTH, 27, i });

        // a tail removed: the ring has rows without a query
        decode_singly(c.ctx, some_tokens(3), { 0 });
        CHECK(llama_memory_seq_rm(memory(c.ctx), 0, stats(c.ctx, 0).logical_pos - 1, -1));
        write(c, { way::CHECKPOINT, 0, form::COMPLETE, false, 6, next::DRAFT, 27, i });
        write(c, { way::SEQUENCE, 0, form::COMPLETE, false, i % 2 ? 4u : 5u, next::PROMPT, 27, i });

        // all cells, no eviction yet
        llama_memory_clear(memory(c.ctx), true);
        CHECK(decode(c.ctx, some_tokens(c.n_limit)) == 0);
        write(c, { way::FILE, 0, form::COMPLETE, true, 6, next::COPY, 0, i });
        if (i == 0) {
            write(c, { way::CHECKPOINT, 1, form::COMPLETE, false, 6, next::PROMPT, 27, i });  // empty
            write(c, { way::SEQUENCE, 0, form::VERBATIM, false, 6, next::REMOVE, 3, i });
        }
        fuzz_load_base(c);
    }
}
