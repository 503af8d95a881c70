#include "morphkv-retained.h"

#include "llama.h"
#include "morphkv-pieces.h"
#include "server-context.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How long an answer waits for what is being decoded, where there is an older one to give.
static constexpr milliseconds PATIENCE(500);
static constexpr milliseconds LONGEST(10000);
static constexpr milliseconds STEP(50);

//
// the server's thread
//

void morphkv_retained_view::start(llama_context * ctx, int32_t n_slots) {
    std::lock_guard<std::mutex> lock(mutex);
    this->ctx = ctx;
    vocab     = llama_model_get_vocab(llama_get_model(ctx));
    slots.resize(n_slots);
}

void morphkv_retained_view::show(int32_t id_slot, const server_tokens & tokens, bool is_processing) {
    uint64_t n_asked;
    {
        std::lock_guard<std::mutex> lock(mutex);
        const slot &                s = slots.at(id_slot);
        if (s.n_asked == s.n_shown) {
            return;
        }
        n_asked = s.n_asked;
    }
    seen_ptr now = look(id_slot, tokens, is_processing);

    std::lock_guard<std::mutex> lock(mutex);
    slots.at(id_slot).n_shown = n_asked;
    slots.at(id_slot).last    = std::move(now);
    shown.notify_all();
}

morphkv_retained_view::seen_ptr morphkv_retained_view::look(int32_t id_slot, const server_tokens & tokens,
                                                            bool is_processing) const {
    auto res           = std::make_shared<seen>();
    res->t_us          = ggml_time_us();
    res->is_processing = is_processing;
    res->stats.size    = sizeof(res->stats);
    morphkv_stats_get(ctx, id_slot, &res->stats);

    // a slot may have tokens that are about to be decoded
    const size_t n_held = res->stats.n_used + res->stats.n_evicted;
    res->tokens         = tokens.get_tokens();
    res->tokens.resize(std::min(res->tokens.size(), n_held));
    if (tokens.has_mtmd) {
        for (size_t i = 0; i < res->tokens.size(); ++i) {
            res->pos.push_back(tokens.pos_next(i));
        }
    }
    const int32_t n_layer = llama_model_n_layer(llama_get_model(ctx));
    for (int32_t il = 0; il < n_layer; ++il) {
        int32_t n_head_kv, n_distant;
        if (morphkv_retained_shape(ctx, il, &n_head_kv, &n_distant) != MORPHKV_STATUS_OK) {
            continue;  // no KV, or a sliding window
        }
        layer one{ il, n_head_kv, std::vector<int32_t>((size_t) n_head_kv * n_distant), false };
        morphkv_retained_get(ctx, id_slot, il, one.pos.data(), one.pos.size());
        // the first eviction fills all slots
        one.has_all = std::all_of(one.pos.begin(), one.pos.end(), [](int32_t pos) { return pos < 0; });
        res->layers.push_back(std::move(one));
    }
    int32_t n_pages = 0;
    morphkv_recalled_get(ctx, id_slot, nullptr, nullptr, 0, &n_pages);
    res->recalled_pos.resize(n_pages);
    res->recalled_by.resize(n_pages);
    morphkv_recalled_get(ctx, id_slot, res->recalled_pos.data(), res->recalled_by.data(), n_pages, &n_pages);
    return res;
}

//
// the answer
//

namespace {

// Tokens by position, and what is counted of them.
class counted {
public:
    explicit counted(const morphkv_retained_view::seen & seen) : seen(seen), n_tokens(seen.tokens.size()) {
        const auto & s = seen.stats;
        first_recent   = s.n_evictions > 0 ? std::max<int64_t>(0, n_tokens - (s.n_used - s.n_distant)) : 0;
        n_heads_of.assign(n_tokens, 0);
        for (const auto & layer : seen.layers) {
            n_heads += layer.n_head_kv;
            n_heads_with_all += layer.has_all ? layer.n_head_kv : 0;
            for (const auto & head : heads(layer)) {
                for (const int32_t token : head) {
                    n_heads_of[token]++;
                }
            }
        }
    }

