// State of a MorphKV cache: what must fit, the cells of each sequence, a checksum of all that, and then the tensors.
//
//   header   magic, version, parameters, shape of the model's layers, number of sequences
//   stream   for each sequence: counters, first positions, the ring's positions, the cells' tokens; those of windowed layers;
//            what its archive holds
//   checksum of everything before it
//   tensors  for each sequence and layer: the used cells of K and V, the ring, the slots' positions and scores; windowed
//            layers' K and V; the archive's pages
//            each followed by a mark, as most damage to a file is a block or an end that is missing, and llama.cpp's file
//            reader gives less than was asked for without a word
//
// Nothing is allocated or changed before all but the tensors has been read and found right. A sequence has its cells in
// one piece and its positions in one or two runs, so its size depends on the number of used cells alone: once a sequence
// has been cut, it stays between those of capacity and of capacity + room.

#include "morphkv-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <cstring>
#include <limits>

namespace {

constexpr uint32_t STATE_MAGIC   = 0x564b4d4d;  // "MMKV"
constexpr uint32_t STATE_VERSION = 4;

// FNV-1a, 64 bits: against flipped bits, not against an attacker; what is read is checked value by value all the same.
class fnv_hash {
public:
    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            value = (value ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
        }
    }

    uint64_t value = 0xcbf29ce484222325;
};

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
    int32_t  rope_limit;
    uint32_t n_rot;    // size of the matrix that K is rotated with, 0 = none
    uint64_t layers;   // hash of their shapes and types
    uint32_t n_layer;
    uint32_t n_seq;    // sequences that follow
    uint64_t archive;  // hash of its layout, 0 = none
    uint32_t has_no_pages;
    uint32_t zero;
};

state_header make_header(const morphkv_params & p, const morphkv_side & side, const morphkv_window * window,
                         int32_t rope_limit, uint32_t n_rot, uint32_t n_seq, const morphkv_archive * archive,
                         llama_state_seq_flags flags) {
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
    res.rope_limit  = rope_limit;
    res.n_rot       = n_rot;
    res.n_layer     = side.layers.size();
    res.n_seq       = n_seq;

    fnv_hash hash;
    for (const auto & layer : side.layers) {
        const int64_t shape[] = { layer.il,
                                  layer.n_head,
                                  layer.n_head_kv,
                                  layer.k->type,
                                  layer.k->ne[0],
                                  layer.v ? layer.v->type : -1,
                                  layer.v ? layer.v->ne[0] : 0,
                                  layer.ring->type,
                                  layer.ring->ne[1],
                                  layer.pos->ne[0] };
        hash.add(shape, sizeof(shape));
    }
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        const auto &  layer   = window->layers[i];
        const int64_t shape[] = { layer.il,       layer.n_head_kv, layer.k->type, layer.k->ne[0],
                                  layer.k->ne[1], layer.v->type,   layer.v->ne[0] };
        hash.add(shape, sizeof(shape));
    }
    res.layers = hash.value;

    res.archive      = archive ? archive->layout.hash() : 0;
    res.has_no_pages = archive && (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    return res;
}

// The fixed part of a sequence. Of its cells only the first positions are stored, the others follow.
struct stream_header {
    int64_t   n_evictions;
    int64_t   n_evicted;
    int64_t   n_rebases;
    int64_t   n_recalls;
    int64_t   n_recalled;
    llama_pos pos_exact;
    llama_pos pos_prompt;
    llama_pos rotary_offset;
    uint32_t  n_rebased;  // distant tokens of all layers and heads at the last rebase, whose positions follow; or 0
    int32_t   n_keep;
    uint32_t  n_used;
    llama_pos first_distant;  // position of cell 0
    llama_pos first_recent;   // position of cell n_distant; the same run as cell 0 before the first eviction
};

// The cells of the windowed layers, whose tokens follow; only of models that have such layers.
struct window_header {
    llama_pos newest;
    uint32_t  i_newest;
    uint32_t  n_cells;
};

}  // namespace

