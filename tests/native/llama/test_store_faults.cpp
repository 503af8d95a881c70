// A store that fails: whatever an archive is asked for, and whichever of its calls fails, with whichever error, nothing ends
// the process, no text is lost, no answer changes, and something says why.

#include "morphkv-testing.h"
#include "support/archived_context.h"

#include <cerrno>
#include <cstring>

#ifndef EDQUOT
#define EDQUOT ENOSPC  // Windows
#endif

constexpr int32_t CAPACITY = 60;

// What cases begin with, and what the texts say next where nothing fails.
struct texts {
    bytes own, other, checkpoint, both;
};

static texts make_texts(const context_ptr & ctx) {
    texts res;
    CHECK(decode(ctx, some_tokens(160, 7), { 1 }) == 0);
    CHECK(decode(ctx, some_tokens(200), { 0 }) == 0);
    res.both       = save_all(ctx);
    res.other      = save(ctx, 1);
    res.checkpoint = save(ctx, 0, CHECKPOINT);
    res.own        = save(ctx, 0);
    return res;
}

// An operation: begins with `own` in sequence 0 and `other` in sequence 1. False: it was refused, morphkv_last_error() says why.
struct operation {
    const char *                                            name;
    std::function<bool(const context_ptr &, const texts &)> run;
    bool                                                    recalls = false;
};

static std::vector<operation> operations() {
    auto with = [](auto f) {
        return [f](const context_ptr & ctx, const texts & t) {
            f(ctx, t);
            return true;
        };
    };
    using ctx_ref = const context_ptr &;
    using own_ref = const texts &;
    return {
        { "decode", with([](ctx_ref ctx, own_ref) { CHECK(decode(ctx, some_tokens(70, 2), { 0 }) == 0); }) },
        { "decode singly", with([](ctx_ref ctx, own_ref) { decode_singly(ctx, some_tokens(30, 2), { 0, 1 }); }) },
        { "seq_rm of a tail", with([](ctx_ref ctx, own_ref) {
              CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).exact_pos + 2, -1));
          }) },
        { "seq_rm, and another text", with([](ctx_ref ctx, own_ref) {
              CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
              CHECK(decode(ctx, some_tokens(120, 3), { 0 }) == 0);
          }) },
        { "seq_cp", with([](ctx_ref ctx, own_ref) {
              llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
              CHECK(stats(ctx, 1).logical_pos == stats(ctx, 0).logical_pos);
          }) },
        { "clear, and other texts", with([](ctx_ref ctx, own_ref) {
              llama_memory_clear(memory(ctx), true);
              CHECK(decode(ctx, some_tokens(110, 3), { 0, 1 }) == 0);
          }) },
        { "seq_keep", with([](ctx_ref ctx, own_ref) { llama_memory_seq_keep(memory(ctx), 1); }) },
        { "save", with([](ctx_ref ctx, own_ref t) { CHECK(save(ctx).size() == t.own.size()); }) },
        { "save all", with([](ctx_ref ctx, own_ref t) { CHECK(save_all(ctx).size() == t.both.size()); }) },
        { "save a checkpoint", with([](ctx_ref ctx, own_ref t) { CHECK(save(ctx, 0, CHECKPOINT) == t.checkpoint); }) },
        { "load its own", [](ctx_ref ctx, own_ref t) { return load_strictly(ctx, t.own); } },
        { "load another", [](ctx_ref ctx, own_ref t) { return load_strictly(ctx, t.other); } },
        { "load all", [](ctx_ref ctx, own_ref t) { return load_strictly(ctx, t.both, -1); } },
        { "go back",
          [](ctx_ref ctx, own_ref t) {
              CHECK(decode(ctx, some_tokens(80, 4), { 0 }) == 0);
              return load_strictly(ctx, t.checkpoint, 0, CHECKPOINT);
          } },
        { "go back from another text",
          [](ctx_ref ctx, own_ref t) {
              CHECK(load_strictly(ctx, t.other));
              return load_strictly(ctx, t.checkpoint, 0, CHECKPOINT);
          } },
        { "switch texts",
          [](ctx_ref ctx, own_ref t) {
              const bytes now = save(ctx);
              return load_strictly(ctx, t.other) && load_strictly(ctx, now);
          } },
        { "recall",
          [](ctx_ref ctx, own_ref) {
              morphkv_recalled out{};
              return try_recall(ctx, out) == MORPHKV_STATUS_OK;
          },
          true },
    };
}

