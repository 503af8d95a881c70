// Loading: a state is read as a whole and checked, then applied. See morphkv-state.h.

#include "llama/state.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

//
// a state in memory
//

const uint8_t * morphkv_buffer_reader::take(size_t n) {
    if (n > n_left()) {
        throw std::runtime_error("the state is truncated: it ends at byte " + std::to_string(size));
    }
    const uint8_t * res = data + n_read;
    n_read += n;
    return res;
}

void morphkv_buffer_reader::read(void * dst, size_t n) {
    const uint8_t * src = take(n);
    if (n > 0) {
        memcpy(dst, src, n);
    }
}

void morphkv_buffer_reader::read_tensor(ggml_tensor * tensor, size_t offset, size_t n) {
    tensors.push_back({ tensor, offset, take(n), n });
}

void morphkv_buffer_reader::apply() {
    for (const auto & slice : tensors) {
        ggml_backend_tensor_set(slice.tensor, slice.data, slice.offset, slice.n);
    }
    tensors.clear();
}

void morphkv_require_end(llama_io_read_i & io) {
    const auto * buffer = dynamic_cast<morphkv_buffer_reader *>(&io);
    if (buffer && buffer->n_left() > 0) {
        throw std::runtime_error("the state must have " + std::to_string(io.n_bytes()) + " bytes, got " +
                                 std::to_string(io.n_bytes() + buffer->n_left()));
    }
}

//
// what is not tensors
//

