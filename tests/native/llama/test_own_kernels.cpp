// Kernels of our own behind an eviction: chosen where a library serves the device, compared with the graph first, and left
// where they are wrong. A stand-in library serves the CPU.

#include "device/kernels.h"
#include "device/selftest.h"
#include "support/inside.h"
#include "support/stand_in_kernels.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

static std::string heard;

static void hear(ggml_log_level, const char * text, void *) {
    heard += text;
}

// The library, as libllama opens it.
struct stand_in {
    decltype(stand_in_set) *      set;
    decltype(stand_in_n_calls) *  n_calls;
    decltype(stand_in_n_layers) * n_layers;
};

// Under another name each time, since what is known of a library is known by its path.
static stand_in choose(stand_in_mode mode) {
    static std::string name = STAND_IN_FOLDER "/";
    name += "./";
    const std::string path = name + STAND_IN_FILE;
    void *            lib  = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(lib);
    stand_in res;
    res.set      = (decltype(stand_in_set) *) dlsym(lib, "stand_in_set");
    res.n_calls  = (decltype(stand_in_n_calls) *) dlsym(lib, "stand_in_n_calls");
    res.n_layers = (decltype(stand_in_n_layers) *) dlsym(lib, "stand_in_n_layers");
    res.set(mode);
    setenv("MORPHKV_CUDA_KERNELS", path.c_str(), true);
    heard.clear();
    return res;
}

static void choose_none() {
    setenv("MORPHKV_CUDA_KERNELS", "0", true);
}

static ggml_backend_dev_t cpu() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

static void test_sets_are_those_of_the_graph_but_for_ties() {
    choose(STAND_IN_RIGHT);
    const auto *           library = morphkv_kernels_library_for(cpu());
    const ggml_backend_ptr backend(morphkv_selftest_start(cpu()));
    CHECK(library);
    int32_t n = 0;
    for (const auto & c : morphkv_selftest_cases()) {
        if (c.n_rows > 0) {
            continue;
        }
        const auto by_graph   = morphkv_selftest_compute(c, backend.get());
        const auto by_kernels = morphkv_selftest_compute(c, backend.get(), library);
        const auto verdict    = morphkv_selftest_compare(c, by_graph, by_kernels);
        if (verdict.result != MORPHKV_SELFTEST_RESULT_SAME) {
            fprintf(stderr, "%s: %s\n", c.describe().c_str(), verdict.reason.c_str());
        }
        CHECK(verdict.result == MORPHKV_SELFTEST_RESULT_SAME);
        // else the graph rounds queries to the type of K
        CHECK((c.type != GGML_TYPE_F32 && c.type != GGML_TYPE_F16) || verdict.n_near_ties == 0);
        n++;
    }
    CHECK(n == 42);
}

static void test_the_self_test_shows_both() {
    choose_none();
    int32_t n_graphs = 0, n = 0, n_kernels = 0;
    CHECK(morphkv_selftest_count(nullptr, &n_graphs) == MORPHKV_STATUS_OK);
    choose(STAND_IN_RIGHT);
    CHECK(morphkv_selftest_count(nullptr, &n) == MORPHKV_STATUS_OK && n == n_graphs + 42);
    morphkv_selftest row{};
    row.size = sizeof(row);
    for (int32_t i = n - 2; i < n; ++i) {
        CHECK(morphkv_selftest_run(nullptr, i, &row) == MORPHKV_STATUS_OK &&
              row.result == MORPHKV_SELFTEST_RESULT_SAME);
        n_kernels += strcmp(row.graph, "kernels") == 0;
    }
    CHECK(n_kernels == 2);
    choose(STAND_IN_WRONG);
    CHECK(morphkv_selftest_run(nullptr, n - 1, &row) == MORPHKV_STATUS_OK);
    CHECK(row.result == MORPHKV_SELFTEST_RESULT_DIFFERENT && strstr(row.reason, "the row is not that of token"));
}

// Logits of a text that is cut many times.
static std::vector<floats> text(llama_model * model, const morphkv_params & params, ggml_type type = GGML_TYPE_F16,
                                context_ptr * out = nullptr) {
    auto cparams   = context_params(2);
    cparams.type_k = cparams.type_v = type;
    auto ctx                        = create(model, params, cparams);
    CHECK(decode(ctx, some_tokens(200), { 0, 1 }) == 0);
    auto res = logits_of(ctx, some_tokens(100, 2), 1);
    if (out) {
        *out = std::move(ctx);
    }
    return res;
}