    // Tokens of each head's distant slots, ascending; of a layer that holds all there are none.
    std::vector<std::vector<int32_t>> heads(const morphkv_retained_view::layer & layer) const {
        std::vector<std::vector<int32_t>> res(layer.n_head_kv);
        const size_t                      n_distant = layer.pos.size() / layer.n_head_kv;
        for (size_t i = 0; i < layer.pos.size(); ++i) {
            const int64_t token = layer.pos[i] < 0 ? -1 : token_at(layer.pos[i]);
            if (token >= 0 && token < first_recent) {
                res[i / n_distant].push_back(token);
            }
        }
        for (auto & head : res) {
            std::sort(head.begin(), head.end());
            // an image's tokens may share a position, and are its first one here
            head.erase(std::unique(head.begin(), head.end()), head.end());
        }
        return res;
    }

    // -1 = none.
    int64_t token_at(int32_t pos) const {
        if (seen.pos.empty()) {
            return pos < n_tokens ? pos : -1;
        }
        const auto it = std::lower_bound(seen.pos.begin(), seen.pos.end(), pos);
        return it == seen.pos.end() ? -1 : it - seen.pos.begin();
    }

    const morphkv_retained_view::seen & seen;

    int64_t              n_tokens;
    int64_t              first_recent;          // from here on every head keeps all
    int32_t              n_heads          = 0;
    int32_t              n_heads_with_all = 0;  // heads that have evicted nothing
    std::vector<int32_t> n_heads_of;            // (n_tokens), that have it in a distant slot
};

}  // namespace

// Each number less the one before.
static json differences(const std::vector<int32_t> & ascending) {
    json    res  = json::array();
    int32_t last = 0;
    for (const int32_t x : ascending) {
        res.push_back(x - last);
        last = x;
    }
    return res;
}

// Of the first n tokens, by which a client that has their pieces asks for those behind. FNV-1a.
static std::string name_of(const std::vector<int32_t> & tokens, size_t n) {
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < n; ++i) {
        hash = (hash ^ (uint32_t) tokens[i]) * 1099511628211ull;
    }
    return string_format("%016llx", (unsigned long long) hash);
}

static json cache_json(const morphkv_stats & s) {
    return {
        { "capacity", s.capacity },       { "keep", s.keep },
        { "n_cells", s.n_cells },         { "n_used", s.n_used },
        { "n_evictions", s.n_evictions }, { "n_evicted", s.n_evicted },
        { "n_recalls", s.n_recalls },     { "n_recalled", s.n_recalled },
        { "n_archived", s.n_archived },   { "archive_bytes", s.archive_bytes },
        { "kv_bytes", s.kv_bytes },
    };
}

static json to_json(const morphkv_retained_view::seen & seen, const llama_vocab * vocab, size_t from, size_t n,
                    bool with_layers) {
    const counted all(seen);

    std::vector<int32_t> kept, n_heads;
    int64_t              n_kept = all.n_tokens - all.first_recent;
    for (int32_t i = 0; i < all.first_recent; ++i) {
        if (all.n_heads_of[i] > 0) {
            kept.push_back(i);
            n_heads.push_back(all.n_heads_of[i]);
        }
        n_kept += all.n_heads_of[i] + all.n_heads_with_all > 0;
    }
    json recalled = json::array();
    for (size_t i = 0; i < seen.recalled_pos.size(); ++i) {
        const int64_t token = all.token_at(seen.recalled_pos[i]);
        if (token >= 0) {
            json page = json::array();
            page.push_back(token);
            page.push_back(seen.recalled_by[i]);
            recalled.push_back(std::move(page));
        }
    }
    json res = {
        { "is_processing", seen.is_processing },
        { "age_ms", (ggml_time_us() - seen.t_us) / 1000 },
        { "n_tokens", all.n_tokens },
        { "n_kept", n_kept },
        { "n_heads", all.n_heads },
        { "n_heads_with_all", all.n_heads_with_all },
        { "first_recent", all.first_recent },
        { "kept", { { "tokens", differences(kept) }, { "heads", n_heads } } },
        { "recalled", recalled },
        { "text", name_of(seen.tokens, from + n) },
        { "from", from },
        { "pieces", morphkv_pieces(vocab, seen.tokens, from, n) },
        { "cache", cache_json(seen.stats) },
    };
    if (with_layers) {
        json & layers = res["layers"] = json::array();
        for (const auto & layer : seen.layers) {
            json one = {
                { "layer", layer.il },
                { "n_heads", layer.n_head_kv },
                { "has_all", layer.has_all },
            };
            if (!layer.has_all) {
                json & heads = one["heads"] = json::array();
                for (const auto & head : all.heads(layer)) {
                    heads.push_back(differences(head));
                }
            }
            layers.push_back(std::move(one));
        }
    }
    return res;
}

