// The memory object of a context: a llama_kv_cache whose cells are constant. It answers llama.cpp, and delegates: what a
// sequence is is a text (core/text.h), plans are made of texts, and devices compute (device/).
//
// A sequence has a stream of cells of its own (sequence id = stream) and fills it from cell 0 on, as stock does, until
// the first cut. A cut is one eviction down to capacity: the graduates (recent cells older than the window) compete
// with the distant slots, the window moves down to the start of the recent region, and new tokens go on behind it. So
// at any time the used cells are [0, n_used), and cell order is position order in the recent region. To llama.cpp distant cells
// keep the positions that they had before the first cut: nominal ones, smaller than any recent position.
//
// Of a model with sliding-window layers these are the layers that attend to all; the windowed ones have a cache of their
// own, of the same tokens, in here. So have the layers of each group but the first (llama/group.h).
#pragma once

#include "core/archives.h"
#include "core/moves.h"
#include "core/params.h"
#include "core/plan.h"
#include "core/text.h"
#include "device/evict.h"
#include "device/graph-recall.h"
#include "device/layers.h"
#include "llama/engine.h"
#include "llama/group.h"
#include "llama/reader.h"
#include "llama/window.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <functional>
#include <optional>
#include <set>

class morphkv_cache_context;
struct morphkv_loaded_state;
struct morphkv_group_slots;
struct morphkv_passage;
struct morphkv_saved_text;
struct morphkv_text_rules;

class morphkv_cache : public llama_kv_cache {
public:
    morphkv_cache(const llama_model & model, const llama_hparams & hparams, const morphkv_params & params,
                  const morphkv_layer_plan & plan, ggml_type type_k, ggml_type type_v, bool offload, uint32_t n_seq_max,
                  const layer_filter_cb & filter, const layer_reuse_cb & reuse, uint32_t n_window_cells);

    // Most cells that a sequence uses where layers are alike, and the same rounded up to what is allocated. Attention works
    // on multiples of 256 cells; a cache of any other size would not be bit-exact with stock near its end.
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
    // what hosts ask
    //

    void get_stats(llama_seq_id seq_id, morphkv_stats & out) const;

    // How many of the newest tokens, words alone, can be taken back.
    int32_t n_removable_words(llama_seq_id seq_id) const {
        return sequences[seq_id].text.n_removable_words(can_lose());
    }

    // Throws morphkv_error where it is too many or too late.
    void set_keep(llama_seq_id seq_id, int32_t n_keep);

    // (n_head_kv, n_distant) logical positions, -1 where empty. Throws morphkv_error for a layer without KV.
    std::vector<int32_t>           get_retained(llama_seq_id seq_id, int32_t il) const;
    void                           get_retained_shape(int32_t il, int32_t & n_head_kv, int32_t & n_distant) const;
    // Positions in place of serials.
    std::vector<morphkv_came_back> get_came_back(llama_seq_id seq_id) const;

    // Of the first group.
    const morphkv_side &   get_side() const { return groups.front().side; }
    const morphkv_params & get_params() const { return params; }

    size_t                      n_groups() const { return groups.size(); }
    const morphkv_layer_group & get_group(size_t i_group) const { return groups[i_group]; }
    // -1 where nothing of the layer is cut
    int32_t                     group_of(int32_t il) const { return plan.of(il); }

    // memory_breakdown() of K and V alone, the windowed layers' too
    std::map<ggml_backend_buffer_type_t, size_t> kv_breakdown() const;

    // Once n more tokens of a prompt have been decoded, a tail can be taken back behind so many of the first tokens, or more.
    int32_t n_complete_behind(llama_seq_id seq_id, int32_t n) const;

    // In force: rotary positions stay below it; 0 = they are never rebased.
    int32_t rope_limit() const;

    // Positions are learned, and end here; 0 = they do not.
    int32_t get_pos_end() const { return pos_end; }

    // A layer that rotates its keys in a way that a rebase cannot undo, or null.
    const morphkv_side_layer * find_unknown_rope() const;

    // Why evictions, or rebases, cannot be computed on the devices that hold the cache of this context, or "". The
    // context has built a graph.
    std::string why_not_computed(llama_context * lctx);

    //
    // the decode graph (graph.cpp)
    //

