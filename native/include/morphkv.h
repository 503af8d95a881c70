// MorphKV for llama.cpp: a KV cache of constant size. C11.
//
// Per layer and KV head the cache keeps the newest tokens, plus older tokens that recent queries still attend to
// (Ghadia et al., ICML 2025, arXiv 2503.00979). A context is given MorphKV when it is created, and only then.
// Functions return a status; the sentence behind a failure is morphkv_last_error() of the same thread.
#ifndef MORPHKV_H
#define MORPHKV_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(__MINGW32__)
#define MORPHKV_API __declspec(dllexport)
#else
#define MORPHKV_API __attribute__((visibility("default")))
#endif

// raised whenever a struct or a function below changes
#define MORPHKV_ABI_VERSION 13

// A batch of up to so many tokens of a sequence, all with logits, is a draft to verify and no prompt: it can be taken back.
#define MORPHKV_DRAFT_MAX 32

// Most layers that may have a larger capacity than the others.
#define MORPHKV_LARGE_MAX 128

#ifdef __cplusplus
extern "C" {
#endif

struct llama_model;
struct llama_vocab;
struct llama_context;
struct llama_model_params;
struct llama_context_params;

typedef enum morphkv_status {
    MORPHKV_STATUS_OK          = 0,
    MORPHKV_STATUS_INVALID     = 1,  // an argument breaks a rule
    MORPHKV_STATUS_UNSUPPORTED = 2,  // the model or the context cannot be served
    MORPHKV_STATUS_NO_MORPHKV  = 3,  // the context has no MorphKV cache
    MORPHKV_STATUS_FAILED      = 4,  // anything else, e.g. no memory
} morphkv_status;

// how the votes of the window's queries are joined into one score per cell
typedef enum morphkv_fusion {
    MORPHKV_FUSION_SUM = 0,
    MORPHKV_FUSION_MAX = 1,
} morphkv_fusion;

// What ranks the older cells; recency, random and h2o are for comparison at equal bytes.
typedef enum morphkv_policy {
    MORPHKV_POLICY_MORPHKV    = 0,  // attention of the newest queries: their votes
    MORPHKV_POLICY_RECENCY    = 1,  // the newest stay (StreamingLLM)
    MORPHKV_POLICY_RANDOM     = 2,
    MORPHKV_POLICY_COMMITTEES = 3,  // half of the cells by votes, half by sums of a token's votes at all evictions
    MORPHKV_POLICY_H2O        = 4,  // by these sums
} morphkv_policy;

// All counts are in tokens.
typedef struct morphkv_params {
    size_t   size;         // sizeof(morphkv_params)
    int32_t  capacity;     // kept per KV head after an eviction, everything included; > keep + window
    int32_t  window;       // newest tokens, never evicted; >= 1
    int32_t  interval;     // evict when the recent tokens exceed the window by this many; >= 1
    int32_t  keep;         // first tokens of a sequence that are never evicted; >= 0
    int32_t  prompt_room;  // cells beyond capacity that a prompt may fill before a cut; >= 0
    int32_t  votes;        // how many of the newest queries vote; 0 = window
    int32_t  fusion;       // morphkv_fusion
    int32_t  policy;       // morphkv_policy
    float    decay;        // in [0, 1): sum = vote + decay * last sum; 0 is the paper: votes alone. Sums of
                           // MORPHKV_POLICY_COMMITTEES and _H2O forget nothing where it is 0
    uint32_t seed;         // of MORPHKV_POLICY_RANDOM
    int32_t  rope_limit;   // RoPE's positions stay below it: they are rebased before one would reach it, while callers'
                           // positions go on. -1 = the trained context, 0 = never, else at least n_limit of the stats.
                           // Some architectures rotate keys in ways that cannot be rebased: there -1 means never, and
                           // morphkv_context_create() refuses a limit
    int32_t  n_large;      // layers that keep more than the others, as evictions do more harm there; 0 = all are alike
    // Of these, and of all others. Both 0: shared by bytes, all take what `capacity` would take in each layer, and are alike
    // where the room that each layer needs leaves nothing to share.
    int32_t
        large_capacity;  // -1 = as many as there are rotary positions: nothing is evicted there in a text of that length
    int32_t  small_capacity;                   // 0 beside a large_capacity = capacity
    uint16_t large_layers[MORPHKV_LARGE_MAX];  // the first n_large: those with the most harm first
    // Tokens before the window that are never evicted either, and do not vote; -1 = as many as the policy takes: with
    // MORPHKV_POLICY_H2O half of the capacity is window and protected, with _COMMITTEES a quarter, else none.
    int32_t  protect;
} morphkv_params;

typedef struct morphkv_stats {
    size_t   size;           // sizeof(morphkv_stats), set by the caller
    int32_t  capacity;
    int32_t  keep;           // first tokens of the sequence that are never evicted
    int32_t  n_cells;        // allocated per sequence
    int32_t  n_limit;        // most cells that a sequence uses: capacity + max(interval, prompt_room)
    int32_t  n_distant;      // distant slots per KV head: capacity - window
    int32_t  n_used;         // cells that the sequence uses now
    int32_t  n_seq_max;      // sequences that have cells of their own
    int32_t  logical_pos;    // position of the sequence's newest token, -1 when empty
    int32_t  complete_pos;   // tokens behind it can be taken back: every layer can go there; -1 when empty
    int32_t  exact_pos;      // tokens from here on can be taken back exactly: none is older than the last eviction or
                             // rebase
    int32_t  mark_pos;       // with recurrent layers: all tokens from here on can be taken back; -1 = there is no mark
    int32_t  rope_limit;     // in force; 0 = rotary positions are never rebased
    int32_t  rotary_offset;  // of the sequence's recent tokens: position minus the rotary one, which RoPE sees
    int64_t  n_rebases;      // how often the offset grew
    int64_t  n_evictions;    // evictions of the sequence
    int64_t  n_evicted;      // tokens evicted per KV head, summed over the sequence's evictions
    uint64_t kv_bytes;       // K and V of all sequences
    uint64_t extra_bytes;    // query rings, positions and scores of all sequences, and their marks
    uint64_t scratch_bytes;  // that evictions compute in, beside the decode's; kernels of our own share theirs
    double   evict_ms;       // time spent in evictions, all sequences
    double   seq_evict_ms;   // the same, of this sequence id alone; emptying the sequence does not set it back
    int64_t
        n_archived;  // tokens of the sequence that are in its archive; on a GPU or over RPC tokens are appended while
                     // the model decodes on, and count once they are there
    int64_t  n_archive_lost;     // tokens that had to leave it (max_bytes)
    int64_t  n_archive_damaged;  // pages of 16 tokens that turned out not to be readable: they are not recalled
    uint64_t archive_bytes;      // archives of all sequences, on the host: pages and index
    double   archive_ms;         // of evict_ms: time that decoding waited for archives, all sequences
    int64_t  n_recalls;          // recalls of the sequence
    int64_t  n_recalled;         // tokens that they brought back, summed over layers and KV heads
    double   recall_ms;          // time spent in them
    int32_t  n_groups;           // of layers, each with a capacity of its own; 1 = all are alike. n_cells, n_limit,
                                 // n_distant, n_used and n_evicted are those of min_capacity's layers
    int32_t  min_capacity;       // of any layer
    int32_t  max_capacity;
} morphkv_stats;

MORPHKV_API int32_t      morphkv_abi_version(void);
MORPHKV_API const char * morphkv_version(void);
MORPHKV_API const char * morphkv_upstream_version(void);

// The sentence and the status of this thread's last failed call, "" and OK if none. The sentence is valid until the
// thread's next call. llama_init_from_model() sets them too, when it is refused for MorphKV's sake.
MORPHKV_API const char *   morphkv_last_error(void);
MORPHKV_API morphkv_status morphkv_last_status(void);

MORPHKV_API morphkv_params morphkv_params_default(void);
MORPHKV_API morphkv_status morphkv_params_check(const morphkv_params * params);

// Cells that these parameters allocate per sequence.
MORPHKV_API morphkv_status morphkv_params_cells(const morphkv_params * params, int32_t * n_cells);

// The next llama_init_from_model() on this thread gets these parameters; NULL takes them back.
// For hosts that create contexts through code that knows nothing of MorphKV.
MORPHKV_API morphkv_status morphkv_params_set_next(const morphkv_params * params);

// After morphkv_params_set_next() and llama_init_from_model(): whether the context took the parameters and can honour
// them, which some models and devices show only now.
MORPHKV_API morphkv_status morphkv_context_check(struct llama_context * ctx);

// llama_init_from_model() with MorphKV. On failure *out is NULL.
MORPHKV_API morphkv_status morphkv_context_create(struct llama_model *                model,
                                                  const struct llama_context_params * cparams,
                                                  const morphkv_params * params, struct llama_context ** out);

MORPHKV_API morphkv_status morphkv_stats_get(struct llama_context * ctx, int32_t seq_id, morphkv_stats * out);

// First tokens of a sequence that are never evicted, in place of params.keep, until the sequence is emptied. Below
// capacity - window; after the sequence's first eviction it can only be lowered.
MORPHKV_API morphkv_status morphkv_keep_set(struct llama_context * ctx, int32_t seq_id, int32_t n_keep);

// A model with recurrent layers cannot take any tail back: their state has to be kept where it is to come back to. From now on
// the sequence can be gone back to where it ends now, by llama_memory_seq_rm(mem, seq_id, mark_pos, -1), as often as one likes,
// as long as the other layers still hold its tokens. One mark a sequence, the newest; an empty sequence has none, nor one that a
// state was loaded into. morphkv_prompt_next() sets marks, too. Without recurrent
// layers nothing is needed, and nothing happens.
MORPHKV_API morphkv_status morphkv_mark_set(struct llama_context * ctx, int32_t seq_id);

// Sizes of morphkv_retained_get's answer for a layer; one without KV, or with a sliding window, is MORPHKV_STATUS_INVALID.
MORPHKV_API morphkv_status morphkv_retained_shape(struct llama_context * ctx, int32_t layer, int32_t * n_head_kv,
                                                  int32_t * n_distant);

// pos: (n_head_kv, n_distant), n = its length. Logical position of the token in each distant slot, -1 where empty.
MORPHKV_API morphkv_status morphkv_retained_get(struct llama_context * ctx, int32_t seq_id, int32_t layer,
                                                int32_t * pos, size_t n);

// What leaves the window is kept, for recalls: K and V of each token, on the host. A file that another context left is opened:
// its pages are there for a checkpoint of theirs, and a new text begins it anew. Of one with another max_bytes those stay that fit.
typedef struct morphkv_archive_params {
    size_t       size;       // sizeof(morphkv_archive_params)
    int32_t      type_k;     // ggml_type of what is kept; -1 = as in the cache
    int32_t      type_v;
    uint64_t     max_bytes;  // of all sequences, each has an equal share: a text's oldest pages make room; 0 = no limit
    const char * path;       // of a file for the pages, sequence i > 0 in path.i; NULL = in memory
} morphkv_archive_params;

// As in the cache, in memory, 2 GiB.
MORPHKV_API morphkv_archive_params morphkv_archive_params_default(void);

// Every sequence of the context has an archive from now on. All must be empty. UNSUPPORTED where a layer rotates its keys
// in a way that cannot be undone, and where a device cannot compute it.
MORPHKV_API morphkv_status morphkv_archive_start(struct llama_context * ctx, const morphkv_archive_params * params);

// Knowledge once read: writes a file of all tokens of a sequence, for other contexts of this model to attach. model_path: of the
// model's file, which tells models apart; NULL = its shape and norms alone do. tokens: their ids, n_tokens of them, whole pages
// of 16. The context has an archive that has dropped none of them (max_bytes 0). The file is there once it is complete; one that
// was there is as it was until then. The sequence is as it was.
MORPHKV_API morphkv_status morphkv_archive_write(struct llama_context * ctx, int32_t seq_id, const char * path,
                                                 const char * model_path, const int32_t * tokens, int32_t n_tokens);

// What such a file has can be recalled by all sequences of the context from now on, as if each had begun with it: beside an
// archive, before anything is decoded. It is read only: any number of contexts and processes share it. Nothing of it is in the cache
// before a recall. A recall of a sequence that nothing was evicted of gives it all slots that are free. INVALID where the file is
// damaged, truncated, of another model or has fewer tokens than there are slots. Who shortens the file while it is attached ends the
// process.
MORPHKV_API morphkv_status morphkv_archive_attach(struct llama_context * ctx, const char * path,
                                                  const char * model_path);

// A file that is attached.
typedef struct morphkv_attachment {
    size_t       size;        // sizeof(morphkv_attachment), set by the caller
    const char * path;        // valid as long as the context
    uint64_t     id;          // of the model and all that is in the file
    int64_t      n_tokens;
    int64_t      n_recalled;  // tokens that came into the sequence, by layer and KV head, over all its texts
    uint64_t     bytes;       // of the file, none of which count for max_bytes
} morphkv_attachment;

// How many there are; and the i-th, as a sequence sees it.
MORPHKV_API morphkv_status morphkv_attachment_count(struct llama_context * ctx, int32_t * n);
MORPHKV_API morphkv_status morphkv_attachment_get(struct llama_context * ctx, int32_t seq_id, int32_t i,
                                                  morphkv_attachment * out);
// Ids of n_tokens tokens of the i-th from token `first` on.
MORPHKV_API morphkv_status morphkv_attachment_tokens(struct llama_context * ctx, int32_t i, int64_t first,
                                                     int32_t n_tokens, int32_t * tokens);

// A page of 16 tokens that a recall brought.
typedef struct morphkv_brought {
    int32_t i_attachment;  // -1: of the sequence's own archive
    int32_t zero;
    int64_t first;         // its first token, of the file or of the sequence
} morphkv_brought;

// Those of the sequence's last recall that brought any, best first: n_pages is how many there are, of which out gets the first n_max.
MORPHKV_API morphkv_status morphkv_brought_get(struct llama_context * ctx, int32_t seq_id, morphkv_brought * out,
                                               int32_t n_max, int32_t * n_pages);

// Why the archive of a sequence grows no more (a full disk), or "" while it does. A text goes on without: what has been
// archived can be recalled, and an archive begins anew with the next text. Does not wait for what is being appended, of which
// it tells later. Valid until the thread's next call of this.
MORPHKV_API const char * morphkv_archive_why_stopped(struct llama_context * ctx, int32_t seq_id);

// Full pages of a sequence's archive, 16 tokens each, which never change: for hosts that keep them beside checkpoints. A record is
// a hash (8 bytes), which depends on all text before the page, and the page.
typedef struct morphkv_page_range {
    size_t  size;         // sizeof(morphkv_page_range)
    int64_t first;        // pages [first, end) are there
    int64_t end;
    int32_t first_token;  // that page 0 began with; -1 = nothing has been archived
    size_t  record_bytes;
} morphkv_page_range;

// out: may be NULL; all that are there. records: n of them from page `first` on, n * record_bytes, where n is not 0. A page that
// cannot be read is all zeros, which its hash tells.
MORPHKV_API morphkv_status morphkv_pages_get(struct llama_context * ctx, int32_t seq_id, int64_t first, int64_t n,
                                             void * records, morphkv_page_range * out);
// Gives them to the archive of a sequence without tokens. A checkpoint of their text (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) is to be
// loaded next; one of another text empties the archive.
MORPHKV_API morphkv_status morphkv_pages_set(struct llama_context * ctx, int32_t seq_id,
                                             const morphkv_page_range * pages, const void * records);

// Loads what llama_state_seq_get_data_ext() gave for a sequence, with the flags that it had, or, with seq_id -1 and no flags,
// what llama_state_get_data() gave. All or nothing: a state that is damaged, of another size or of other settings is refused,
// and neither the cache nor an archive changes. Where an archive alone cannot take its pages, the state is loaded and that
// archive stops. Not for states on a device (LLAMA_STATE_SEQ_FLAGS_ON_DEVICE).
MORPHKV_API morphkv_status morphkv_state_load(struct llama_context * ctx, int32_t seq_id, const void * data,
                                              size_t size, uint32_t flags);

typedef struct morphkv_recall_params {
    size_t  size;      // sizeof(morphkv_recall_params)
    int32_t votes;     // how many of the newest queries ask; at most the context's votes, 0 = 16 or those if fewer
    float   share;     // of the distant slots, (0, 1]: most that a recall fills; 5 pages if these are at most half
    int32_t distance;  // the archive is asked as if each of its tokens lay so many positions before the queries, below
                       // rope_limit; -1 (default) = 256, or as far as rope_limit allows
    int32_t look;      // pages whose keys are looked at for each that is wanted, >= 1; of all one in 20 at least
    float   need;    // while a text is written: third powers of a page's share of a vote, summed over layers and heads,
                     // from which on it is in use, >= 0
    int32_t reread;  // 1 (default): pages of attached files are read again, together, as they come; 0: not
} morphkv_recall_params;

typedef struct morphkv_recalled {
    size_t  size;        // sizeof(morphkv_recalled), set by the caller
    int64_t n_archived;  // tokens that were asked
    int64_t n_recalled;  // tokens brought back, summed over layers and KV heads; those that were there do not count
    double  ask_ms;      // time to choose
    double  took_ms;     // time of all
    int64_t n_reread;    // tokens of attached files that were read again
} morphkv_recalled;

MORPHKV_API morphkv_recall_params morphkv_recall_params_default(void);

// Brings archived tokens that the newest queries attend to back into distant slots, in whole pages of 16 tokens, the same for
// each head. All distant tokens then stand at consecutive rotary positions before the recent ones. Nothing before the
// first eviction. On failure the sequence is as it was.
MORPHKV_API morphkv_status morphkv_recall(struct llama_context * ctx, int32_t seq_id,
                                          const morphkv_recall_params * params, morphkv_recalled * out);

// Pages of the sequence that recalls have brought tokens of, ascending. pos: logical position of a page's first token; recall:
// which recall was the last that did, counted from 1 as in n_recalls. Heads may have evicted them since. A state that
// was loaded has none. n_pages: how many there are; where they are more than n_max, nothing is written.
MORPHKV_API morphkv_status morphkv_recalled_get(struct llama_context * ctx, int32_t seq_id, int32_t * pos,
                                                int32_t * recall, int32_t n_max, int32_t * n_pages);

typedef struct morphkv_restored {
    size_t size;  // sizeof(morphkv_restored), set by the caller
    int32_t
        n_restored;  // tokens that came into cells of min_capacity's layers from the archive; 0 where the place was complete
    double took_ms;
} morphkv_restored;

// Goes back to the first n_tokens tokens of a text; tokens: their ids. Where that place is complete those behind it are taken
// back. Else its cells are laid down again from the archive: the newest tokens before it, and in distant slots those that are
// there and older, or else the newest that are. So it is near what the text was, and not the same bits: decode the last tokens
// again, and a recall brings what they ask for. What is behind the place is gone from the archive too. It counts as a recall.
// Not for models with layers that have a sliding window or are recurrent. Where the archive has too little of the text, and
// where memory lacks, the sequence is as it was; where a computation fails it may be empty: logical_pos says it.
MORPHKV_API morphkv_status morphkv_restore(struct llama_context * ctx, int32_t seq_id, const int32_t * tokens,
                                           int32_t n_tokens, morphkv_restored * out);

// A passage: tokens of a text, aside, so that they can be put behind another beginning. Where a host changes a text's beginning
// what is behind the change need not be decoded again: take it, go back to the change, decode what is new, put it there. Its
// keys and values are those of the old text, turned to their new positions. As for a restore an archive is needed, and models of
// the same kind. Words alone.
typedef struct morphkv_passage morphkv_passage;

// n_tokens tokens of a text from token `first` on. Nothing changes. To be freed.
MORPHKV_API morphkv_status morphkv_passage_take(struct llama_context * ctx, int32_t seq_id, int32_t first,
                                                int32_t n_tokens, morphkv_passage ** out);
// Behind the text of a sequence of the same model. tokens: ids of all n_tokens that the text then has. Failures as in a
// restore.
MORPHKV_API morphkv_status morphkv_passage_put(struct llama_context * ctx, int32_t seq_id,
                                               const morphkv_passage * passage, const int32_t * tokens,
                                               int32_t n_tokens, morphkv_restored * out);
MORPHKV_API void           morphkv_passage_free(morphkv_passage * passage);

// What of a text a prompt can have again, where the two part at a place that is evicted in part.
typedef struct morphkv_change {
    size_t  size;           // sizeof(morphkv_change), set by the caller
    int32_t n_first;        // go back to so many first tokens by the archive; 0 = to none
    int32_t n_passage;      // then, if not 0: decode the prompt up to passage_to,
    int32_t passage_first;  // and put so many tokens of the text from here on
    int32_t passage_to;     // there: they are taken aside before the text goes back
} morphkv_change;

// Of the ids of both. n_cached: first tokens of the prompt that can be had anyway, by a checkpoint; all is 0 where little more can.
// The last 128 tokens before what is new are left to be decoded again.
MORPHKV_API morphkv_status morphkv_change_plan(const int32_t * text, int32_t n_text, const int32_t * prompt,
                                               int32_t n_prompt, int32_t n_cached, morphkv_change * out);

// The reading of a prompt with an archive. A question is understood only with what it is about at hand: all but its last token
// is decoded and asks the archive, its end is decoded again on what came back and asks once more, its last token is decoded
// alone. With recurrent layers the sequence is marked before its end, and then before its last token, where an answer that is
// asked for again begins. Hosts decode, in batches of their own; morphkv_prompt_next() recalls and says what is next.
typedef enum morphkv_prompt_stage {
    MORPHKV_PROMPT_STAGE_FIRST = 0,
    MORPHKV_PROMPT_STAGE_AGAIN = 1,  // its end is decoded again
    MORPHKV_PROMPT_STAGE_LAST  = 2,  // nothing more is recalled
} morphkv_prompt_stage;

typedef struct morphkv_prompt {
    size_t           size;       // sizeof(morphkv_prompt)
    int32_t          n_past;     // first tokens that the sequence held already: they are not decoded again
    int32_t          n_tokens;   // of the text up to the prompt's end
    int32_t          n_redo;     // most tokens at its end that are decoded again; 0 = none
    int32_t          stage;      // morphkv_prompt_stage
    int32_t          n_back;     // next: take back so many of the newest tokens,
    int32_t          n_end;      // then decode until the sequence holds so many; n_tokens = that is all
    int32_t          n_recalls;  // that the last call did: 0 or 1
    morphkv_recalled recalled;   // by it
} morphkv_prompt;

// A reading that has not begun. n_redo is 128.
MORPHKV_API morphkv_prompt morphkv_prompt_begin(int32_t n_past, int32_t n_tokens);

// While the sequence holds the first n_held tokens, all decoded: what is next. Where a recall fails, the prompt says how to go
// on without.
MORPHKV_API morphkv_status morphkv_prompt_next(struct llama_context * ctx, int32_t seq_id,
                                               const morphkv_recall_params * params, morphkv_prompt * prompt,
                                               int32_t n_held);

// The writing of a text with an archive: what the newest tokens attend to in recalled pages brings the pages behind these, and
// where they attend to nothing there, the archive is asked, every 16 tokens at most and more seldom where nothing comes
// of it.
typedef struct morphkv_writing {
    size_t           size;       // sizeof(morphkv_writing), set by the caller
    int32_t          n_recalls;  // that the call did: 0 or 1
    morphkv_recalled recalled;   // by it
} morphkv_writing;

// A recall falls due where the next position is a multiple of this, and behind the token before which an eviction came unless
// these are frequent, if at all.
// A draft that ends where one or the other falls due changes no text.
#define MORPHKV_WRITE_STEP 16

// Before a written token is decoded, alone or with a draft, and once rejected drafts are taken back: recalls where that is due. The
// sequence alone says so: not twice at a place, and behind a state or a rollback as it would without. On failure the
// sequence is as it was.
MORPHKV_API morphkv_status morphkv_write_next(struct llama_context * ctx, int32_t seq_id,
                                              const morphkv_recall_params * params, morphkv_writing * out);

// Bytes of the K and V tensors of a context, with or without MorphKV; 0 when it has no KV cache.
MORPHKV_API uint64_t morphkv_kv_bytes(struct llama_context * ctx);

// llama_tokenize(), but what it throws, e.g. for codepoints above U+10FFFF, is MORPHKV_STATUS_INVALID.
// n_tokens: of the text; where they are more than n_max, tokens has none of them.
MORPHKV_API morphkv_status morphkv_tokenize(const struct llama_vocab * vocab, const char * text, size_t n_text,
                                            int32_t add_special, int32_t parse_special, int32_t * tokens, int32_t n_max,
                                            int32_t * n_tokens);

// A device that ggml found: where layers can live. Strings belong to ggml and stay valid.
typedef struct morphkv_device {
    size_t       size;        // sizeof(morphkv_device), set by the caller
    const char * name;        // "CPU", "CUDA0", ...
    const char * description;
    const char * backend;     // "CPU", "CUDA", "Vulkan", ...
    int32_t      is_gpu;
    uint64_t     free_bytes;  // 0 where the backend cannot tell
    uint64_t     total_bytes;
} morphkv_device;

MORPHKV_API int32_t        morphkv_device_count(void);
MORPHKV_API morphkv_status morphkv_device_get(int32_t i, morphkv_device * out);

// For llama_model_params.devices: the devices of RPC servers, then the local GPUs that llama.cpp would use, then NULL.
// servers: "HOST:PORT", several separated by commas. devices: room for llama_max_devices() + 1.
// ggml ends the process where no server answers: find that out first.
MORPHKV_API morphkv_status morphkv_rpc_devices(const char * servers, void ** devices);

// How many of a model's layers its devices have memory for.
typedef struct morphkv_fit {
    size_t  size;          // sizeof(morphkv_fit), set by the caller
    int32_t n_gpu_layers;  // for llama_model_params; 0 where the model has no device but the CPU
    int32_t n_layers;      // most that it counts: the model's layers, and the output
    int32_t n_devices;     // of morphkv_fit_device_get()
    int32_t n_probes;      // models that were opened to find out
} morphkv_fit;

// The most layers that leave margin_bytes of each device free, with what the context takes: K and V, what MorphKV has beside
// them, and the buffers of decodes and evictions. To find out, the model is opened without its weights and its cache, a few
// times where not all of it fits. mparams and cparams: as they are for the model and the context; n_gpu_layers is not read. params:
// NULL = the context is without MorphKV. A device that does not tell its memory gets no layers. Refused as the context would be.
MORPHKV_API morphkv_status morphkv_fit_gpu_layers(const char * path, const struct llama_model_params * mparams,
                                                  const struct llama_context_params * cparams,
                                                  const morphkv_params * params, uint64_t margin_bytes,
                                                  morphkv_fit * out);

// What model and context take of a device with the layers of the thread's last fit. Strings belong to ggml and stay valid while
// the device is there.
typedef struct morphkv_fit_device {
    size_t       size;  // sizeof(morphkv_fit_device), set by the caller
    const char * name;
    const char * description;
    uint64_t     used_bytes;
    uint64_t     free_bytes;  // before
} morphkv_fit_device;

MORPHKV_API morphkv_status morphkv_fit_device_get(int32_t i, morphkv_fit_device * out);

typedef enum morphkv_selftest_result {
    MORPHKV_SELFTEST_RESULT_SAME      = 0,
    MORPHKV_SELFTEST_RESULT_DIFFERENT = 1,  // from the CPU: a context would hold wrong tokens
    MORPHKV_SELFTEST_RESULT_REFUSED   = 2,  // the device lacks an operation: a context whose cache is there is refused
} morphkv_selftest_result;

// One case of the self-test: a graph over random rows on a device, against the same on the CPU. Strings are valid until
// the thread's next case.
typedef struct morphkv_selftest {
    size_t       size;         // sizeof(morphkv_selftest), set by the caller
    int32_t      n_threads;    // of a CPU that is tested, set by the caller; 0 = 1, which it is compared with
    const char * device;       // "CPU", "CUDA0", "RPC0", ...
    const char * description;
    const char * graph;        // "evict", "rebase", or "kernels": an eviction by kernels of our own
    const char * type;         // of K and V: "f16", "q8_0", ...
    const char * shape;
    int32_t      result;       // morphkv_selftest_result
    int32_t      n_near_ties;  // tokens kept in place of others whose scores differ by no more than rounding
    const char * reason;       // "" where the result is SAME
    double       took_ms;      // the device's computation
} morphkv_selftest;

// Cases there are: every device that ggml found, and those of RPC servers ("HOST:PORT,..."; NULL: none).
MORPHKV_API morphkv_status morphkv_selftest_count(const char * servers, int32_t * n);
MORPHKV_API morphkv_status morphkv_selftest_run(const char * servers, int32_t i, morphkv_selftest * out);

#ifdef __cplusplus
}
#endif

#endif