class morphkv_hashed_writer {
public:
    explicit morphkv_hashed_writer(llama_io_write_i & io) : io(io) {}

    void write(const void * data, size_t size) {
        // an empty vector's data() may be null, which llama.cpp would give to memcpy
        if (size > 0) {
            io.write(data, size);
            hash.add(data, size);
        }
    }

    // of what has been written so far, itself not included
    void write_checksum() { io.write(&hash.value, sizeof(hash.value)); }
    // the i-th mark: no two are alike
    void write_mark(uint64_t i) {
        const uint64_t value = hash.value + i;
        io.write(&value, sizeof(value));
    }

private:
    llama_io_write_i & io;
    fnv_hash           hash;
};

class morphkv_hashed_reader {
public:
    explicit morphkv_hashed_reader(llama_io_read_i & io) : io(io) {}

    void read(void * data, size_t size) {
        if (size > 0) {
            io.read(data, size);
            hash.add(data, size);
        }
    }

    void read_checksum() { read_mark(0); }

    void read_mark(uint64_t i) {
        uint64_t value = ~(hash.value + i);  // a file may end here
        io.read(&value, sizeof(value));
        if (value != hash.value + i) {
            throw std::runtime_error("the state is damaged or truncated: a checksum is wrong");
        }
    }

private:
    llama_io_read_i & io;
    fnv_hash          hash;
};

