// The memory object: a llama_kv_cache whose cells are constant, and its batch context.
//
//   cells: [0 ........ n_distant) [n_distant ....................... n_limit)
//           distant slots          recent region: the newest tokens in position order
//
// A sequence has a stream of cells of its own (sequence id = stream) and fills it from cell 0 on, as stock does, until
// the first cut. A cut is one eviction down to capacity: the graduates (recent cells older than the window) compete
// with the distant slots, the window moves down to the start of the recent region, and new tokens go on behind it. So
// at any time the used cells are [0, n_used), and cell order is position order in the recent region. Distant cells keep
// the positions that they had before the first cut: nominal ones, smaller than any recent position.
//
// Of a model with sliding-window layers these are the layers that attend to all; the windowed ones have a cache of their
// own, of the same tokens, in here.
#pragma once

#include "core/archives.h"
#include "device/graph-evict.h"
#include "core/moves.h"
#include "core/params.h"
#include "device/engine.h"
#include "device/layers.h"
#include "device/stack.h"
#include "llama/window.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <functional>
#include <optional>

class morphkv_cache_context;
class morphkv_hashed_reader;
class morphkv_hashed_writer;

class morphkv_cache : public llama_kv_cache {
public:
    morphkv_cache(const llama_model & model, const llama_hparams & hparams, const morphkv_params & params,
                  ggml_type type_k, ggml_type type_v, bool offload, uint32_t n_seq_max, const layer_filter_cb & filter,
                  const layer_reuse_cb & reuse, uint32_t n_window_cells);

    // Most cells that a sequence uses, and the same rounded up to what is allocated. Attention works on multiples of
    // 256 cells; a cache of any other size would not be bit-exact with stock near its end.
    static uint32_t n_limit(const morphkv_params & params);
    static uint32_t n_cells(const morphkv_params & params);

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    // A tail that ends inside the recent region, or the whole sequence; anything else is refused without a change.
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    // Whole sequences only, at once: a copy can be saved, or removed and filled again, before the next decode.
    void seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    // Removes every other sequence.
    void seq_keep(llama_seq_id seq_id) override;
    // Positions are not the host's to change: refused with a log line.
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    // After an eviction: the oldest position that every head still holds with all after it. Windowed layers too: tokens
    // behind it can be taken back.
    llama_pos seq_pos_min(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

    //
    // morphkv
    //

    void get_stats(llama_seq_id seq_id, morphkv_stats & out) const;

    // Throws morphkv_error where it is too many or too late.
    void set_keep(llama_seq_id seq_id, int32_t n_keep);

    // (n_head_kv, n_distant) logical positions, -1 where empty. Throws morphkv_error for a layer without KV.
    std::vector<int32_t> get_retained(llama_seq_id seq_id, int32_t il) const;
    void                 get_retained_shape(int32_t il, int32_t & n_head_kv, int32_t & n_distant) const;

    const morphkv_side &   get_side() const { return side; }
    const morphkv_params & get_params() const { return params; }

    // memory_breakdown() of K and V alone, the windowed layers' too
    std::map<ggml_backend_buffer_type_t, size_t> kv_breakdown() const;

    // Writes the newest queries of the ubatch into the ring, in the decode graph, and learns from q and k how the layer
    // attends. q: (n_tokens, n_head, n_embd_head), k: (n_tokens, n_head_kv, n_embd_head).
    void build_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf, const llama_ubatch & ubatch,
                           ggml_tensor * q, const ggml_tensor * k, ggml_tensor * sinks, float kq_scale, int32_t il);

    // The positions that RoPE sees: fills pos, an input of the decode graph.
    void      build_rotary_positions(llm_graph_result * res, ggml_tensor * pos);
    llama_pos rotary_offset(llama_seq_id seq_id) const { return streams[seq_id].rotary_offset; }

    // In force: rotary positions stay below it; 0 = they are never rebased.
    int32_t rope_limit() const;

    // Positions are learned, and end here; 0 = they do not.
    int32_t get_pos_end() const { return pos_end; }

    // A layer that rotates its keys in a way that a rebase cannot undo, or null.
    const morphkv_side_layer * find_unknown_rope() const;

    // Rows of the ring for the last tokens of each sequence of the ubatch, in the order of build_store_query.
    std::vector<int64_t> ring_rows(const llama_ubatch & ubatch) const;

    // Why evictions, or rebases, cannot be computed on the devices that hold the cache of this context, or "". The
    // context has built a graph.
    std::string why_not_computed(llama_context * lctx);

    //
    // archive and recall (morphkv-archiving.cpp, morphkv-recall.cpp)
    //

    // From now on each sequence keeps what leaves its window. Throws morphkv_error where keys cannot be turned back, and where
    // devices cannot compute it.
    void start_archive(llama_context * lctx, const morphkv_archive_params & params);