morphkv_cache::loaded_sequence morphkv_cache::read_stream(morphkv_hashed_reader & in, uint32_t version) const {
    auto require = [](bool ok, const char * rule, int64_t value) {
        if (!ok) {
            throw std::runtime_error("the state is damaged: " + std::string(rule) + ", got " + std::to_string(value));
        }
    };

    morphkv_stream_header header{};
    in.read(&header, version >= 5 ? sizeof(header) : offsetof(morphkv_stream_header, rotary_base));

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
    require(header.n_rebases >= 0 && header.n_rebases <= std::max(0, header.rotary_offset), "rebases are counted",
            header.n_rebases);
    // recent tokens stand at rotary positions behind the distant slots' number, without an eviction from 0 on
    require(header.rotary_offset >= 0 && (header.rotary_offset == 0 || header.n_rebases > 0) &&
                header.rotary_offset <= (n_evictions > 0 ? first_recent - n_distant : first_distant),
            "rotary positions are not negative", header.rotary_offset);

    require(header.n_recalls >= 0 && header.n_recalled >= 0 && (n_evictions > 0 || header.n_recalls == 0),
            "recalls bring back what was evicted", header.n_recalls);
    require(header.n_rebased == 0 || header.n_rebases > 0 || header.n_recalls > 0,
            "distant tokens are placed by a rebase or a recall", header.n_rebased);
    require(header.rotary_base >= 0 && (header.rotary_base == 0 || (header.n_rebased > 0 && header.n_recalls > 0)) &&
                header.rotary_base <= std::max<int64_t>(0, first_recent - n_distant - header.rotary_offset),
            "recalled tokens stand before recent ones", header.rotary_base);
    require(header.zero == 0, "a number that is not used is 0", header.zero);

    loaded_sequence res     = { empty_stream(), {}, {}, {}, {}, {}, {} };
    res.state.n_keep        = header.n_keep;
    res.state.n_evictions   = n_evictions;
    res.state.n_evicted     = header.n_evicted;
    res.state.pos_exact     = header.pos_exact;
    res.state.pos_prompt    = header.pos_prompt;
    res.state.n_rebases     = header.n_rebases;
    res.state.n_recalls     = header.n_recalls;
    res.state.n_recalled    = header.n_recalled;
    res.state.rotary_offset = header.rotary_offset;
    res.state.rotary_base   = header.rotary_base;

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
        morphkv_window_header with_window{};
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

static void check_header(const morphkv_state_header & header, const morphkv_state_header & own) {
    if (header.magic != own.magic) {
        throw std::runtime_error("this is no state of a MorphKV cache");
    }
    if (header.version < MORPHKV_STATE_VERSION_MIN || header.version > own.version) {
        throw std::runtime_error("the state must have version " + std::to_string(MORPHKV_STATE_VERSION_MIN) + " to " +
                                 std::to_string(own.version) + ", got " + std::to_string(header.version));
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
    auto as_own    = header;
    as_own.version = own.version;
    if (memcmp(&as_own, &own, sizeof(own)) != 0) {
        throw std::runtime_error("the state was saved with other MorphKV parameters, K/V types or another model");
    }
}

//
// all of it
//

std::unique_ptr<morphkv_cache::loaded_state> morphkv_cache::read_state(llama_io_read_i & io, llama_seq_id seq_id,
                                                                       llama_state_seq_flags flags) const {
    const auto [first, last] = saved_range(seq_id);

    morphkv_hashed_reader      in(io);
    const morphkv_state_header own =
        morphkv_make_state_header(params, side, window.get(), rope_limit(), n_rot(), last - first + 1,
                                  archives ? &archives->of(first) : nullptr, flags);
    morphkv_state_header header{};
    header.magic = 0;
    in.read(&header, sizeof(header));
    check_header(header, own);

    auto res       = std::make_unique<loaded_state>();
    res->version   = header.version;
    res->first     = first;
    res->has_pages = archives && !header.has_no_pages;
    for (llama_seq_id s = first; s <= last; ++s) {
        res->sequences.push_back(read_stream(in, header.version));
    }
    in.read_checksum();

    const bool is_on_device = flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
    uint64_t   n_marks      = 0;
    for (llama_seq_id s = first; s <= last; ++s) {
        auto & cur = res->sequences[s - first];
        for_each_slice(s, cur.cells.pos.size(), cur.window, [&](ggml_tensor * t, size_t offset, size_t size) {
            if (is_on_device) {
                // set when the reader goes, unless it is told to discard them
                io.read_tensor(t, offset, size);
            } else {
                cur.slices.emplace_back(size);
                // an empty vector's data() may be null, which llama.cpp would give to memcpy
                if (size > 0) {
                    io.read(cur.slices.back().data(), size);
                }
            }
            in.read_mark(++n_marks);
        });
        if (!archives) {
            continue;
        }
        const size_t page_bytes = archives->of(s).layout.page_bytes;
        for (int64_t i = cur.archive.dropped; res->has_pages && i < cur.archive.n_full(); ++i) {
            auto page = std::make_shared<morphkv_page>(page_bytes);
            io.read(page->data(), page->size());
            uint64_t hash = 0;
            if (in.read_mark(++n_marks, header.version >= 5)) {
                memcpy(&hash, page->data(), std::min(sizeof(hash), page->size()));
                page.reset();
            }
            cur.pages.push_back({ std::move(page), hash });
        }
        cur.tail.resize(page_bytes);
        io.read(cur.tail.data(), cur.tail.size());
        in.read_mark(++n_marks);
    }
    return res;
}

void morphkv_cache::apply_state(std::unique_ptr<loaded_state> state) noexcept {
    llama_seq_id s = state->first;
    for (auto & cur : state->sequences) {
        // a checkpoint's archive is there already
        clear_stream(s, /*clear_archive =*/state->has_pages);
        size_t i = 0;
        for_each_slice(s, cur.cells.pos.size(), cur.window, [&](ggml_tensor * t, size_t offset, size_t size) {
            if (i < cur.slices.size()) {
                ggml_backend_tensor_set(t, cur.slices[i++].data(), offset, size);
            }
        });
        if (state->has_pages) {
            archives->of(s).load(cur.archive, std::move(cur.pages), std::move(cur.tail));
        } else if (archives && !archives->of(s).go_back(cur.archive, cur.tail)) {
            LLAMA_LOG_WARN(
                "%s: MorphKV: the archive of sequence %d is of another text than the checkpoint: it begins anew\n",
                __func__, s);
        }
        set_cell_list(s, 0, cur.cells);
        streams[s] = std::move(cur.state);
        if (window) {
            window->set_run(s, cur.window);
        }
        s++;
    }
    if (archives) {
        archives->tell();
    }
}

void morphkv_cache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    morphkv_error_clear();
    try {
        auto state = read_state(io, seq_id, flags);
        morphkv_require_end(io);
        apply_state(std::move(state));
    } catch (const std::exception & err) {
        // llama.cpp says it to the log alone
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

static std::string read_arch(morphkv_buffer_reader & io) {
    uint32_t n = 0;
    io.read(&n, sizeof(n));
    std::string res(std::min<size_t>(n, io.n_left()), '\0');
    io.read(res.data(), res.size());
    return res;
}

static constexpr uint32_t SEQ_MAGIC = 0xaf143cd8;  // llama.cpp's

void morphkv_load_state(llama_context & ctx, llama_seq_id seq_id, morphkv_buffer_reader io,
                        llama_state_seq_flags flags) {
    if (io.n_left() == 0) {
        throw std::runtime_error("a state is not empty");
    }
    if (seq_id < 0) {
        const std::string arch = read_arch(io), own = llm_arch_name(ctx.get_model().arch);
        if (arch != own) {
            throw std::runtime_error("the state must be of a model of architecture " + own + ", got \"" +
                                     arch.substr(0, 64) + "\"");
        }
    } else {
        uint32_t     magic = 0;
        llama_seq_id saved = 0;
        io.read(&magic, sizeof(magic));
        io.read(&saved, sizeof(saved));
        if (magic != SEQ_MAGIC) {
            throw std::runtime_error("this is no state of a sequence");
        }
    }
    ctx.get_memory()->state_read(io, seq_id, flags);
    morphkv_require_end(io);
    io.apply();
}
