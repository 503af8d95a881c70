// Texts in memory, and as versions 4 and 5 of states had them.
#pragma once

#include "support/check.h"

#include "core/state-format.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <vector>

class bytes_writer : public morphkv_byte_writer {
public:
    void write(const void * from, size_t n) override {
        data.insert(data.end(), (const uint8_t *) from, (const uint8_t *) from + n);
    }

    std::vector<uint8_t> data;
};

class bytes_reader : public morphkv_byte_reader {
public:
    bytes_reader(const uint8_t * data, size_t size) : data(data), size(size) {}
    explicit bytes_reader(const std::vector<uint8_t> & bytes) : bytes_reader(bytes.data(), bytes.size()) {}

    void read(void * to, size_t n) override {
        if (n > n_left()) {
            throw std::runtime_error("the bytes end");
        }
        std::copy_n(data + n_read, n, (uint8_t *) to);
        n_read += n;
    }

    size_t n_left() const { return size - n_read; }

    // What a copy has read since.
    std::vector<uint8_t> read_until(const bytes_reader & later) const {
        return std::vector<uint8_t>(data + n_read, data + later.n_read);
    }

    size_t n_read = 0;

private:
    const uint8_t * data;
    size_t          size;
};

// change: of the fixed part, before version 6.
inline void write_text(
    morphkv_hashed_writer & out, const morphkv_saved_text & saved, bool has_archive, uint32_t version,
    const std::function<void(morphkv_text_header_v5 &)> & change = [](morphkv_text_header_v5 &) {}) {
    if (version >= 6) {
        morphkv_write_text(out, saved, has_archive);
        return;
    }
    const auto & text  = saved.text;
    const auto & group = text.groups.front();
    CHECK(text.groups.size() == 1 && text.positions.next() == text.n_tokens());

    morphkv_text_header_v5 header{};
    header.n_evictions       = group.n_evictions;
    header.n_evicted         = group.n_evicted;
    header.n_rebases         = text.n_rebases;
    header.n_recalls         = text.n_recalls;
    header.n_recalled        = text.n_recalled;
    header.decoded_since_cut = text.decoded_since_cut;
    header.newest_of_prompt  = text.newest_of_prompt;
    header.rotary_offset     = text.rotary_offset;
    header.n_ranked          = group.ranked ? group.ranked->size() : 0;
    header.n_keep            = text.n_keep;
    header.n_used            = text.n_used(0);
    header.first_recent      = group.first_recent();
    header.base              = group.base;
    change(header);
    out.write(&header, version >= 5 ? sizeof(header) : offsetof(morphkv_text_header_v5, base));
    out.write_all(text.queries);
    out.write_all(saved.tokens[0]);
    if (group.ranked) {
        out.write_all(*group.ranked);
    }
    if (text.windowed) {
        const morphkv_ring_header ring = { text.n_tokens() - 1, (uint32_t) text.windowed->cell_of(0),
                                           (uint32_t) text.windowed->n_held };
        out.write(&ring, sizeof(ring));
        out.write_all(saved.windowed_tokens);
    }
    if (has_archive) {
        out.write(&saved.archive, sizeof(saved.archive));
    }
}