    // Writes the newest queries of the ubatch into the ring, in the decode graph, and learns from q and k how the layer
    // attends. q: (n_tokens, n_head, n_embd_head), k: (n_tokens, n_head_kv, n_embd_head), null
    // where the layer attends to the keys of another.
    void build_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf, const llama_ubatch & ubatch,
                           ggml_tensor * q, const ggml_tensor * k, ggml_tensor * sinks, float kq_scale, int32_t il);

    // The positions that RoPE sees: fills pos, an input of the decode graph.
    void      build_rotary_positions(llm_graph_result * res, ggml_tensor * pos);
    llama_pos rotary_offset(llama_seq_id seq_id) const { return sequences[seq_id].text.rotary_offset; }

    // Rows of the ring for the last tokens of each sequence of the ubatch, in the order of build_store_query.
    std::vector<int64_t> ring_rows(const llama_ubatch & ubatch) const;

    // see morphkv_context_engine
    uint64_t n_sched_uses() const { return engine.n_uses; }

    //
    // archive (archiving.cpp) and recall (recall.cpp)
    //

    // From now on each sequence keeps what leaves its window. Throws morphkv_error where keys cannot be turned back, and where
    // devices cannot compute it.
    void start_archive(llama_context * lctx, const morphkv_archive_params & params);

    // "" while it grows. Does not wait.
    std::string why_archive_stopped(llama_seq_id seq_id) const {
        return !archives ? "" : archives->why_stopped(seq_id);
    }

    // Full pages of an archive, for hosts (pages.cpp). Throw morphkv_error.
    morphkv_page_range       pages_of(llama_seq_id seq_id) const;
    void                     get_pages(llama_seq_id seq_id, int64_t first, int64_t n, char * records) const;
    void                     set_pages(llama_seq_id seq_id, const morphkv_page_range & pages, const char * records);
    // What recalls bring from beside the archives: files that were read before; and writes one, of a text that has these tokens
    // (attached.cpp). All sequences must be empty. Throw morphkv_error.
    void                     attach(llama_context * lctx, const std::string & path, const char * model_path);
    void                     write_knowledge(llama_seq_id seq_id, const std::string & path, const char * model_path,
                                             const llama_token * tokens, int32_t n);
    const morphkv_attached & get_attached() const { return attached; }
    // Of the last recall that brought something: its pages, best first, as morphkv_sources has them. And tokens that came from each
    // file, summed over layers and heads.
    struct brought {
        std::vector<int64_t> pages;
        std::vector<int64_t> n_tokens;  // by file, over all recalls
    };
    const brought &                 get_brought(llama_seq_id seq_id) const { return sequences.at(seq_id).from; }
    morphkv_sources                 sources_of(llama_seq_id seq_id) const;
    // Of a text that has not been cut, whose tokens then are all in the archive. Throws std::runtime_error.
    morphkv_archive::rows           read_rows(llama_seq_id seq_id, int32_t first, int32_t n);
    // Of all groups, as the archive has them.
    std::vector<morphkv_side_layer> cut_layers() const;

    // Puts archived tokens that the newest queries attend to into distant slots of each head. On failure the sequence is
    // as it was. Throws morphkv_error.
    morphkv_recalled recall(llama_seq_id seq_id, const morphkv_recall_params & params);

    // Between two tokens that are written, where it is due: pages that follow those in use, or a search (follow.cpp).
    // n_recalls: 0 or 1. As recall() where it fails.
    morphkv_recalled follow(llama_seq_id seq_id, const morphkv_recall_params & params, int32_t & n_recalls);
    bool             is_follow_due(llama_seq_id seq_id) const;
    void             check_recall(const morphkv_recall_params & params) const;  // throws morphkv_error

    // Goes back to the first n tokens of a text; puts a passage behind it (restore.cpp). tokens: ids of all that it then has.
    // Where rows had moved when it failed the sequence is cleared, else it is as it was. Throw morphkv_error.
    morphkv_restored                 restore(llama_seq_id seq_id, const llama_token * tokens, int32_t n);
    std::unique_ptr<morphkv_passage> take_passage(llama_seq_id seq_id, int32_t first, int32_t n);
    morphkv_restored put_passage(llama_seq_id seq_id, const morphkv_passage & passage, const llama_token * tokens);

    //
    // for morphkv_hybrid, which has recurrent layers beside this
    //

    // a batch split into micro-batches, where each goes, and which sequences are cut before each
    struct batch_plan {
        std::vector<llama_ubatch>              ubatches;
        std::vector<slot_info_vec_t>           sinfos;     // by group
        std::vector<std::vector<llama_seq_id>> cuts;
        std::vector<std::vector<llama_seq_id>> rebases;    // behind the cuts
        std::vector<bool>                      is_prompt;  // by sequence
        std::vector<int32_t>                   n_column;   // by sequence, as in a run
    };

    // Whether tokens are of one sequence each, and positions as they must be. What is not is logged and left in
    // morphkv_last_error(); a smaller batch would not help.
    bool accepts(const llama_batch & batch) const;

    // Of a batch that is accepted; nullopt if it cannot be split like this. is_careful: smaller micro-batches that fit in any
    // case. split: the next micro-batch, of at most so many tokens.
    using split_fn = std::function<llama_ubatch(uint32_t n_max)>;
    std::optional<batch_plan> plan_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool is_careful,
                                         const split_fn & split) const;
    llama_memory_context_ptr  make_context(batch_plan plan);

    // The two steps of state_read(), for states that have more than one part. The first throws and changes nothing.
    // llama/state.h has what is between them.
    std::unique_ptr<morphkv_loaded_state> read_state(llama_io_read_i & io, llama_seq_id seq_id,
                                                     llama_state_seq_flags flags) const;
    void                                  apply_state(std::unique_ptr<morphkv_loaded_state> state) noexcept;

    morphkv_removal plan_removal(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    const morphkv_text & text_of(llama_seq_id seq_id) const { return sequences.at(seq_id).text; }

    // seq_cp(); false where it is refused.
    bool copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);

    // Called when a sequence has been emptied.
    std::function<void(llama_seq_id)> on_clear;

    // Of a draft head: its text is the target's, in the same batches, and it is cut between the same tokens.
    bool follows_target = false;

    // Of the sliding-window layers; null where the model has none.
    const std::unique_ptr<morphkv_window> window;

    // Tests alone set it: whether a step of an eviction or a rebase shall fail now.
    std::function<bool(morphkv_runner::step)> inject_failure;

