// What comes back of an image. In the first layer a token's K and V depend on its embedding and where it stands alone: V is
// what it was when it left, and K that of a context which decodes the same image at that rotary position.

#include "support/archived_context.h"

#include <map>

static constexpr int32_t N_ROWS = 4, N_COLUMNS = 5, N_IMAGE = N_ROWS * N_COLUMNS, N_EMBD = 64;

enum class kind { LINE, BOTH_WAYS, ROWS };

static floats some_image(uint32_t seed) {
    std::mt19937                    rng(seed);
    std::normal_distribution<float> normal;
    floats                          res(N_IMAGE * N_EMBD);
    for (auto & x : res) {
        x = normal(rng);
    }
    return res;
}

// At a time; those of a line follow each other.
static void show(const context_ptr & ctx, kind k, const floats & values, llama_pos first) {
    const int32_t          n = values.size() / N_EMBD;
    std::vector<llama_pos> pos(k == kind::ROWS ? 4 * n : n);
    for (int32_t i = 0; i < n; ++i) {
        pos[i] = k == kind::ROWS ? first : first + i;
        if (k == kind::ROWS) {
            pos[n + i]     = first + i / N_COLUMNS;
            pos[2 * n + i] = first + i % N_COLUMNS;
        }
    }
    llama_batch batch = llama_batch_init(n, N_EMBD, 1);
    std::copy(values.begin(), values.end(), batch.embd);
    llama_pos * const own = batch.pos;
    batch.pos             = pos.data();
    batch.n_tokens        = n;
    for (int32_t i = 0; i < n; ++i) {
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i + 1 == n;
    }
    llama_set_causal_attn(ctx.get(), k != kind::BOTH_WAYS);
    const int status = llama_decode(ctx.get(), batch);
    llama_set_causal_attn(ctx.get(), true);
    batch.pos = own;
    llama_batch_free(batch);
    CHECK(status == 0);
}

// llama.cpp's positions end with an image's time, so these are ours.
static void say(const context_ptr & ctx, const tokens & text) {
    for (const llama_token token : text) {
        llama_batch batch  = llama_batch_init(1, 0, 1);
        batch.n_tokens     = 1;
        batch.token[0]     = token;
        batch.pos[0]       = stats(ctx).logical_pos + 1;
        batch.n_seq_id[0]  = 1;
        batch.seq_id[0][0] = 0;
        batch.logits[0]    = true;
        const int status   = llama_decode(ctx.get(), batch);
        llama_batch_free(batch);
        CHECK(status == 0);
    }
}

// A token of an image, and its value in each head.
struct seen {
    uint32_t            image;
    int32_t             i;  // in the image
    std::vector<floats> v;
};

static float largest_difference(const floats & a, const floats & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// The keys of a token's heads where RoPE has it at `pos`.
static std::vector<floats> keys_at(llama_model * model, ggml_type type, kind k, const seen & token, int32_t pos) {
    auto cparams     = context_params();
    auto params      = small_params();
    params.capacity  = 900;
    cparams.n_ubatch = 32;
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, params, cparams);
    CHECK(pos == 0 || decode(ctx, tokens(pos, 1)) == 0);
    const auto image = some_image(token.image);
    const auto first = image.begin() + (k == kind::ROWS ? 0 : token.i * N_EMBD);
    show(ctx, k, k == kind::ROWS ? image : floats(first, first + N_EMBD), pos);

    const auto &        layer = cache_of(ctx).get_side().layers[0];
    std::vector<floats> res;
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        res.push_back(row_of(layer.k, k == kind::ROWS ? pos + token.i : pos, h, layer.n_head_kv));
    }
    return res;
}

static void test_what_comes_back_is_what_left(llama_model * model, kind k, ggml_type type, float tolerance) {
    auto params       = small_params();
    params.capacity   = 100;
    params.rope_limit = 400;
    auto cparams      = context_params();
    cparams.n_ubatch  = 32;
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, params, cparams);
    CHECK(start_archive(ctx, alone(false, type)));

    const auto &            cache = cache_of(ctx);
    const auto &            layer = cache.get_side().layers[0];
    std::map<int32_t, seen> seen_tokens;  // by serial
    for (uint32_t image = 0; image < 10; ++image) {
        say(ctx, some_tokens(6, image));
        const int32_t first = cache.text_of(0).n_tokens();
        show(ctx, k, some_image(image), stats(ctx).logical_pos + 1);
        for (int32_t i = 0; i < N_IMAGE; ++i) {
            seen token{ image, i, {} };
            for (int32_t h = 0; h < layer.n_head_kv; ++h) {
                token.v.push_back(row_of(layer.v, stats(ctx).n_used - N_IMAGE + i, h, layer.n_head_kv));
            }
            seen_tokens[first + i] = token;
        }
    }
    say(ctx, some_tokens(30, 99));
    settled(ctx);
    const auto before = cache.get_side().get_serials(layer, 0);
    CHECK(recall(ctx).n_recalled > 0);

    const auto   s      = stats(ctx);
    const auto & text   = cache.text_of(0);
    const auto   after  = cache.get_side().get_serials(layer, 0);
    int32_t      n_rows = 0;
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        const auto first = before.begin() + h * s.n_distant;
        for (int32_t slot = 0; slot < s.n_distant; ++slot) {
            const int32_t serial = after[h * s.n_distant + slot];
            const auto    token  = seen_tokens.find(serial);
            if (token == seen_tokens.end() || std::count(first, first + s.n_distant, serial) > 0) {
                continue;
            }
            CHECK(row_of(layer.v, slot, h, layer.n_head_kv) == token->second.v[h]);
            if (n_rows++ % 3 == 0) {
                const auto keys = keys_at(model, type, k, token->second, text.rotary_position(0, h, serial));
                CHECK(largest_difference(row_of(layer.k, slot, h, layer.n_head_kv), keys[h]) <= tolerance);
            }
        }
    }
    CHECK(n_rows >= 16);
    say(ctx, some_tokens(100, 5));
    CHECK(all_finite(logits(ctx)));
}

int main() {
    log_errors_only();
    tiny_shape rows;
    rows.arch        = "qwen2vl";
    rows.n_head      = 2;
    rows.n_head_kv   = 1;
    const auto plain = tiny_model_load(), with_rows = tiny_model_load(rows);
    for (const auto k : { kind::LINE, kind::BOTH_WAYS, kind::ROWS }) {
        llama_model * model = k == kind::ROWS ? with_rows.get() : plain.get();
        test_what_comes_back_is_what_left(model, k, GGML_TYPE_F32, 1e-4f);
        test_what_comes_back_is_what_left(model, k, GGML_TYPE_F16, 1e-2f);
        test_what_comes_back_is_what_left(model, k, GGML_TYPE_Q8_0, 1e-1f);
    }
    return 0;
}
