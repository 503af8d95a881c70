// A state without what llama.cpp writes before it, taken apart and put together.
#pragma once

#include "support/inside.h"
#include "support/text_io.h"

#include "llama/state.h"

// A slice of a tensor, or a page.
struct state_part {
    bytes data;
    bool  is_lost = false;
};

struct state_parts {
    morphkv_state_header            header;
    std::vector<morphkv_saved_text> texts;
    std::vector<state_part>         tensors;
};

// Bytes of each part behind the texts. Its pages may be more than there can be.
inline std::vector<size_t> part_sizes(const context_ptr & ctx, const morphkv_state_header & header,
                                      const std::vector<morphkv_saved_text> & texts, int64_t n_pages_max) {
    std::vector<size_t> res;
    for (const auto & saved : texts) {
        for (const auto & slice : morphkv_inside::slices(ctx, saved.text)) {
            res.push_back(slice.size);
        }
        if (header.archive != 0) {
            const int64_t n_pages = header.has_no_pages ? 0 : saved.archive.n_full() - saved.archive.dropped;
            res.insert(res.end(), std::min(n_pages, n_pages_max) + 1, archive_of(ctx).layout.page_bytes);
        }
    }
    return res;
}

// Throws where it is not right.
inline state_parts take_apart(const context_ptr & ctx, const uint8_t * data, size_t size) {
    state_parts           res{};
    bytes_reader          io(data, size);
    morphkv_hashed_reader in(io);
    in.read(&res.header, sizeof(res.header));
    for (uint32_t i = 0; i < res.header.n_seq; ++i) {
        res.texts.push_back(morphkv_read_text(in, res.header.version, morphkv_inside::text_rules(ctx)));
    }
    in.read_checksum();
    for (const size_t n : part_sizes(ctx, res.header, res.texts, INT64_MAX)) {
        res.tensors.push_back({ bytes(n), false });
        io.read(res.tensors.back().data.data(), n);
        res.tensors.back().is_lost = in.read_mark(res.tensors.size(), /*may_be_lost =*/true);
    }
    CHECK(io.n_left() == 0);
    return res;
}

inline bytes texts_as_bytes(const state_parts & parts) {
    bytes_writer          io;
    morphkv_hashed_writer out(io);
    for (const auto & text : parts.texts) {
        write_text(out, text, parts.header.archive != 0, parts.header.version);
    }
    return io.data;
}

// Behind what llama.cpp writes.
inline bytes put_together(bytes prefix, const morphkv_state_header & header, const bytes & texts,
                          const std::vector<state_part> & tensors) {
    bytes_writer io;
    io.data = std::move(prefix);
    morphkv_hashed_writer out(io);
    out.write(&header, sizeof(header));
    out.write_all(texts);
    out.write_checksum();
    uint64_t n_marks = 0;
    for (const auto & part : tensors) {
        io.write(part.data.data(), part.data.size());
        out.write_mark(++n_marks, part.is_lost);
    }
    return io.data;
}
