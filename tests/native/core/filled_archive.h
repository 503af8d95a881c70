// Archives whose values tell where they belong, and a check that these are there.
#pragma once

#include "check.h"

#include "core/archive.h"

#include <cstdlib>
#include <string>
#include <vector>

constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

// Two layers of other widths.
inline morphkv_page_layout small_layout(ggml_type type = GGML_TYPE_F32) {
    morphkv_page_layout res(type, type);
    res.add_layer(2, 32, 32);
    res.add_layer(1, 64, 32);
    return res;
}

// The same layers, the last one first.
inline morphkv_page_layout swapped_layout() {
    morphkv_page_layout res(GGML_TYPE_F32, GGML_TYPE_F32);
    res.add_layer(1, 64, 32, 1);
    res.add_layer(2, 32, 32, 0);
    return res;
}

// What a page takes of max_bytes: its own bytes and its row of the index.
inline uint64_t bytes_of_pages(uint64_t n) {
    const auto layout = small_layout();
    return n * (layout.page_bytes + layout.index_bytes(0) + layout.index_bytes(1));
}

inline morphkv_archive in_ram(uint64_t n_max_pages = 0) {
    return morphkv_archive(small_layout(), morphkv_page_store_ram(), bytes_of_pages(n_max_pages));
}

inline morphkv_archive in_file(const std::string & path, uint64_t n_max_pages = 0) {
    return morphkv_archive(small_layout(), morphkv_page_store_file(path, small_layout()), bytes_of_pages(n_max_pages));
}

// text: another one has other values.
inline float value_of(int32_t serial, size_t il, bool is_k, size_t i, int32_t text = 0) {
    return serial + 0.25f * il + 0.125f * is_k + i / 512.0f + text * 100000.0f;
}

inline morphkv_archive::rows rows_of(const morphkv_page_layout & layout, int32_t first, int32_t n, int32_t text = 0) {
    morphkv_archive::rows res;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        auto make = [&](size_t n_values, bool is_k) {
            std::vector<float> values;
            for (int32_t t = 0; t < n; ++t) {
                for (size_t i = 0; i < n_values; ++i) {
                    values.push_back(value_of(first + t, layout.layers[il].il, is_k, i, text));
                }
            }
            const auto * begin = (const uint8_t *) values.data();
            return std::vector<uint8_t>(begin, begin + values.size() * sizeof(float));
        };
        res.k.push_back(make(layout.k_bytes(il) / sizeof(float), true));
        res.v.push_back(make(layout.v_bytes(il) / sizeof(float), false));
    }
    return res;
}

inline void append(morphkv_archive & archive, int32_t first, int32_t n, int32_t text = 0) {
    archive.append(first, n, rows_of(archive.layout, first, n, text));
}

// The mean key of a page, (n_head_kv*n_embd_k).
inline std::vector<float> index_row(const morphkv_archive & archive, size_t il, int64_t i_place) {
    const auto &       layer = archive.layout.layers[il];
    std::vector<float> res(layer.n_head_kv * layer.n_embd_k);
    morphkv_convert_rows(archive.layout.index_type(il),
                         (const char *) archive.index_rows(il) + i_place * archive.layout.index_bytes(il),
                         GGML_TYPE_F32, res.data(), layer.n_head_kv, layer.n_embd_k);
    return res;
}

// Every full page that is there has the right rows, and the index has their means.
inline void check_pages(const morphkv_archive & archive, int32_t text = 0) {
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        const size_t nk      = archive.layout.k_bytes(il) / sizeof(float);
        const size_t nv      = archive.layout.v_bytes(il) / sizeof(float);
        int64_t      n_found = 0;
        for (int64_t i_place = 0; i_place < archive.n_places(); ++i_place) {
            const int64_t i_page = archive.page_in(i_place);
            if (i_page < 0) {
                continue;
            }
            n_found++;
            CHECK(i_page >= archive.n_dropped() && i_page < archive.n_full());
            const auto page = archive.find_page(i_page);
            CHECK(page && page->size() == archive.layout.page_bytes);
            const auto * k = (const float *) (page->data() + archive.layout.layers[il].k_at);
            const auto * v = (const float *) (page->data() + archive.layout.layers[il].v_at);
            for (int32_t t = 0; t < N_PAGE; ++t) {
                const int32_t serial = archive.serial_of(i_page) + t;
                CHECK(k[t * nk + 3] == value_of(serial, il, true, 3, text));
                CHECK(v[t * nv + nv - 1] == value_of(serial, il, false, nv - 1, text));
            }
            const float mean = index_row(archive, il, i_place)[3];
            const float want = value_of(archive.serial_of(i_page), il, true, 3, text) + (N_PAGE - 1) / 2.0f;
            // q8_0 is off by up to 1/254 of the largest value in a block, and rounds its scale
            CHECK(std::abs(mean - want) <= want / 200.0f);
        }
        CHECK(n_found == archive.n_full() - archive.n_dropped());
    }
}
