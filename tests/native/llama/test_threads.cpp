// One model, a context in each of several threads: each does what it does alone. One context is never used by two.

#include "support/tiny_context.h"

#include <thread>

struct work {
    morphkv_params params = small_params();
    uint32_t       seed   = 0;

    std::vector<floats>  logits;
    std::vector<int32_t> kept;
    std::string          refusal;

    void run(llama_model * model) {
        // the pending parameters and the last error are each thread's own
        auto            wrong   = params;
        llama_context * none    = nullptr;
        auto            cparams = context_params();
        wrong.window            = -(int32_t) seed - 1;
        CHECK(morphkv_context_create(model, &cparams, &wrong, &none) == MORPHKV_STATUS_INVALID);
        refusal = morphkv_last_error();

        const auto ctx = create(model, params, cparams);
        CHECK(decode(ctx, some_tokens(200, seed)) == 0);
        logits = logits_of(ctx, some_tokens(100, seed + 1));

        CHECK(load(ctx, save(ctx)));
        CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx).exact_pos, -1));
        logits_of(ctx, some_tokens(100, seed + 2));
        kept = retained(ctx, 0, 1);
    }
};

int main() {
    log_errors_only();
    const auto model = tiny_model_load();

    std::vector<work> alone(3);
    for (uint32_t i = 0; i < alone.size(); ++i) {
        alone[i].seed            = i;
        alone[i].params.capacity = 40 + 8 * i;
    }
    auto together = alone;
    for (auto & w : alone) {
        w.run(model.get());
    }
    std::vector<std::thread> threads;
    for (auto & w : together) {
        threads.emplace_back([&] { w.run(model.get()); });
    }
    for (auto & t : threads) {
        t.join();
    }
    for (size_t i = 0; i < alone.size(); ++i) {
        CHECK(together[i].logits == alone[i].logits && together[i].kept == alone[i].kept);
        CHECK(together[i].refusal == alone[i].refusal);
        CHECK(together[i].refusal.find("got -" + std::to_string(i + 1)) != std::string::npos);
    }
    return 0;
}