static void test_a_text_goes_on_as_by_the_graph(llama_model * model, ggml_type type, int32_t policy) {
    auto params   = small_params();
    params.policy = policy;
    params.decay  = policy == MORPHKV_POLICY_MORPHKV ? 0.5f : 0.0f;
    choose_none();
    context_ptr graph, kernels;
    const auto  expected  = text(model, params, type, &graph);
    const auto  n_scratch = stats(graph, 1).scratch_bytes;
    const auto  lib       = choose(STAND_IN_RIGHT);
    const auto  got       = text(model, params, type, &kernels);
    CHECK(lib.n_calls() > 10 && heard.find("evictions by") != std::string::npos);
    CHECK(stats(kernels, 1).n_evictions == stats(graph, 1).n_evictions);
    CHECK(stats(kernels, 1).scratch_bytes == n_scratch + STAND_IN_BYTES);
    if (type == GGML_TYPE_F32) {
        // votes differ by rounding alone, and no two of these are as near as that
        for (const int32_t layer : { 0, 1 }) {
            CHECK(retained(kernels, 1, layer) == retained(graph, 1, layer));
        }
        CHECK(got == expected);
    }
    for (const auto & row : got) {
        CHECK(all_finite(row));
    }
}

static void test_what_kernels_cannot_do_is_left_to_the_graph(llama_model * model) {
    for (const int32_t policy : { MORPHKV_POLICY_RECENCY, MORPHKV_POLICY_RANDOM }) {
        auto params   = small_params();
        params.policy = policy;
        choose_none();
        const auto expected = text(model, params);
        const auto lib      = choose(STAND_IN_RIGHT);
        CHECK(text(model, params) == expected && lib.n_calls() == 0);
    }
}

static void test_wrong_kernels_are_switched_off_with_a_warning(llama_model * model) {
    choose_none();
    const auto expected = text(model, small_params());
    const auto lib      = choose(STAND_IN_WRONG);
    CHECK(text(model, small_params()) == expected);
    CHECK(lib.n_calls() == 1);  // the check
    CHECK(heard.find("is switched off, evictions are ggml's operations there") != std::string::npos);
    CHECK(heard.find("the row is not that of token") != std::string::npos);
    heard.clear();
    CHECK(text(model, small_params()) == expected && lib.n_calls() == 1);
    CHECK(heard.find("is switched off") == std::string::npos);  // said once
}

static void test_kernels_that_fail_before_anything_has_changed_are_switched_off(llama_model * model) {
    choose_none();
    const auto  expected = text(model, small_params());
    const auto  lib      = choose(STAND_IN_RIGHT);
    context_ptr ctx;
    text(model, small_params(), GGML_TYPE_F16, &ctx);  // they have been found right
    lib.set(STAND_IN_WITHOUT_MEMORY);
    heard.clear();
    CHECK(text(model, small_params()) == expected && lib.n_calls() == 1);
    CHECK(heard.find("out of memory") != std::string::npos);
}

static void test_kernels_that_fail_half_way_clear_the_sequence(llama_model * model) {
    const auto  lib = choose(STAND_IN_RIGHT);
    context_ptr ctx;
    text(model, small_params(), GGML_TYPE_F16, &ctx);
    lib.set(STAND_IN_HALF);
    const auto before = save(ctx, 0);
    int        status = 0;
    while (status == 0) {
        status = decode(ctx, { 5 }, { 1 });
    }
    CHECK(status == -3 && strstr(morphkv_last_error(), "an illegal address; sequence 1 was half changed"));
    CHECK(stats(ctx, 1).n_used == 0 && save(ctx, 0) == before);
}

static void test_files_that_are_no_kernels_are_warned_of() {
    heard.clear();
    setenv("MORPHKV_CUDA_KERNELS", "/nowhere/libkernels.so", true);
    CHECK(!morphkv_kernels_library_for(cpu()) && !morphkv_kernels_library_for(cpu()));
    CHECK(heard.find("MORPHKV_CUDA_KERNELS=/nowhere/libkernels.so is not used") != std::string::npos);
    heard.clear();
    setenv("MORPHKV_CUDA_KERNELS", LIBLLAMA_FILE, true);
    CHECK(!morphkv_kernels_library_for(cpu()) && heard.find("of MorphKV's kernels, and has none") != std::string::npos);
    heard.clear();
    unsetenv("MORPHKV_CUDA_KERNELS");
    CHECK(!morphkv_kernels_library_for(cpu()) && heard.empty());
}

int main() {
    llama_log_set(hear, nullptr);
    const auto model = tiny_model_load();

    test_sets_are_those_of_the_graph_but_for_ties();
    test_the_self_test_shows_both();
    test_a_text_goes_on_as_by_the_graph(model.get(), GGML_TYPE_F32, MORPHKV_POLICY_MORPHKV);
    test_a_text_goes_on_as_by_the_graph(model.get(), GGML_TYPE_F32, MORPHKV_POLICY_COMMITTEES);
    test_a_text_goes_on_as_by_the_graph(model.get(), GGML_TYPE_F16, MORPHKV_POLICY_H2O);
    test_a_text_goes_on_as_by_the_graph(model.get(), GGML_TYPE_Q8_0, MORPHKV_POLICY_MORPHKV);
    test_what_kernels_cannot_do_is_left_to_the_graph(model.get());
    test_wrong_kernels_are_switched_off_with_a_warning(model.get());
    test_kernels_that_fail_before_anything_has_changed_are_switched_off(model.get());
    test_kernels_that_fail_half_way_clear_the_sequence(model.get());
    test_files_that_are_no_kernels_are_warned_of();
    return 0;
}