    // "" while it grows. Does not wait.
    std::string why_archive_stopped(llama_seq_id seq_id) const {
        return !archives ? "" : archives->why_stopped(seq_id);
    }

    // Puts archived tokens that the newest queries attend to into distant slots of each head. On failure the sequence is
    // as it was. Throws morphkv_error.
    morphkv_recalled recall(llama_seq_id seq_id, const morphkv_recall_params & params);

    // Raised when an eviction used the scheduler: a decode graph from before has lost its memory.
    uint64_t n_sched_uses = 0;

    //
    // for morphkv_hybrid, which has recurrent layers beside this
    //

    // a batch split into micro-batches, where each goes, and which sequences are cut before each
    struct batch_plan {
        std::vector<llama_ubatch>              ubatches;
        slot_info_vec_t                        sinfos;
        std::vector<std::vector<llama_seq_id>> cuts;
        std::vector<bool>                      is_prompt;  // by sequence
    };

    // Whether tokens are of one sequence each, and positions as they must be. What is not is logged and left in
    // morphkv_last_error(); a smaller batch would not help.
    bool accepts(const llama_batch & batch) const;

    // Of a batch that is accepted; nullopt if it cannot be split like this. careful: smaller micro-batches that fit in any case.
    // split: the next micro-batch, of at most so many tokens.
    using split_fn = std::function<llama_ubatch(uint32_t n_max)>;
    std::optional<batch_plan> plan_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool careful,
                                         const split_fn & split) const;
    llama_memory_context_ptr  make_context(batch_plan plan);

    // The two steps of state_read(), for states that have more than one part. The first throws and changes nothing.
    // morphkv-state.h has what is between them.
    struct loaded_state;
    std::unique_ptr<loaded_state> read_state(llama_io_read_i & io, llama_seq_id seq_id,
                                             llama_state_seq_flags flags) const;
    void                          apply_state(std::unique_ptr<loaded_state> state) noexcept;

    enum class removal { NOTHING, ALL, TAIL, REFUSED };
    removal plan_removal(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    // seq_cp(); false where it is refused.
    bool copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);

    // Called when a sequence has been emptied.
    std::function<void(llama_seq_id)> on_clear;

    // Of the sliding-window layers; null where the model has none.
    const std::unique_ptr<morphkv_window> window;

    // Tests alone set it: whether a step of an eviction or a rebase shall fail now.
    std::function<bool(morphkv_runner::step)> inject_failure;