//
// threads of HTTP
//

static int32_t whole_number(const server_http_req & req, const std::string & name, const std::string & by_default,
                            int32_t n_max) {
    const std::string given = req.get_param(name, by_default);
    const bool        is_number =
        !given.empty() && given.size() < 10 && given.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::stoi(given) > n_max) {
        throw std::invalid_argument(name + " must be in 0.." + std::to_string(n_max) + ", got '" + given + "'");
    }
    return std::stoi(given);
}

morphkv_retained_view::seen_ptr morphkv_retained_view::wait(int32_t id_slot, uint64_t n,
                                                            const std::function<bool()> & should_stop) {
    const auto                   t_start = steady_clock::now();
    std::unique_lock<std::mutex> lock(mutex);
    const slot &                 s = slots.at(id_slot);
    while (s.n_shown < n && steady_clock::now() - t_start < (s.last ? PATIENCE : LONGEST) && !should_stop()) {
        shown.wait_for(lock, STEP);
    }
    return s.last;
}

server_http_context::handler_t morphkv_retained_view::get_retained(server_context & server) {
    return [this, &server](const server_http_req & req) {
        auto res  = std::make_unique<server_http_res>();
        auto fail = [&res](const std::string & what, error_type type) {
            const json error = format_error_response(what, type);
            res->status      = error.at("code").get<int>();
            res->data        = safe_json_to_str({ { "error", error } });
        };
        if (slots.empty()) {
            fail("This server does not support retained tokens. Start it with `--morphkv`", ERROR_TYPE_NOT_SUPPORTED);
            return res;
        }
        int32_t id_slot, from, n_pieces, with_layers;
        try {
            id_slot     = whole_number(req, "id_slot", "", slots.size() - 1);
            from        = whole_number(req, "from", "0", std::numeric_limits<int32_t>::max());
            n_pieces    = whole_number(req, "n", "999999999", std::numeric_limits<int32_t>::max());
            with_layers = whole_number(req, "layers", "0", 1);
        } catch (const std::invalid_argument & e) {
            fail(e.what(), ERROR_TYPE_INVALID_REQUEST);
            return res;
        }
        uint64_t n;
        {
            std::lock_guard<std::mutex> lock(mutex);
            n = ++slots[id_slot].n_asked;
        }
        // A task wakes the server's thread where all slots are idle, and while it decodes it looks between decodes. This kind of
        // task is processed at any time, and keeps no server from going to sleep.
        auto        reader = server.get_response_reader();
        server_task task(SERVER_TASK_TYPE_METRICS);
        task.id = reader.get_new_id();
        reader.post_task(std::move(task), /*front=*/true);
        reader.next([] { return true; });  // it comes at once, or not within a second: the server sleeps
        const seen_ptr now = wait(id_slot, n, req.should_stop);
        if (!now) {
            fail("The slot has not been looked at yet: the server is busy, or sleeps", ERROR_TYPE_UNAVAILABLE);
            return res;
        }
        // pieces that the client has are left out, where they are of the same text
        const std::string name     = req.get_param("text");
        const size_t      n_tokens = now->tokens.size();
        const bool        is_same  = (size_t) from <= n_tokens && (name.empty() || name_of(now->tokens, from) == name);
        const size_t      first    = is_same ? from : 0;
        json content = to_json(*now, vocab, first, std::min<size_t>(n_pieces, n_tokens - first), with_layers != 0);
        content["id_slot"] = id_slot;
        res->data          = safe_json_to_str(content);
        return res;
    };
}
