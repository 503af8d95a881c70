// The self-test passes on devices that are right, names what a device lacks, and sees each kind of wrong result.

#include "device/selftest.h"
#include "morphkv.h"
#include "support/check.h"
#include "support/fake_device.h"

#include "ggml-cpp.h"

#include <cmath>
#include <set>

static morphkv_selftest_case find_case(ggml_type type, bool is_rebase, bool with_decay = false) {
    for (const auto & c : morphkv_selftest_cases()) {
        if (c.type == type && (c.n_rows > 0) == is_rebase && (c.policy.carried > 0.0f) == with_decay) {
            return c;
        }
    }
    CHECK(false);
}

static ggml_backend_ptr cpu_backend() {
    ggml_backend_ptr res(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(res.get(), 1);
    return res;
}

static void test_every_type_and_both_graphs_are_there() {
    std::set<std::pair<ggml_type, bool>> seen;
    for (const auto & c : morphkv_selftest_cases()) {
        seen.insert({ c.type, c.n_rows > 0 });
    }
    CHECK(seen.size() == 12);
}

static void test_a_device_with_memory_of_its_own_passes() {
    fake_device            dev("Fake");
    const ggml_backend_ptr cpu = cpu_backend();
    const ggml_backend_ptr device(ggml_backend_dev_init(&dev.dev, nullptr));
    for (const auto & c : morphkv_selftest_cases()) {
        const auto verdict = morphkv_selftest_compare(c, morphkv_selftest_compute(c, cpu.get()),
                                                      morphkv_selftest_compute(c, device.get()));
        CHECK(verdict.result == MORPHKV_SELFTEST_RESULT_SAME && verdict.reason.empty() && verdict.n_near_ties == 0);
    }
    CHECK(dev.n_graphs > 0);
}

static void test_what_a_device_lacks_is_named() {
    fake_device dev("Fake");
    dev.supports = [](const ggml_tensor * t) {
        return t->op != GGML_OP_ARGSORT || t->ne[0] <= 1000;
    };
    const ggml_backend_ptr cpu = cpu_backend();
    const ggml_backend_ptr device(ggml_backend_dev_init(&dev.dev, nullptr));
    int                    n_refused = 0;
    for (const auto & c : morphkv_selftest_cases()) {
        const auto verdict = morphkv_selftest_compare(c, morphkv_selftest_compute(c, cpu.get()),
                                                      morphkv_selftest_compute(c, device.get()));
        if (verdict.result == MORPHKV_SELFTEST_RESULT_REFUSED) {
            CHECK(verdict.reason == "Fake does not support ARGSORT of f32 [1024, 2]");
            n_refused++;
        }
    }
    CHECK(n_refused == 6);
}

template <typename F> static void tampered(const morphkv_selftest_case & c, const char * word, F && tamper) {
    const auto cpu    = morphkv_selftest_compute(c, cpu_backend().get());
    auto       device = cpu;
    CHECK(morphkv_selftest_compare(c, cpu, device).result == MORPHKV_SELFTEST_RESULT_SAME);
    tamper(device);
    const auto verdict = morphkv_selftest_compare(c, cpu, device);
    CHECK(verdict.result == MORPHKV_SELFTEST_RESULT_DIFFERENT);
    if (verdict.reason.find(word) == std::string::npos) {
        fprintf(stderr, "expected '%s' in '%s'\n", word, verdict.reason.c_str());
        CHECK(false);
    }
}

static void test_wrong_results_are_seen() {
    using state = morphkv_selftest_state;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q4_0 }) {
        const auto c         = find_case(type, false);
        const int  n_distant = c.shape.n_distant;

        // one bit of one row
        tampered(c, "the row is not that of token", [](state & s) { s.k[5] ^= 1; });
        tampered(c, "the row is not that of token", [](state & s) { s.v[5] ^= 1; });
        // positions of two tokens changed, their rows not
        tampered(c, "cannot be there", [](state & s) { std::swap(s.pos[10], s.pos[11]); });
        tampered(c, "cannot be there", [](state & s) { s.pos[10] = -1; });
        tampered(c, "did not move", [&](state & s) {
            s.k[(n_distant + 2) * (s.k.size() / (c.shape.n_old() + c.shape.n_window + 5))] ^= 1;
        });
        tampered(c, "the vote on cell 7 of head 0", [](state & s) { s.votes[7] += 0.5f; });
        tampered(c, "the vote on cell 7 of head 0", [](state & s) { s.votes[7] = NAN; });
        // nothing was moved at all: all is whole, and the wrong tokens are kept
        tampered(c, "was kept in the place of", [&](state & s) {
            const size_t n_row = s.k.size() / (c.shape.n_old() + c.shape.n_window + 5);
            for (int h = 0; h < c.n_head_kv; ++h) {
                for (int i = 0; i < n_distant; ++i) {
                    s.pos[h * n_distant + i] = i;
                }
            }
            std::copy(s.k_before.begin(), s.k_before.begin() + n_distant * n_row, s.k.begin());
            std::copy(s.v_before.begin(), s.v_before.begin() + n_distant * n_row, s.v.begin());
        });
        const auto decaying = find_case(type, false, true);
        tampered(decaying, "was kept in the place of", [&](state & s) {
            const size_t n_row = s.k.size() / (decaying.shape.n_old() + decaying.shape.n_window + 5);
            for (int i = 0; i < decaying.shape.n_distant; ++i) {
                s.pos[i] = s.pos[decaying.shape.n_distant + i] = i;
            }
            std::copy(s.k_before.begin(), s.k_before.begin() + decaying.shape.n_distant * n_row, s.k.begin());
            std::copy(s.v_before.begin(), s.v_before.begin() + decaying.shape.n_distant * n_row, s.v.begin());
        });
        tampered(decaying, "the score is", [](state & s) { s.score[3] += 0.5f; });
        tampered(find_case(type, true), "the turned key is off by", [](state & s) {
            // the second key in the place of the first
            std::copy(s.k.begin() + s.k.size() / 401 / 3, s.k.begin() + 2 * (s.k.size() / 401 / 3), s.k.begin());
        });
    }
}