private:
    friend class morphkv_cache_context;
    friend struct morphkv_recall_test;

    // So many tokens can be taken back and others decoded in their place without a voter missing: the ring has as many
    // rows beyond the voters'. A batch is a draft to verify, and not a prompt, up to this length.
    static constexpr int32_t N_SPARE = MORPHKV_DRAFT_MAX;

    // what one sequence has beside its cells and its tensors
    struct stream_state {
        stream_state(int32_t n_keep, int32_t n_ring) : n_keep(n_keep), ring_pos(n_ring, -1) {}

        int32_t n_keep;  // first tokens that are never evicted

        int64_t n_evictions = 0;
        int64_t n_evicted   = 0;
        int64_t n_recalls   = 0;
        int64_t n_recalled  = 0;  // tokens that came into slots, of all layers and heads
        double  recall_ms   = 0.0;

        llama_pos pos_exact  = 0;         // the first token decoded since the last eviction or rebase
        llama_pos pos_prompt = -1;        // the newest token that came in a prompt

        std::vector<llama_pos> ring_pos;  // (n_ring) position whose query a row of the ring holds, -1 = none

        // Rotary positions: a token's is its position minus rotary_offset where that is rotary_base + n_distant or more,
        // and always before the first rebase or recall. Below it stand, from rotary_base on one behind the other in their
        // order, head by head, the oldest of those that were in a distant slot at the last rebase or recall: `rebased` has
        // the positions of all that were, ascending in each head, (n_layer, n_head_kv, n_distant). Empty before the first.
        // A rebase lets the offset grow, and its base is 0. A recall leaves the offset alone, so that recent keys, of which
        // there is no original, are not turned; distant tokens come to stand right before them.
        int64_t                n_rebases     = 0;
        llama_pos              rotary_offset = 0;
        llama_pos              rotary_base   = 0;
        std::vector<llama_pos> rebased;

        std::vector<morphkv_originals>
            originals;  // by layer, empty where the archive is no file or nothing was read of it
    };

    // Whether a sequence that holds n_used is cut before more tokens come. n_step: how many a batch brings that starts
    // here and is no prompt but one token or a draft; else 0.
    bool needs_cut(llama_seq_id seq_id, uint32_t n_used, uint32_t n_step) const;

    // One eviction down to capacity. On failure the sequence is as it was, or cleared if rows had moved already.
    bool cut(llama_seq_id seq_id);

    // What the host knows of it, in ring rows of all streams and logical positions.
    struct evict_data {
        std::vector<int32_t> grad_pos;   // (n_grad)
        std::vector<int32_t> vote_rows;  // (n_votes)
    };
    // As many layers at once as do not ask for much memory.
    std::vector<morphkv_stack> stacks(const morphkv_evict_shape & shape) const;
    morphkv_evict_policy       vote_policy() const;
    size_t                     n_max_vote_tensors(int32_t n_votes) const;  // that an eviction makes for a layer
    // Why it failed, or "".
    std::string compute_eviction(llama_seq_id seq_id, const morphkv_evict_shape & shape, const evict_data & data,
                                 morphkv_runner & runner) const;
    void        move_window_cells(llama_seq_id seq_id);
    void        clear_stream(llama_seq_id seq_id, bool clear_archive = true);
    bool        fail(const char * what, llama_seq_id seq_id, const std::string & why, bool has_changed);

    // Rebases a sequence if the rotary position of a token at pos would pass the limit. Failure as in cut().
    bool      make_rotary_room(llama_seq_id seq_id, llama_pos pos);
    bool      rebase(llama_seq_id seq_id);
    // A rebase leaves distant tokens where they are before the first recent one, up to so many positions back.
    llama_pos n_near() const;

    // Moves (morphkv-move.cpp), of a rebase or a recall: what takes the place of the stream's own, and what each layer does.
    struct move_plan {
        llama_pos                 offset, base;
        std::vector<llama_pos>    rebased;
        std::vector<morphkv_move> layers;
    };
    // i_head: counted over all layers
    int64_t     rotary_position(llama_seq_id seq_id, llama_pos pos, size_t i_head) const;
    // Tokens come to stand at position - offset; of the distant ones those that would stand before base + n_distant at base
    // + rank in their head. Slots that get other tokens get them from pages.
    move_plan   plan_moves(llama_seq_id seq_id, llama_pos offset, llama_pos base,
                           const std::vector<morphkv_slots> & slots, const morphkv_pages & pages);
    // query_delta: what the ring's queries and the windowed layers' keys are turned by. Why it failed, or "".
    std::string compute_moves(llama_seq_id seq_id, const std::vector<morphkv_move> & moves, llama_pos query_delta,
                              morphkv_runner & runner) const;
    void        note_moves(llama_seq_id seq_id, move_plan plan);

    // Appends the first n_old cells to the sequence's archive, as far as they are not there.
    void        archive_cells(llama_seq_id seq_id, uint32_t n_old);
    // Cells from i_first on as tokens on their way, keys turned by `turn` (n). Why it failed, or "".
    std::string read_cells(llama_seq_id seq_id, uint32_t i_first, const std::vector<int32_t> & turn, char * out,
                           morphkv_runner & runner) const;

    // of a recall, by layer
    using layer_floats = std::vector<std::vector<float>>;
    // Of the voters: queries (n_votes, n_head*n_embd_k) at rotary position `distance`; and their votes on the distant slots,
    // (n_head_kv, n_distant). Why it failed, or "".
    std::string        read_votes(llama_seq_id seq_id, const std::vector<int32_t> & rows, int32_t distance,
                                  layer_floats & queries, layer_floats & votes, morphkv_runner & runner) const;
    // What pages get of the queries, summed over layers and heads, added to scores (n_pages). layers come with k set to rows
    // in the host's memory, n_page to a page; of the first, n_skip do not count. Why it failed, or "".
    std::string        score_pages(const std::vector<morphkv_side_layer> & layers, const layer_floats & queries,
                                   int32_t n_page, int32_t n_skip, std::vector<float> & scores) const;
    std::vector<float> score_by_index(const morphkv_archive & archive, const layer_floats & queries) const;  // by place
    // empty where a page is damaged
    std::vector<float> score_by_rows(const morphkv_archive & archive, const std::vector<int64_t> & pages,
                                     int32_t n_keep, const layer_floats & queries) const;
    // Up to n_wanted pages, best first: of the n_look best by the index, those with the best rows, and their neighbours.
    std::vector<int64_t> choose_pages(const morphkv_archive & archive, size_t n_wanted, size_t n_look, int32_t n_keep,
                                      const layer_floats & queries) const;
    // The tokens of pages that are not there yet take slots from those with the fewest votes.
    morphkv_slots        plan_slots(llama_seq_id seq_id, size_t i_layer, const morphkv_pages & pages,
                                    const std::vector<float> & votes) const;

    // For checks of a context, and of an archive: as run() with the shapes that can occur.
    std::string why_not_evicted() const;
    std::string why_not_rebased() const;
    std::string why_not_archived() const;
    std::string why_not_recalled() const;
    std::string why_not_moved(uint32_t n_turned, uint32_t n_placed, bool is_recall) const;  // cells of each layer
    // For which memory is reserved, largest first, 1 last: a graph of fewer rows may need more, where they fit no gap.
    static std::vector<uint32_t> sizes_up_to(uint32_t n);

    // The metadata of one sequence's cells, and how to lay it down: cells [i_first, i_first + n) must be free.
    struct cell_list {
        std::vector<llama_pos>   pos;
        std::vector<llama_token> token;
    };
    cell_list get_cell_list(llama_seq_id seq_id, uint32_t i_first) const;
    void      set_cell_list(llama_seq_id seq_id, uint32_t i_first, const cell_list & list);

    uint32_t n_used(llama_seq_id seq_id) const;

    const morphkv_side_layer & side_layer(int32_t il) const;

    // those that are cut
    std::vector<const morphkv_side_layer *> layers() const;
    // these and the windowed ones, which hold recent tokens alone: all their keys turn by as much as the offset grows
    std::vector<const morphkv_side_layer *> turned_layers() const;

    bool has_evicted(llama_seq_id seq_id) const { return streams[seq_id].n_evictions > 0; }

    // rows of the ring that hold the newest queries, newest last; at most params.votes
    std::vector<int32_t> vote_rows(llama_seq_id seq_id) const;
    void                 note_tokens(const llama_ubatch & ubatch, const std::vector<bool> & is_prompt);

    std::pair<llama_seq_id, llama_seq_id> saved_range(llama_seq_id seq_id) const;
    uint32_t n_rot() const;  // size of the matrix that quantized K is rotated with, 0 = none
    void     write_state(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const;
    void     write_stream(morphkv_hashed_writer & out, llama_seq_id seq_id) const;
    struct loaded_sequence;
    loaded_sequence read_stream(morphkv_hashed_reader & in, uint32_t version) const;

    // f(tensor, offset, size) for all that a sequence has in tensors, always in the same order.
    template <typename F>
    void for_each_slice(llama_seq_id seq_id, uint32_t n_used, const morphkv_window::cell_run & run, F && f) const {
        side.for_each_slice(seq_id, n_used, f);
        if (window) {
            window->for_each_slice(seq_id, run, f);
        }
    }

    stream_state empty_stream() const { return stream_state(params.keep, side.n_ring); }

    const morphkv_params params;

    const uint32_t n_ctx_train;
    const uint32_t n_pos;    // of a token; more than 1 with M-RoPE
    const int32_t  pos_end;  // of learned positions, else 0
    const uint32_t n_distant;

    morphkv_side              side;
    std::vector<stream_state> streams;

    std::unique_ptr<morphkv_archives> archives;                 // null when off
    bool                              keeps_originals = false;  // they are in a file

    llama_context * lctx = nullptr;  // the context that owns this memory, known from its first update on

    int32_t n_old_measured = 0;      // largest eviction whose scratch was measured
    size_t  scratch_bytes  = 0;
    double  evict_ms       = 0.0;

    std::vector<double> seq_evict_ms;  // (n_stream)

    double archive_ms = 0.0;           // a part of evict_ms
};

