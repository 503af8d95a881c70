// What a layer keeps of a text is what all layers that attend to its keys vote for, against plain loops.

#include "model_rows.h"

#include <map>
#include <set>

// What the layers' queries are, as the model's graph names them: (n_head, n_embd_head) of each of the newest tokens.
struct queries_seen {
    std::map<int32_t, std::vector<floats>> by_layer;

    static bool see(ggml_tensor * t, bool ask, void * data) {
        int32_t    il;
        const bool is_named = sscanf(t->name, "Qcur_pos-%d", &il) == 1;
        if (!is_named || "Qcur_pos-" + std::to_string(il) != t->name) {
            return false;
        }
        if (!ask) {
            CHECK(t->type == GGML_TYPE_F32 && t->ne[2] == 1 && ggml_is_contiguous(t));
            floats q(ggml_nelements(t));
            ggml_backend_tensor_get(t, q.data(), 0, ggml_nbytes(t));
            ((queries_seen *) data)->by_layer[il].push_back(q);
        }
        return true;
    }
};

// Sum over the voters of the most that any query head of a group gives to each older key; plain loops.
static std::vector<double> plain_votes(const std::vector<const floats *> & voters, const floats & keys, int32_t n_old,
                                       int32_t n_head_kv, int32_t head, const morphkv_side_layer & layer) {
    const int64_t       n_row = keys.size() / n_old, n_embd = n_row / n_head_kv;
    std::vector<double> res(n_old);
    for (size_t i = 0; i < voters.size(); i += layer.n_readers()) {
        std::vector<double> most(n_old);
        for (int32_t j = 0; j < layer.n_readers(); ++j) {
            if (!voters[i + j]) {
                continue;
            }
            const floats & q       = *voters[i + j];
            const int64_t  n_group = q.size() / n_embd / n_head_kv;
            for (int64_t g = head * n_group; g < (head + 1) * n_group; ++g) {
                std::vector<double> a(n_old);
                double              highest = -1e30, sum = 0.0;
                for (int32_t c = 0; c < n_old; ++c) {
                    for (int64_t e = 0; e < n_embd; ++e) {
                        a[c] += (double) q[g * n_embd + e] * keys[c * n_row + head * n_embd + e];
                    }
                    a[c] *= layer.kq_scale;
                    a[c]    = layer.softcap > 0.0f ? layer.softcap * std::tanh(a[c] / layer.softcap) : a[c];
                    highest = std::max(highest, a[c]);
                }
                for (double & x : a) {
                    x = std::exp(x - highest);
                    sum += x;
                }
                for (int32_t c = 0; c < n_old; ++c) {
                    most[c] = std::max(most[c], a[c] / sum);
                }
            }
        }
        for (int32_t c = 0; c < n_old; ++c) {
            res[c] += most[c];
        }
    }
    return res;
}

static std::set<int32_t> best(const std::vector<double> & votes, const std::vector<int32_t> & serials, int32_t n_keep,
                              int32_t n) {
    std::vector<int32_t> order;
    for (size_t i = n_keep; i < votes.size(); ++i) {
        order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return votes[a] > votes[b]; });
    std::set<int32_t> res(serials.begin(), serials.begin() + n_keep);
    for (int32_t i = 0; i < n - n_keep; ++i) {
        res.insert(serials[order[i]]);
    }
    return res;
}

void votes(llama_model * model, int32_t il, const std::vector<int32_t> & readers) {
    queries_seen seen;
    auto         cparams      = params_of(GGML_TYPE_F32);
    cparams.cb_eval           = queries_seen::see;
    cparams.cb_eval_user_data = &seen;
    auto params               = small_params();
    params.interval           = 12;
    params.prompt_room        = 0;
    const auto   ctx          = create(model, params, cparams);
    const auto & layers       = cache_of(ctx).get_side().layers;
    decode_singly(ctx, some_tokens(params.capacity));
    const auto it = std::find_if(layers.begin(), layers.end(), [&](const auto & layer) { return layer.il == il; });
    CHECK(it != layers.end() && it->readers == readers);

    int32_t n_choices = 0, n_as_joined = 0, n_as_owner = 0;
    double  worst_gap = 0.0;
    while (stats(ctx).n_evictions < 20) {
        // what a cut before the next token would work on
        const auto    s     = stats(ctx);
        const int32_t n_old = s.n_used - params.window;
        const auto    keys  = heads_of(it->k, n_old);
        auto          slots = retained(ctx, 0, il);
        for (size_t i = 0; s.n_evictions == 0 && i < slots.size(); ++i) {
            slots[i] = i % s.n_distant;
        }
        std::vector<const floats *> voters, of_owner;
        for (int32_t i = params.window; i > 0; --i) {
            for (const int32_t reader : readers) {
                const auto & all = seen.by_layer[reader];
                CHECK((int32_t) all.size() == s.logical_pos + 1);
                voters.push_back(&all[all.size() - i]);
                of_owner.push_back(reader == il ? voters.back() : nullptr);
            }
        }
        std::vector<std::vector<double>> joined, own;
        for (int32_t h = 0; h < it->n_head_kv; ++h) {
            joined.push_back(plain_votes(voters, keys, n_old, it->n_head_kv, h, *it));
            own.push_back(plain_votes(of_owner, keys, n_old, it->n_head_kv, h, *it));
        }
        decode_singly(ctx, some_tokens(1, s.logical_pos));
        if (stats(ctx).n_evictions == s.n_evictions) {
            continue;
        }
        const auto kept = retained(ctx, 0, il);
        for (int32_t h = 0; h < it->n_head_kv; ++h) {
            std::vector<int32_t> serials(slots.begin() + h * s.n_distant, slots.begin() + (h + 1) * s.n_distant);
            for (int32_t i = s.n_distant; i < n_old; ++i) {
                serials.push_back(s.logical_pos + 1 - s.n_used + i);
            }
            const std::set<int32_t> got(kept.begin() + h * s.n_distant, kept.begin() + (h + 1) * s.n_distant);
            // by how much the worst that was kept is below the best that was not
            double                  worst = 1e30, missed = 0.0;
            for (int32_t i = params.keep; i < n_old; ++i) {
                double & side = got.count(serials[i]) ? worst : missed;
                side          = got.count(serials[i]) ? std::min(side, joined[h][i]) : std::max(side, joined[h][i]);
            }
            worst_gap = std::max(worst_gap, (missed - worst) / missed);
            n_choices++;
            n_as_joined += got == best(joined[h], serials, params.keep, s.n_distant);
            n_as_owner += got == best(own[h], serials, params.keep, s.n_distant);
        }
    }
    printf("{\"n_choices\": %d, \"n_as_joined\": %d, \"n_as_owner\": %d, \"worst_gap\": %g}\n", n_choices, n_as_joined,
           n_as_owner, worst_gap);
}
