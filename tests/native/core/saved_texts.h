// Texts of two cut groups and a ring, as states have them, in bytes.
#pragma once

#include "case.h"
#include "support/text_io.h"

#include "core/state-format.h"

#include <cstring>
#include <stdexcept>

// 4 and 7 distant slots; two heads in the first group, three in the second
const morphkv_text_shape TWO_GROUPS = { { { 8, 4, 2, 10 }, { 12, 5, 4, 20 } },
                                        /*n_ring_cells =*/9,
                                        /*votes =*/2,
                                        /*n_query_rows =*/4 };
const morphkv_text_shape ONE_GROUP  = { { { 8, 4, 2, 10 } }, 0, 2, 4 };

inline morphkv_text_rules rules_of(const morphkv_text_shape & shape, bool has_archive) {
    morphkv_text_rules res{ shape, /*n_keep =*/2, {}, has_archive, [](int32_t lost, int32_t pos) {
                               return pos - lost >= 4;
                           } };
    for (size_t i = 0; i < shape.groups.size(); ++i) {
        res.n_slots.push_back(shape.groups[i].n_distant() * (2 + i));
    }
    return res;
}

inline morphkv_saved_text saved(morphkv_text text) {
    morphkv_saved_text res{ std::move(text), {}, {}, {} };
    for (size_t i = 0; i < res.text.groups.size(); ++i) {
        res.tokens.emplace_back();
        for (int32_t j = 0; j < res.text.n_used(i); ++j) {
            res.tokens[i].push_back(1000 * i + j);
        }
    }
    for (int32_t i = 0; res.text.windowed && i < res.text.windowed->n_held; ++i) {
        res.windowed_tokens.push_back(5000 + i);
    }
    return res;
}

// n tokens, cut wherever a group is full.
inline morphkv_text filled_text(const morphkv_text_shape & shape, int32_t n, int32_t pos = 0) {
    morphkv_text res(shape, 2);
    for (int32_t i = 0; i < n; ++i) {
        for (size_t g = 0; g < res.groups.size(); ++g) {
            if (res.n_used(g) == res.groups[g].shape.n_limit) {
                res.note_cut(g);
            }
        }
        res.append(pos + i, 1, i < n / 2);
    }
    return res;
}

// Each head of each layer has the first tokens in its slots.
inline std::vector<int32_t> first_ranks(const morphkv_text_shape & shape, size_t i_group) {
    std::vector<int32_t> res;
    for (size_t i = 0; i < 2 + i_group; ++i) {
        for (int32_t j = 0; j < shape.groups[i_group].n_distant(); ++j) {
            res.push_back(j);
        }
    }
    return res;
}

inline std::vector<uint8_t> written(const morphkv_saved_text & text, bool has_archive = false) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    morphkv_write_text(out, text, has_archive);
    out.write_checksum();
    return bytes.data;
}

inline morphkv_saved_text read_back(const std::vector<uint8_t> & bytes, const morphkv_text_shape & shape,
                                    bool has_archive = false, uint32_t version = MORPHKV_STATE_VERSION) {
    bytes_reader          reader(bytes);
    morphkv_hashed_reader in(reader);
    auto                  res = morphkv_read_text(in, version, rules_of(shape, has_archive));
    in.read_checksum();
    if (reader.n_left() > 0) {
        throw std::runtime_error("there is more");
    }
    return res;
}
