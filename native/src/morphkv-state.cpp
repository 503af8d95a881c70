// State of a MorphKV cache: a header that must fit, then what llama.cpp writes for the cells, then per sequence the
// counters, the query ring, the slots' positions and, with decay, their scores. Its size depends on nothing but the
// number of used cells, so it is constant once a sequence has been cut.

#include "morphkv-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <cstring>

namespace {

constexpr uint32_t STATE_MAGIC   = 0x564b4d4d;  // "MMKV"
constexpr uint32_t STATE_VERSION = 1;

// what two caches must share for the state of one to be right in the other
struct state_header {
    uint32_t magic   = STATE_MAGIC;
    uint32_t version = STATE_VERSION;
    int32_t  capacity;
    int32_t  window;
    int32_t  interval;
    int32_t  keep;
    int32_t  prompt_room;
    int32_t  votes;
    int32_t  fusion;
    int32_t  policy;
    float    decay;
    uint32_t seed;
    uint32_t n_layer;
    uint32_t n_embd_q;  // summed over layers
    uint32_t n_slots;   // summed over layers and KV heads
};

state_header make_header(const morphkv_params & p, const morphkv_side & side) {
    state_header res{};
    res.capacity    = p.capacity;
    res.window      = p.window;
    res.interval    = p.interval;
    res.keep        = p.keep;
    res.prompt_room = p.prompt_room;
    res.votes       = p.votes;
    res.fusion      = p.fusion;
    res.policy      = p.policy;
    res.decay       = p.decay;
    res.seed        = p.seed;
    res.n_layer     = side.layers.size();
    for (const auto & layer : side.layers) {
        res.n_embd_q += layer.ring->ne[0];
        res.n_slots += layer.n_head_kv * side.n_distant;
    }
    return res;
}

}  // namespace

void morphkv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const state_header header = make_header(params, side);
    io.write(&header, sizeof(header));

    llama_kv_cache::state_write(io, seq_id, flags);

    for (llama_seq_id s = 0; s < (llama_seq_id) streams.size(); ++s) {
        if (seq_id != -1 && s != seq_id) {
            continue;
        }
        const auto & stream = streams[s];
        io.write(&stream.n_evictions, sizeof(stream.n_evictions));
        io.write(&stream.n_evicted, sizeof(stream.n_evicted));
        io.write(stream.ring_pos.data(), stream.ring_pos.size() * sizeof(llama_pos));
        side.for_each_slice(s, [&](ggml_tensor * t, size_t offset, size_t size) { io.write_tensor(t, offset, size); });
    }
}

void morphkv_cache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    const state_header own = make_header(params, side);
    state_header       header;
    io.read(&header, sizeof(header));
    if (header.magic != own.magic || header.version != own.version) {
        throw std::runtime_error("this is no state of a MorphKV cache, or of another version");
    }
    if (memcmp(&header, &own, sizeof(own)) != 0) {
        throw std::runtime_error("the state was saved with other MorphKV parameters or another model");
    }
    if (seq_id >= (llama_seq_id) streams.size()) {
        throw std::runtime_error("seq_id must be below " + std::to_string(streams.size()) + ", got " +
                                 std::to_string(seq_id));
    }

    try {
        llama_kv_cache::state_read(io, seq_id, flags);

        for (llama_seq_id s = 0; s < (llama_seq_id) streams.size(); ++s) {
            if (seq_id != -1 && s != seq_id) {
                continue;
            }
            stream_state stream;
            stream.ring_pos.resize(params.votes);
            io.read(&stream.n_evictions, sizeof(stream.n_evictions));
            io.read(&stream.n_evicted, sizeof(stream.n_evicted));
            io.read(stream.ring_pos.data(), stream.ring_pos.size() * sizeof(llama_pos));
            side.for_each_slice(s,
                                [&](ggml_tensor * t, size_t offset, size_t size) { io.read_tensor(t, offset, size); });

            const uint32_t n = n_used(s);
            if (stream.n_evictions < 0 || n > n_limit(params) || (stream.n_evictions > 0 && n <= n_distant) ||
                n != get_cells(s).get_used()) {
                throw std::runtime_error("the cells of a sequence do not fit its counters");
            }
            streams[s] = stream;
        }
    } catch (...) {
        // the cells may hold anything now
        state_clear(seq_id);
        throw;
    }
}