// What both sequences say next, evictions included.
static std::vector<floats> answers(const context_ptr & ctx) {
    std::vector<floats> res;
    for (const llama_token token : some_tokens(7, 20)) {
        decode_singly(ctx, { token }, { 0, 1 });
        for (const int32_t i : { 0, 1 }) {
            res.push_back(logits(ctx, i));
            CHECK(all_finite(res.back()));
        }
    }
    return res;
}

struct outcome {
    bool                 is_done;
    std::string          why;  // all that has been said
    int64_t              n_calls;
    int64_t              n_damaged;
    std::vector<int32_t> slots;
    std::vector<floats>  answers;
};

static outcome run(const context_ptr & ctx, const texts & texts, const operation & op, int64_t n, int error) {
    morphkv_testing_fail_store(0, 0);
    llama_memory_clear(memory(ctx), true);
    CHECK(load_strictly(ctx, texts.own) && load_strictly(ctx, texts.other, 1));
    CHECK(!*morphkv_archive_why_stopped(ctx.get(), 0) && !*morphkv_archive_why_stopped(ctx.get(), 1));
    g_log.clear();

    outcome res;
    morphkv_testing_fail_store(n, error);
    res.is_done = op.run(ctx, texts);
    res.why     = res.is_done ? "" : morphkv_last_error();
    archive_of(ctx);  // waits
    res.n_calls = morphkv_testing_n_store_calls();
    morphkv_testing_fail_store(0, 0);

    res.n_damaged = stats(ctx, 0).n_archive_damaged + stats(ctx, 1).n_archive_damaged;
    res.why += morphkv_archive_why_stopped(ctx.get(), 0);
    res.why += morphkv_archive_why_stopped(ctx.get(), 1);
    res.why += g_log;
    res.slots   = retained(ctx, 0, 1);
    res.answers = answers(ctx);
    return res;
}

static const std::vector<int> ERRORS = { ENOSPC, EIO, EDQUOT, EFBIG, EBADF, ENOMEM };

static bool says(const std::string & why, int error) {
    return why.find(strerror(error)) != std::string::npos ||
           (error == ENOMEM && why.find("out of memory") != std::string::npos);
}

struct totals {
    int64_t n_cases = 0, n_stopped = 0, n_damaged = 0, n_refused = 0;
    float   difference = 0.0f;  // of logits
};

static float largest_difference(const std::vector<floats> & a, const std::vector<floats> & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        for (size_t j = 0; j < a[i].size(); ++j) {
            res = std::max(res, std::fabs(a[i][j] - b[i][j]));
        }
    }
    return res;
}

