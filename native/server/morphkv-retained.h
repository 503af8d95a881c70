// Which tokens the heads of a slot keep, for those who look: GET /morphkv/retained. The server's thread takes what is seen, between
// decodes and only where somebody has asked; threads of HTTP ask, wait, and write the answer.
#pragma once

#include "morphkv-held.h"
#include "morphkv.h"
#include "server-http.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

struct llama_context;
struct llama_vocab;
struct server_context;
struct server_tokens;

class morphkv_retained_view {
public:
    // Once a context is there.
    void start(llama_context * ctx, int32_t n_slots);

    // For the server's thread, while nothing is decoded: takes what is asked for.
    void show(int32_t id_slot, const server_tokens & tokens, bool is_processing);

    template <typename slots_type> void show_all(const slots_type & slots) {
        for (const auto & slot : slots) {
            show(slot.id, slot.prompt.tokens, slot.is_processing());
        }
    }

    server_http_context::handler_t get_retained(server_context & server);

    // What a slot was, and held.
    struct seen {
        int64_t                             t_us          = 0;
        bool                                is_processing = false;
        morphkv_stats                       stats{};
        std::vector<int32_t>                tokens;       // (n_tokens), LLAMA_TOKEN_NULL in an image
        std::shared_ptr<const morphkv_held> held;         // that of the look before, where it is the same
        uint64_t                            n_looks = 0;  // at the slot, this one included
    };
    using seen_ptr = std::shared_ptr<const seen>;

private:
    struct slot {
        uint64_t n_asked = 0;  // of those who ask: up to here they have been answered by
        uint64_t n_shown = 0;
        seen_ptr last;

        std::atomic<uint64_t> n_reckoned{ 0 };  // answers for which what is held was reckoned
    };

    seen_ptr look(int32_t id_slot, const server_tokens & tokens, bool is_processing, const seen * before) const;
    seen_ptr wait(int32_t id_slot, uint64_t n, const std::function<bool()> & should_stop);

    std::mutex              mutex;
    std::condition_variable shown;
    llama_context *         ctx   = nullptr;
    const llama_vocab *     vocab = nullptr;
    std::deque<slot>        slots;  // (n_slots)
};