// A batch context that has a MorphKV cache in it.
class morphkv_context {
public:
    virtual ~morphkv_context() = default;

    virtual morphkv_cache * get_cache() const = 0;
};

class morphkv_cache_context : public llama_kv_cache_context, public morphkv_context {
public:
    // the full cache, for worst-case graphs
    explicit morphkv_cache_context(morphkv_cache * mkv);
    morphkv_cache_context(morphkv_cache * mkv, morphkv_cache::batch_plan plan);

    bool next() override;
    bool apply() override;

    morphkv_cache * get_cache() const override { return mkv; }

private:
    morphkv_cache * mkv;

    std::vector<std::vector<llama_seq_id>> cuts;       // by micro-batch
    std::vector<bool>                      is_prompt;  // by sequence
    size_t                                 i_next = 0;
};

// The same for a model with sliding-window layers: what its graph takes the two caches from.
class morphkv_iswa_context : public llama_kv_cache_iswa_context, public morphkv_context {
public:
    morphkv_iswa_context(std::vector<llama_ubatch> ubatches, std::unique_ptr<morphkv_cache_context> base,
                         std::unique_ptr<morphkv_window_context> window);

    // The windowed layers get no tokens that the others could not take.
    bool apply() override;

    morphkv_cache * get_cache() const override { return base->get_cache(); }

private:
    morphkv_iswa_context(std::vector<llama_ubatch> ubatches, morphkv_cache_context * base,
                         morphkv_window_context * window);

    // owned by the class that this is derived from
    morphkv_cache_context *  base;
    morphkv_window_context * window;
};