// A device that turned keys in another way, or that asked one layer of several, would be seen.
static void test_other_turns_and_other_votes_are_seen() {
    auto differs = [](const morphkv_selftest_case & c, morphkv_selftest_case other) {
        const auto cpu = cpu_backend();
        const auto res = morphkv_selftest_compare(c, morphkv_selftest_compute(c, cpu.get()),
                                                  morphkv_selftest_compute(other, cpu.get()));
        return res.result == MORPHKV_SELFTEST_RESULT_DIFFERENT;
    };
    int n_sections = 0, n_offs = 0, n_normed = 0, n_readers = 0;
    for (const auto & c : morphkv_selftest_cases()) {
        auto other = c;
        if (c.sections[0] > 0) {
            // as if the pairs of no section turned, too; of Qwen 3 VL's two of 64 pairs, in the others none
            other.rope_mode = GGML_ROPE_TYPE_NEOX;
            other.sections  = {};
            n_sections += differs(c, other);
            other.rope_mode = GGML_ROPE_TYPE_NORMAL;
            CHECK(differs(c, other));
        }
        if (c.n_rot_offs > 0) {
            other.n_rot_offs = 0;
            n_offs += differs(c, other);
        }
        if (c.is_normed) {
            other.is_normed = false;
            n_normed += differs(c, other);
        }
        if (c.n_readers > 1) {
            other.n_readers = 1;
            n_readers += differs(c, other);
        }
    }
    // q4_0's rounding may hide two pairs
    CHECK((n_sections == 5 || n_sections == 6) && n_offs == 6 && n_normed == 6 && n_readers == 6);
}

static void test_the_c_api_tells_case_by_case() {
    int32_t n = 0;
    CHECK(morphkv_selftest_count(nullptr, &n) == MORPHKV_STATUS_OK);
    CHECK(n >= (int32_t) morphkv_selftest_cases().size());
    morphkv_selftest row{};
    row.size = sizeof(row);
    CHECK(morphkv_selftest_run(nullptr, 0, &row) == MORPHKV_STATUS_OK);
    CHECK(std::string(row.graph) == "evict" && std::string(row.type) == "f32" && row.result == 0);
    CHECK(std::string(row.shape) == "3x64, group 3, 992+128 cells, 32 votes" && std::string(row.reason).empty());
    row.n_threads = 3;
    CHECK(morphkv_selftest_run(nullptr, 0, &row) == MORPHKV_STATUS_OK && row.result == 0);
    row.n_threads = -1;
    CHECK(morphkv_selftest_run(nullptr, 0, &row) == MORPHKV_STATUS_INVALID);
    row.n_threads = 0;
    CHECK(morphkv_selftest_run(nullptr, n, &row) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_selftest_run(nullptr, -1, &row) == MORPHKV_STATUS_INVALID);
    row.size = 1;
    CHECK(morphkv_selftest_run(nullptr, 0, &row) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_selftest_count(nullptr, nullptr) == MORPHKV_STATUS_INVALID);
}

int main() {
    test_every_type_and_both_graphs_are_there();
    test_a_device_with_memory_of_its_own_passes();
    test_what_a_device_lacks_is_named();
    test_wrong_results_are_seen();
    test_other_turns_and_other_votes_are_seen();
    test_the_c_api_tells_case_by_case();
    return 0;
}
