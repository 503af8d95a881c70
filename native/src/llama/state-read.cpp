// Loading: a state is read as a whole and checked, then applied. See llama/state.h.

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

morphkv_text_rules morphkv_cache::text_rules() const {
    std::vector<size_t> n_slots;
    for (const auto & group : groups) {
        n_slots.push_back(0);
        for (const auto & layer : group.side.layers) {
            n_slots.back() += layer.n_head_kv * group.shape.n_distant();
        }
    }
    return { text_shape(),
             params.keep,
             n_slots,
             archives != nullptr,
             can_lose(),
             /*has_images =*/n_pos > 1,
             archives ? morphkv_sources::first_serial(sources_of(0).n_attached()) : 0 };
}

std::unique_ptr<morphkv_loaded_state> morphkv_cache::read_state(llama_io_read_i & io, llama_seq_id seq_id,
                                                                llama_state_seq_flags flags) const {
    const auto [first, last] = saved_range(seq_id);

    morphkv_io_reader     bytes(io);
    morphkv_hashed_reader in(bytes);
    morphkv_state_header  own =
        morphkv_make_state_header(params, cut_layers(), window.get(), rope_limit(), n_rot(), last - first + 1,
                                  archives ? &archives->of(first) : nullptr, flags);
    own.attached = attached_hash();
    morphkv_state_header header{};
    header.magic = 0;
    in.read(&header, sizeof(header));
    morphkv_check_state_header(header, own);

    auto res       = std::make_unique<morphkv_loaded_state>();
    res->version   = header.version;
    res->first     = first;
    res->has_pages = archives && !header.has_no_pages;
    for (llama_seq_id s = first; s <= last; ++s) {
        res->sequences.push_back({ morphkv_read_text(in, header.version, text_rules()), {}, {}, {} });
    }
    in.read_checksum();

    const bool is_on_device = flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
    uint64_t   n_marks      = 0;
    for (llama_seq_id s = first; s <= last; ++s) {
        auto & cur = res->sequences[s - first];
        for (const auto & slice : slices(s, cur.text.text)) {
            if (is_on_device) {
                // set when the reader goes, unless it is told to discard them
                io.read_tensor(slice.tensor, slice.offset, slice.size);
            } else {
                cur.slices.emplace_back(slice.size);
                // an empty vector's data() may be null, which llama.cpp would give to memcpy
                if (slice.size > 0) {
                    io.read(cur.slices.back().data(), slice.size);
                }
            }
            in.read_mark(++n_marks);
        }
        if (!archives) {
            continue;
        }
        const size_t page_bytes = archives->of(s).layout.page_bytes;
        for (int64_t i = cur.text.archive.dropped; res->has_pages && i < cur.text.archive.n_full(); ++i) {
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

void morphkv_cache::apply_state(std::unique_ptr<morphkv_loaded_state> state) noexcept {
    llama_seq_id s = state->first;
    for (auto & cur : state->sequences) {
        // a checkpoint's archive is there already
        clear_sequence(s, /*clears_archive =*/state->has_pages);
        const auto all = slices(s, cur.text.text);
        for (size_t i = 0; i < cur.slices.size(); ++i) {
            ggml_backend_tensor_set(all[i].tensor, cur.slices[i].data(), all[i].offset, all[i].size);
        }
        if (state->has_pages) {
            archives->of(s).load(cur.text.archive, std::move(cur.pages), std::move(cur.tail));
        } else if (archives && !archives->of(s).go_back(cur.text.archive, cur.tail)) {
            LLAMA_LOG_WARN(
                "%s: MorphKV: the archive of sequence %d is of another text than the checkpoint: it begins anew\n",
                __func__, s);
        }
        sequences[s].text = std::move(cur.text.text);
        for (size_t i = 0; i < groups.size(); ++i) {
            morphkv_set_tokens(groups[i], s, sequences[s].text, i, 0, cur.text.tokens[i], n_pos);
        }
        if (window) {
            window->set_tokens(s, sequences[s].text, cur.text.windowed_tokens);
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