static void test_every_call_of_every_operation(llama_model * model, const archived_setup & setup, totals & all) {
    remove_files(setup);
    const auto ctx   = create_archived(model, setup);
    const auto texts = make_texts(ctx);
    for (const auto & op : operations()) {
        const auto expected = run(ctx, texts, op, 0, 0);
        CHECK(expected.is_done && expected.n_damaged == 0);
        operation  nothing  = { "nothing", [](const context_ptr &, const struct texts &) { return true; } };
        const auto without  = op.recalls ? run(ctx, texts, nothing, 0, 0) : outcome();
        const auto n_before = all.n_cases;
        for (int64_t n = 1; n <= expected.n_calls; ++n) {
            for (const int error : setup.is_beside ? std::vector<int>{ EIO, ENOMEM } : ERRORS) {
                const auto got = run(ctx, texts, op, n, error);
                if (!says(got.why, error)) {
                    fprintf(stderr, "%s, call %d, %s: nobody says why: %s\n", op.name, (int) n, strerror(error),
                            got.why.c_str());
                    CHECK(false);
                }
                if (!op.recalls) {
                    CHECK(got.answers == expected.answers);
                } else if (got.slots == without.slots) {
                    CHECK(got.answers == without.answers);
                } else if (got.slots == expected.slots) {
                    // a key whose original cannot be read is turned where it is, and rounded
                    all.difference = std::max(all.difference, largest_difference(got.answers, expected.answers));
                    CHECK(all.difference <= 0.01f);
                }
                CHECK(got.is_done || op.recalls);
                all.n_cases++;
                all.n_damaged += got.n_damaged > 0;
                all.n_refused += !got.is_done;
                all.n_stopped += got.why.find("grows no more") != std::string::npos;
            }
        }
        printf("  %-24s %4d calls, %4d cases\n", op.name, (int) expected.n_calls, (int) (all.n_cases - n_before));
    }
    remove_files(setup);
}

// An archive that cannot be opened: the context is as if it had never been asked for one.
static void test_every_call_of_opening(llama_model * model, const archived_setup & setup, totals & all) {
    remove_files(setup);
    const auto plain = create_plain(model, setup);
    CHECK(decode(plain, some_tokens(90), { 0, 1 }) == 0);
    const auto expected = answers(plain);
    for (const bool is_there : { false, true }) {
        auto open = [&](int64_t n, int error) {
            morphkv_testing_fail_store(0, 0);
            if (is_there) {
                const auto before = create_archived(model, setup);
                CHECK(decode(before, some_tokens(150), { 0, 1 }) == 0);
            } else {
                remove_files(setup);
            }
            const auto ctx = create_plain(model, setup);
            morphkv_testing_fail_store(n, error);
            const bool    is_done = start_archive(ctx, setup);
            const int64_t n_calls = morphkv_testing_n_store_calls();
            morphkv_testing_fail_store(0, 0);
            CHECK(is_done == (n == 0));
            CHECK(n == 0 || says(morphkv_last_error(), error));
            if (n > 0) {
                // nor is anything half done
                CHECK(n % 2 == 0 || start_archive(ctx, setup));
                CHECK(decode(ctx, some_tokens(90), { 0, 1 }) == 0);
                CHECK(answers(ctx) == expected);
            }
            return n_calls;
        };
        const int64_t n_calls = open(0, 0);
        for (int64_t n = 1; n <= n_calls; ++n) {
            for (const int error : ERRORS) {
                open(n, error);
                all.n_cases++;
                all.n_refused++;
            }
        }
        printf("  %-24s %4d calls, %4d cases\n", is_there ? "open one that is there" : "open a new one", (int) n_calls,
               (int) (n_calls * ERRORS.size()));
    }
    remove_files(setup);
}

int main() {
    setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    keep_the_log();
    const auto model = tiny_model_load();
    totals     all;

    const std::vector<const char *> paths = { nullptr, "test_store_faults.tmp" };
    std::vector<archived_setup>     setups;
    for (const bool is_beside : { false, true }) {
        for (const char * path : paths) {
            setups.push_back({ path, is_beside, CAPACITY });
        }
    }
    for (const auto & setup : setups) {
        printf("%s%s\n", setup.path ? "in a file" : "in memory", setup.is_beside ? ", appended to beside" : "");
        test_every_call_of_every_operation(model.get(), setup, all);
        if (setup.path && !setup.is_beside) {
            test_every_call_of_opening(model.get(), setup, all);
        }
    }
    printf("%d cases: in %d an archive stopped, in %d pages were lost, %d were refused\n", (int) all.n_cases,
           (int) all.n_stopped, (int) all.n_damaged, (int) all.n_refused);
    printf("logits after the same recall differ by %.4f at most, where a kept token's original could not be read\n",
           all.difference);
    CHECK(all.n_cases >= 2000);
    return 0;
}