private:
    friend class morphkv_cache_context;
    friend struct morphkv_inside;  // of tests

    // The group that is cut first: which tokens are recent, and what is archived, it tells for all.
    static constexpr size_t GROUP = 0;

    struct sequence {
        morphkv_text                                text;
        // by group and layer; empty where the archive is no file or nothing was read of it
        std::vector<std::vector<morphkv_originals>> originals;
        double                                      recall_ms = 0.0;
        brought                                     from      = {};
    };

    morphkv_text_shape text_shape() const;
    sequence           empty_sequence() const { return { morphkv_text(text_shape(), params.keep), {}, 0.0, {} }; }
    morphkv_can_lose   can_lose() const;

    uint32_t n_used(llama_seq_id seq_id) const { return sequences[seq_id].text.n_used(GROUP); }
    // A layer and its group.
    std::pair<const morphkv_side_layer *, size_t> find_layer(int32_t il) const;
    int32_t                                       max_limit() const { return groups.back().shape.n_limit; }

    void clear_sequence(llama_seq_id seq_id, bool clears_archive = true);
    // Heads are not given what has no tokens (an image): a text of theirs begins anew behind it.
    void clear_before_gaps(const llama_batch & batch);
    bool fail(const char * what, llama_seq_id seq_id, const std::string & why, bool has_changed);

    // One eviction of each down to capacity, as one graph. On failure a sequence is as it was, or cut, or cleared if rows had
    // moved already.
    bool                 cut(const std::vector<llama_seq_id> & seq_ids);
    morphkv_evict_job    evict_job(llama_seq_id seq_id, size_t i_group) const;
    morphkv_evict_policy vote_policy() const;
    // Tokens before its own cut that a sequence is cut with another.
    int32_t              n_early() const;

    void set_context(llama_context * lctx);
    // Waits for what devices compute: before the host reads or writes what evictions work on.
    void synchronize() const;

    // Failure as in cut().
    bool                             rebase(llama_seq_id seq_id);
    // To rotary positions: see morphkv_plan_moves().
    morphkv_move_plan                plan_moves(llama_seq_id seq_id, size_t i_group, int32_t offset, int32_t base,
                                                const std::vector<morphkv_slots> & slots, const morphkv_pages & pages);
    std::vector<morphkv_moved_layer> moved_layers(size_t i_group) const;
    // Whether the archive's keys are no less exact than those of the cache.
    bool                             is_archive_exact(llama_seq_id seq_id, size_t i_group) const;
    // Why it failed, or "".
    std::string run_moves(llama_seq_id seq_id, size_t i_group, const std::vector<morphkv_move> & moves,
                          int32_t query_delta, morphkv_runner & runner);

    // What the newest tokens ask for, n_votes of them: 0 where nobody votes.
    struct asked {
        int32_t              n_votes = 0;
        std::vector<int32_t> rows, turn;      // (n_votes) of the ring; by how much their queries turn
        morphkv_layer_floats queries, votes;  // as morphkv_read_votes() has them
    };
    asked   ask(llama_seq_id seq_id, const morphkv_recall_params & params, int32_t n_ask);
    int64_t n_archived_pages(llama_seq_id seq_id) const;
    // Tokens in the distant slots of a layer, (n_head_kv, n_distant).
    struct layer_slots {
        int32_t              n_head_kv;
        std::vector<int32_t> serials;
    };
    // Whether the first of these pages are in the slots.
    bool   are_there(const std::vector<int64_t> & pages, const std::vector<layer_slots> & slots,
                     const morphkv_sources & sources) const;
    // Puts pages into distant slots of each head, best first, and says in res what that was. As recall() where it fails.
    void   bring(llama_seq_id seq_id, const morphkv_recall_params & params, const std::vector<int64_t> & pages,
                 const asked & now, int64_t t_start_us, morphkv_recalled & res);
    void   note_brought(llama_seq_id seq_id, const morphkv_pages & pages, const std::vector<morphkv_slots> & slots);
    // Of a text that has not been cut: brings attached pages into its free slots (core/opening.h). False where the recall has to
    // go on as others do. As recall() where it fails.
    bool   open_slots(llama_seq_id seq_id, const morphkv_recall_params & params, int64_t t_start_us,
                      morphkv_recalled & res);
    // Of a recall, by the slots that a head has on the average.
    size_t n_wanted_pages(llama_seq_id seq_id, const morphkv_recall_params & params) const;
    // Unless all are there, those of files, the best first, get keys and values of a text that has them side by side (reader.h).
    // Serials of their tokens, whose slots have others.
    std::set<int32_t> read_again(llama_seq_id seq_id, const morphkv_recall_params & params, morphkv_pages & pages,
                                 morphkv_recalled & res);
    // Whether groups have those of these tokens that they can have of these pages.
    bool   are_in_slots(llama_seq_id seq_id, const morphkv_recall_params & params, const morphkv_pages & pages,
                        const std::set<int32_t> & serials) const;
    // Of a recall's pages, best first, that a group has room for.
    size_t n_best_pages(llama_seq_id seq_id, const morphkv_recall_params & params, size_t i_group) const;

    // Appends the tokens before serial `end` to the sequence's archive, as far as they are not there.
    void                archive_old(llama_seq_id seq_id, int32_t end);
    morphkv_page_layout archive_layout(const morphkv_archive_params & params) const;

    // All cells, those too whose tokens stay.
    void                             archive_all(llama_seq_id seq_id);
    void                             check_restorable() const;
    std::vector<morphkv_group_slots> group_slots(llama_seq_id seq_id);
    // Gives the sequence's cells the tokens of a text that the archive has. How many cells, of the leading group.
    int32_t lay_down(llama_seq_id seq_id, const morphkv_text & wanted, const llama_token * tokens);

    // For checks of a context, and of an archive: as the real ones with the shapes that can occur (checks.cpp).
    std::string why_not_evicted();
    std::string why_not_rebased(size_t i_group);
    std::string why_not_archived();
    std::string why_not_recalled(size_t i_group);
    // n_turned, n_placed: cells of each layer
    std::string why_not_moved(size_t i_group, uint32_t n_turned, uint32_t n_placed, bool is_recall);

    // Whether the tokens of a batch do, as those of an image do in some models (batches.cpp).
    bool        attends_both_ways() const;
    std::string note_arrival(const llama_batch & batch, llama_seq_id seq_id, morphkv_batch_part & part) const;

    // What a state has to fit (state.cpp).
    std::pair<llama_seq_id, llama_seq_id> saved_range(llama_seq_id seq_id) const;
    uint32_t           n_rot() const;  // size of the matrix that quantized K is rotated with, 0 = none
    void               write_state(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const;
    morphkv_saved_text saved_text(llama_seq_id seq_id) const;
    morphkv_text_rules text_rules() const;
    uint32_t           attached_hash() const;
    // All that a sequence has in tensors, always in the same order.
    std::vector<morphkv_slice> slices(llama_seq_id seq_id, const morphkv_text & text) const;

    const morphkv_params     params;
    const morphkv_layer_plan plan;

    const uint32_t n_ctx_train;
    const uint32_t n_pos;                                       // of a token; more than 1 with M-RoPE
    const int32_t  pos_end;                                     // of learned positions, else 0

    std::vector<morphkv_layer_group> groups;                    // by capacity, the smallest first
    std::vector<sequence>            sequences;
    morphkv_context_engine           engine;                    // for what is rare or large
    morphkv_own_engine               cut_engine;                // for what comes with each cut

    std::unique_ptr<morphkv_archives> archives;                 // null when off
    bool                              keeps_originals = false;  // they are in a file
    morphkv_attached                  attached;
    std::unique_ptr<morphkv_reader>   reader;                   // null: what files hold comes as it was read

    double evict_ms   = 0.0;
    double archive_ms = 0.0;           // a part of evict_ms

    std::vector<double> seq_evict_ms;  // (n_stream)
};
