// What MorphKV keeps beside K and V, per layer, on the layer's own device: the ring of the last queries, which tokens are in
// the distant slots, and, where votes are carried, the sums of theirs.
#pragma once

#include "device/graph-turn.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <vector>

// Whole rows of a tensor that has a stream as its slowest axis.
struct morphkv_slice {
    ggml_tensor * tensor;
    size_t        offset;
    size_t        size;
};

// The same rows of another stream get what these hold.
void morphkv_copy_slices(const std::vector<morphkv_slice> & slices, uint32_t i_src, uint32_t i_dst);

struct morphkv_side_layer {
    int32_t il;                    // layer of the model
    int32_t n_head;                // query heads that attend to K, of all readers

    std::vector<int32_t> readers;  // layers that attend to K: this one, then those that have none of their own

    int32_t n_head_kv;
    float   softcap;              // 0 = none
    float   softcap_scale;        // a factor more before the soft-cap; 0 = none
    float   kq_scale;             // learned, as rope and sinks, when the layer's attention is built first

    morphkv_rope  rope;           // of keys
    ggml_tensor * query_weights;  // rope.weights of queries, which are rotated as keys are
    ggml_tensor * sinks;  // (n_head) F32, the model's: logits that take part in each softmax; null where there are none

    ggml_tensor * k;      // (n_stream, n_cells, n_head_kv*n_embd_head_k), the cache's own
    ggml_tensor * v;      // (n_stream, n_cells, n_head_kv*n_embd_head_v); null where V is a part of K (MLA)

    // (n_stream, n_ring, n_readers, n_head/n_readers*n_embd_head_k) F16, row = serial % n_ring
    ggml_tensor * ring;
    ggml_tensor * serial;  // (n_stream, n_head_kv, n_distant) int32 bits in F32
    ggml_tensor *
        score;  // (n_stream, n_head_kv, n_distant) F32: sums of the votes of a slot's token; null where none are carried

    int32_t      n_readers() const { return readers.size(); }
    bool         is_on_cpu() const;
    morphkv_rope query_rope() const;
};

class morphkv_side {
public:
    // Allocates on the buffer types of K; layers come with k and v set. dry: count only, allocate nothing.
    void init(std::vector<morphkv_side_layer> layers, int32_t n_ring, int32_t n_distant, uint32_t n_stream,
              bool with_scores, bool dry);

    // A stream's slice of one of the tensors above, in ctx.
    static ggml_tensor * stream(ggml_context * ctx, ggml_tensor * t, uint32_t i_stream);

    // Tokens 0, 1, 2, ... become those of the slots, in every head.
    void set_first_serials(uint32_t i_stream);
    // (n_head_kv, n_distant)
    void set_serials(const morphkv_side_layer & layer, uint32_t i_stream, const std::vector<int32_t> & serials);
    std::vector<int32_t> get_serials(const morphkv_side_layer & layer, uint32_t i_stream) const;

    // Where sums are carried: tokens that have come into slots begin with these votes, and those that were there go on with
    // what they have. All (n_head_kv, n_distant).
    void set_sums_of_new(const morphkv_side_layer & layer, uint32_t i_stream, const std::vector<int32_t> & before,
                         const std::vector<int32_t> & after, const std::vector<float> & votes);
    // All begin with 0.
    void clear_sums(uint32_t i_stream);
    bool carries_sums() const { return !layers.empty() && layers[0].score; }

    void clear();

    // A stream's part of every tensor, always in the same order; of K and V n_used cells.
    std::vector<morphkv_slice> slices(uint32_t i_stream, uint32_t n_used) const;

    size_t n_bytes() const;
    void   add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

    std::vector<morphkv_side_layer> layers;

    int32_t n_ring    = 0;
    int32_t n_distant = 0;

private:
    struct buffer {
        ggml_context_ptr           ctx;
        ggml_backend_buffer_ptr    buf;
        ggml_backend_buffer_type_t buft;
        size_t                     n_bytes;
    };
    std::vector<buffer> buffers;
};

std::vector<const morphkv_side_layer *> morphkv_refs(const std::vector<morphkv_side_layer> & layers);
