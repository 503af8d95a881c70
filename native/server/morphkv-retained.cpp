#include "morphkv-retained.h"

#include "llama.h"
#include "morphkv-pieces.h"
#include "mtmd.h"
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
    while ((int32_t) slots.size() < n_slots) {
        slots.emplace_back();
    }
}

void morphkv_retained_view::show(int32_t id_slot, const server_tokens & tokens, bool is_processing) {
    uint64_t n_asked;
    seen_ptr before;
    {
        std::lock_guard<std::mutex> lock(mutex);
        const slot &                s = slots.at(id_slot);
        if (s.n_asked == s.n_shown) {
            return;
        }
        n_asked = s.n_asked;
        before  = s.last;
    }
    seen_ptr now = look(id_slot, tokens, is_processing, before.get());

    std::lock_guard<std::mutex> lock(mutex);
    slots.at(id_slot).n_shown = n_asked;
    slots.at(id_slot).last    = std::move(now);
    shown.notify_all();
}

// Of the first n tokens. A position for each token, or fewer.
static std::vector<morphkv_medium> find_media(const server_tokens & tokens, int32_t n) {
    std::vector<morphkv_medium> res;
    int32_t                     pos = 0;
    for (int32_t i = 0; tokens.has_mtmd && i < n;) {
        if (tokens[i] != LLAMA_TOKEN_NULL) {
            i++;
            pos++;
            continue;
        }
        const mtmd_input_chunk * chunk    = tokens.find_chunk(i).get();
        const int32_t            n_tokens = mtmd_input_chunk_get_n_tokens(chunk);
        const int32_t            n_pos    = mtmd_input_chunk_get_n_pos(chunk);
        const bool               is_sound = mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_AUDIO;
        res.push_back({ i, std::min(n_tokens, n - i), pos, n_pos, is_sound });
        i += n_tokens;
        pos += n_pos;
    }
    return res;
}

morphkv_retained_view::seen_ptr morphkv_retained_view::look(int32_t id_slot, const server_tokens & tokens,
                                                            bool is_processing, const seen * before) const {
    auto res           = std::make_shared<seen>();
    res->t_us          = ggml_time_us();
    res->is_processing = is_processing;
    res->n_looks       = before ? before->n_looks + 1 : 1;
    res->stats.size    = sizeof(res->stats);
    morphkv_stats_get(ctx, id_slot, &res->stats);

    // a slot may have tokens that are about to be decoded
    const morphkv_stats & s        = res->stats;
    const int64_t         n_tokens = std::min<int64_t>(tokens.size(), s.n_used + s.n_evicted);
    res->tokens.reserve(n_tokens);
    for (int64_t i = 0; i < n_tokens; ++i) {
        res->tokens.push_back(tokens[i]);
    }

    auto held          = std::make_shared<morphkv_held>();
    held->media        = find_media(tokens, n_tokens);
    held->first_recent = s.n_evictions > 0 ? std::max<int64_t>(0, n_tokens - (s.n_used - s.n_distant)) : 0;

    const int32_t n_layer = llama_model_n_layer(llama_get_model(ctx));
    for (int32_t il = 0; il < n_layer; ++il) {
        int32_t n_head_kv, n_distant;
        if (morphkv_retained_shape(ctx, il, &n_head_kv, &n_distant) != MORPHKV_STATUS_OK) {
            continue;  // no KV, or a sliding window
        }
        morphkv_held_layer one{ il, n_head_kv, std::vector<int32_t>((size_t) n_head_kv * n_distant) };
        morphkv_retained_get(ctx, id_slot, il, one.pos.data(), one.pos.size());
        held->layers.push_back(std::move(one));
    }
    int32_t n_pages = 0;
    morphkv_recalled_get(ctx, id_slot, nullptr, nullptr, 0, &n_pages);
    held->recalled_pos.resize(n_pages);
    held->recalled_by.resize(n_pages);
    morphkv_recalled_get(ctx, id_slot, held->recalled_pos.data(), held->recalled_by.data(), n_pages, &n_pages);

    res->held = before && before->held->is_same(*held) ? before->held : std::move(held);
    return res;
}

//
// the answer
//

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

// `more` gains what is not in `seen`.
static std::string to_json(const morphkv_retained_view::seen & seen, const morphkv_held::sums & sums,
                           const std::string * layers, json more) {
    const int64_t n_tokens   = seen.tokens.size();
    more["is_processing"]    = seen.is_processing;
    more["age_ms"]           = (ggml_time_us() - seen.t_us) / 1000;
    more["n_looks"]          = seen.n_looks;
    more["n_tokens"]         = n_tokens;
    // nothing has left a head that has all
    more["n_kept"]           = n_tokens - seen.held->first_recent + sums.n_kept;
    more["n_heads"]          = sums.n_heads;
    more["n_heads_with_all"] = sums.n_heads_with_all;
    more["first_recent"]     = seen.held->first_recent;
    more["cache"]            = cache_json(seen.stats);

    std::string res = safe_json_to_str(more);
    res.pop_back();
    res += ",\"kept\":" + sums.kept + ",\"recalled\":" + sums.recalled + ",\"media\":" + sums.media;
    if (layers) {
        res += ",\"layers\":" + *layers;
    }
    return res + "}";
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
        const size_t      n_new    = std::min<size_t>(n_pieces, n_tokens - first);

        bool         is_first = false;
        const auto & sums     = now->held->get_sums(is_first);
        const auto * layers   = with_layers ? &now->held->get_layers(is_first) : nullptr;
        const auto   n_before = slots[id_slot].n_reckoned.fetch_add(is_first);

        res->data = to_json(*now, sums, layers,
                            {
                                { "id_slot", id_slot },
                                { "n_reckoned", n_before + is_first },
                                { "text", name_of(now->tokens, first + n_new) },
                                { "from", first },
                                { "pieces", morphkv_pieces(vocab, now->tokens, first, n_new) },
                            });
        return res;
    };
}