uint32_t morphkv_cache::n_rot() const {
    ggml_context_ptr    ctx(ggml_init({ ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    const ggml_tensor * rot = build_input_k_rot(ctx.get());
    return rot ? rot->ne[0] : 0;
}

struct morphkv_cache::saved_stream {
    stream_state             state;
    cell_list                cells;
    morphkv_window::cell_run window;
    morphkv_archive_header   archive;
};

void morphkv_cache::write_stream(morphkv_hashed_writer & out, llama_seq_id seq_id) const {
    const auto & stream = streams[seq_id];
    const auto   cells  = get_cell_list(seq_id, 0);

    stream_header header{};
    header.n_evictions   = stream.n_evictions;
    header.n_evicted     = stream.n_evicted;
    header.pos_exact     = stream.pos_exact;
    header.pos_prompt    = stream.pos_prompt;
    header.n_rebases     = stream.n_rebases;
    header.n_recalls     = stream.n_recalls;
    header.n_recalled    = stream.n_recalled;
    header.rotary_offset = stream.rotary_offset;
    header.n_rebased     = stream.rebased.size();
    header.n_keep        = stream.n_keep;
    header.n_used        = cells.pos.size();
    header.first_distant = cells.pos.empty() ? 0 : cells.pos[0];
    header.first_recent  = cells.pos.size() > n_distant ? cells.pos[n_distant] : header.first_distant + n_distant;
    out.write(&header, sizeof(header));
    out.write(stream.ring_pos.data(), stream.ring_pos.size() * sizeof(llama_pos));
    out.write(cells.token.data(), cells.token.size() * sizeof(llama_token));
    out.write(stream.rebased.data(), stream.rebased.size() * sizeof(llama_pos));
    if (window) {
        const auto          run         = window->get_run(seq_id);
        const window_header with_window = { run.newest, run.i_newest, (uint32_t) run.tokens.size() };
        out.write(&with_window, sizeof(with_window));
        out.write(run.tokens.data(), run.tokens.size() * sizeof(llama_token));
    }
    if (archives) {
        const auto held = archives->of(seq_id).get_header();
        out.write(&held, sizeof(held));
    }
}

morphkv_cache::saved_stream morphkv_cache::read_stream(morphkv_hashed_reader & in) const {
    auto require = [](bool ok, const char * rule, int64_t value) {
        if (!ok) {
            throw std::runtime_error("the state is damaged: " + std::string(rule) + ", got " + std::to_string(value));
        }
    };

    stream_header header{};
    in.read(&header, sizeof(header));

    const int64_t n_evictions = header.n_evictions;
    require(header.n_used <= n_limit(params), "a sequence has more cells than this cache", header.n_used);
    require(n_evictions >= 0 && header.n_evicted >= n_evictions, "evictions evict", header.n_evicted);
    require(n_evictions > 0 || header.n_evicted == 0, "no eviction evicts nothing", header.n_evicted);
    require(n_evictions == 0 || header.n_used > n_distant, "a recent token is left after evictions", header.n_used);

    require(header.n_keep >= 0 && header.n_keep < (int32_t) n_distant, "some slots are not kept", header.n_keep);

    // two runs of positions that grow and do not meet
    const int64_t first_distant = header.first_distant;
    const int64_t first_recent  = header.first_recent;
    const int64_t end =
        header.n_used <= n_distant ? first_distant + header.n_used : first_recent + header.n_used - n_distant;
    require(first_distant >= 0, "positions are not negative", first_distant);
    require(header.n_used > 0 || first_distant == 0, "an empty sequence begins at 0", first_distant);
    // bounds the counters too, which grow with the next evictions
    require(first_recent - first_distant - n_distant == header.n_evicted, "evicted tokens are those between the runs",
            header.n_evicted);
    // with room to go on: llama.cpp adds to positions
    require(end <= std::numeric_limits<llama_pos>::max() / 2, "positions fit 30 bits", end);
    require(header.pos_exact >= 0 && header.pos_exact <= end, "exact_pos is a position", header.pos_exact);
    require(header.pos_prompt >= -1 && header.pos_prompt <= end, "pos_prompt is a position", header.pos_prompt);

    size_t n_slots = 0;
    for (const auto & layer : side.layers) {
        n_slots += layer.n_head_kv * n_distant;
    }
    require(header.n_rebased == 0 || (header.n_rebased == n_slots && n_evictions > 0),
            "a rebase places all distant tokens", header.n_rebased);
    // each moves the offset, so its bound is a bound for the counter too
    require(header.n_rebases >= (header.n_rebased > 0) && header.n_rebases <= std::max(0, header.rotary_offset),
            "rebases are counted", header.n_rebases);
    // recent tokens stand at rotary positions behind the distant slots' number, without an eviction from 0 on
    require(header.rotary_offset >= 0 && (header.rotary_offset == 0 || header.n_rebases > 0) &&
                header.rotary_offset <= (n_evictions > 0 ? first_recent - n_distant : first_distant),
            "rotary positions are not negative", header.rotary_offset);

    require(header.n_recalls >= 0 && header.n_recalled >= 0 && (n_evictions > 0 || header.n_recalls == 0),
            "recalls bring back what was evicted", header.n_recalls);

    saved_stream res        = { empty_stream(), {}, {}, {} };
    res.state.n_keep        = header.n_keep;
    res.state.n_evictions   = n_evictions;
    res.state.n_evicted     = header.n_evicted;
    res.state.pos_exact     = header.pos_exact;
    res.state.pos_prompt    = header.pos_prompt;
    res.state.n_rebases     = header.n_rebases;
    res.state.n_recalls     = header.n_recalls;
    res.state.n_recalled    = header.n_recalled;
    res.state.rotary_offset = header.rotary_offset;

    auto & ring_pos = res.state.ring_pos;
    in.read(ring_pos.data(), ring_pos.size() * sizeof(llama_pos));
    for (size_t i = 0; i < ring_pos.size(); ++i) {
        const llama_pos pos = ring_pos[i];
        require(pos == -1 || (pos >= 0 && pos < end && pos % ring_pos.size() == i), "a query has a row", pos);
    }

    for (uint32_t i = 0; i < header.n_used; ++i) {
        res.cells.pos.push_back(i < n_distant ? first_distant + i : first_recent + i - n_distant);
    }
    res.cells.token.resize(header.n_used);
    in.read(res.cells.token.data(), res.cells.token.size() * sizeof(llama_token));
    for (const llama_token token : res.cells.token) {
        require(token >= LLAMA_TOKEN_NULL, "a token is not negative", token);
    }

    auto & rebased = res.state.rebased;
    rebased.resize(header.n_rebased);
    in.read(rebased.data(), rebased.size() * sizeof(llama_pos));
    for (size_t i = 0; i < rebased.size(); ++i) {
        const bool is_first = i % n_distant == 0;
        require(rebased[i] > (is_first ? -1 : rebased[i - 1]) && rebased[i] < first_recent,
                "distant tokens are in order and older than recent ones", rebased[i]);
    }

    if (window) {
        window_header with_window{};
        in.read(&with_window, sizeof(with_window));
        const int64_t n_cells = with_window.n_cells;
        require(with_window.newest == end - 1 || header.n_used == 0, "all layers have the same newest token",
                with_window.newest);
        require(with_window.i_newest < window->get_size(), "a token is in a cell", with_window.i_newest);
        require(n_cells <= std::min<int64_t>(window->get_size(), end - first_distant) &&
                    (n_cells > 0) == (header.n_used > 0),
                "windowed layers hold tokens of the text", n_cells);
        if (n_cells > 0) {
            res.window.newest   = with_window.newest;
            res.window.i_newest = with_window.i_newest;
            res.window.tokens.resize(n_cells);
            in.read(res.window.tokens.data(), n_cells * sizeof(llama_token));
        }
        for (const llama_token token : res.window.tokens) {
            require(token >= LLAMA_TOKEN_NULL, "a token is not negative", token);
        }
        require(n_cells == end - first_distant || window->can_lose(end - 1 - n_cells, end),
                "windowed layers hold a window", n_cells);
    }
    if (archives) {
        in.read(&res.archive, sizeof(res.archive));
        const std::string why = res.archive.why_not();
        if (!why.empty()) {
            throw std::runtime_error("the state is damaged: " + why);
        }
        require(res.archive.end() <= (n_evictions > 0 ? first_recent : 0), "archived tokens left the window",
                res.archive.end());
    }
    return res;
}

// The pages of a state, or of a checkpoint none, and the tail.
void morphkv_cache::read_archive(llama_seq_id seq_id, const morphkv_archive_header & header, bool has_pages,
                                 const std::function<void(morphkv_page &)> & read_page) {
    auto &       archive = archives->of(seq_id);
    morphkv_page page(archive.layout.page_bytes);
    if (has_pages) {
        archive.begin(header);
        for (int64_t i = header.dropped; i < header.n_full(); ++i) {
            read_page(page);
            archive.add_page(page);
        }
    }
    read_page(page);
    if (has_pages) {
        archive.set_tail(header, std::move(page));
    } else if (!archive.go_back(header, page)) {
        LLAMA_LOG_WARN(
            "%s: MorphKV: the archive of sequence %d is of another text than the checkpoint: it begins anew\n",
            __func__, seq_id);
    }
}

// First and last sequence of a state; -1 is all.
std::pair<llama_seq_id, llama_seq_id> morphkv_cache::saved_range(llama_seq_id seq_id) const {
    const llama_seq_id n_seq = streams.size();
    if (seq_id >= n_seq) {
        throw std::runtime_error("seq_id must be below " + std::to_string(n_seq) + ", got " + std::to_string(seq_id));
    }
    return seq_id < 0 ? std::make_pair(0, n_seq - 1) : std::make_pair(seq_id, seq_id);
}

// A checkpoint (PARTIAL_ONLY) needs all but the archive's pages, as what is distant changes.
void morphkv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const auto         range = saved_range(seq_id);
    const llama_seq_id first = range.first, last = range.second;

    morphkv_hashed_writer out(io);
    const state_header    header = make_header(params, side, window.get(), rope_limit(), n_rot(), last - first + 1,
                                               archives ? &archives->of(first) : nullptr, flags);
    out.write(&header, sizeof(header));
    for (llama_seq_id s = first; s <= last; ++s) {
        write_stream(out, s);
    }
    out.write_checksum();

    uint64_t n_marks = 0;
    for (llama_seq_id s = first; s <= last; ++s) {
        auto write = [&](ggml_tensor * t, size_t offset, size_t size) {
            io.write_tensor(t, offset, size);
            out.write_mark(++n_marks);
        };
        side.for_each_slice(s, n_used(s), write);
        if (window) {
            window->for_each_slice(s, window->get_run(s), write);
        }
        if (!archives) {
            continue;
        }
        const auto & archive    = archives->of(s);
        auto         write_page = [&](const morphkv_page & page) {
            io.write(page.data(), page.size());
            out.write_mark(++n_marks);
        };
        for (int64_t i = archive.n_dropped(); !header.has_no_pages && i < archive.n_full(); ++i) {
            write_page(*archive.get_page(i));
        }
        write_page(archive.get_tail());
    }
}

void morphkv_cache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    const auto         range = saved_range(seq_id);
    const llama_seq_id first = range.first, last = range.second;

    morphkv_hashed_reader in(io);
    const state_header    own = make_header(params, side, window.get(), rope_limit(), n_rot(), last - first + 1,
                                            archives ? &archives->of(first) : nullptr, flags);
    state_header          header{};
    header.magic = 0;
    in.read(&header, sizeof(header));
    if (header.magic != own.magic) {
        throw std::runtime_error("this is no state of a MorphKV cache");
    }
    if (header.version != own.version) {
        throw std::runtime_error("the state must have version " + std::to_string(own.version) + ", got " +
                                 std::to_string(header.version));
    }
    if (header.n_seq != own.n_seq) {
        throw std::runtime_error("the state must hold " + std::to_string(own.n_seq) + " sequences, got " +
                                 std::to_string(header.n_seq));
    }
    if (header.has_no_pages != own.has_no_pages) {
        throw std::runtime_error("a checkpoint is no state, and a state no checkpoint, where there is an archive");
    }
    if (header.archive != own.archive) {
        throw std::runtime_error("the state was saved with another archive_type, or one of the two has no archive");
    }
    if (memcmp(&header, &own, sizeof(own)) != 0) {
        throw std::runtime_error("the state was saved with other MorphKV parameters, K/V types or another model");
    }

    std::vector<saved_stream> saved;
    for (llama_seq_id s = first; s <= last; ++s) {
        saved.push_back(read_stream(in));
    }
    in.read_checksum();

    // From here on a failure, damage or an end among the tensors, leaves the sequences empty. A checkpoint's archive is
    // there already.
    for (llama_seq_id s = first; s <= last; ++s) {
        clear_stream(s, /*archive =*/!header.has_no_pages);
    }
    auto for_each_slice = [&](llama_seq_id s, auto && f) {
        side.for_each_slice(s, saved[s - first].cells.pos.size(), f);
        if (window) {
            window->for_each_slice(s, saved[s - first].window, f);
        }
    };
    try {
        uint64_t n_marks = 0;
        for (llama_seq_id s = first; s <= last; ++s) {
            for_each_slice(s, [&](ggml_tensor * t, size_t offset, size_t size) {
                io.read_tensor(t, offset, size);
                in.read_mark(++n_marks);
            });
            if (archives) {
                read_archive(s, saved[s - first].archive, !header.has_no_pages, [&](morphkv_page & page) {
                    io.read(page.data(), page.size());
                    in.read_mark(++n_marks);
                });
            }
        }
    } catch (...) {
        // attention reads free cells too, behind its mask
        for (llama_seq_id s = first; s <= last; ++s) {
            for_each_slice(s, [&](ggml_tensor * t, size_t offset, size_t size) {
                ggml_backend_tensor_memset(t, 0, offset, size);
            });
            if (archives) {
                archives->of(s).clear();
            }
        }
        throw;
    }
    for (llama_seq_id s = first; s <= last; ++s) {
        set_cell_list(s, 0, saved[s - first].cells);
        streams[s] = std::move(saved[s - first].state);
        if (window) {
            window->set_run(s, saved[s - first].window);
        }
    }
}
