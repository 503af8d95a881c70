// The index of an archive: the mean key of each page, layer and KV head, by place.

#include "core/archive.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

void morphkv_archive::reserve_places(size_t n) {
    hashes.resize(std::max(hashes.size(), n));
    if (n <= n_reserved) {
        return;
    }
    size_t n_new = std::max<size_t>({ 64, n, 2 * n_reserved });
    if (places.n_ring > 0) {
        n_new = std::max<size_t>(n, std::min<size_t>(n_new, places.n_ring));
    }
    std::vector<size_t> new_at;
    size_t              n_bytes = 0;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        new_at.push_back(n_bytes);
        n_bytes += GGML_PAD(n_new * layout.index_bytes(il), 64);
    }
    decltype(index) grown((char *) morphkv_malloc_aligned(n_bytes));
    if (!grown) {
        throw std::runtime_error("no memory for an index of " + std::to_string(n_bytes) + " bytes");
    }
    // attention over a place that is empty must not meet NaN
    memset(grown.get(), 0, n_bytes);
    for (size_t il = 0; index && il < layout.layers.size(); ++il) {
        memcpy(grown.get() + new_at[il], index.get() + index_at[il], n_reserved * layout.index_bytes(il));
    }
    index       = std::move(grown);
    index_bytes = n_bytes;
    index_at    = std::move(new_at);
    n_reserved  = n_new;
}

void morphkv_archive::index_page(size_t i_place, const morphkv_page * page) {
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        const auto &       layer  = layout.layers[il];
        const int64_t      n_embd = layer.n_head_kv * layer.n_embd_k;
        std::vector<float> keys(N_PAGE * n_embd), mean(n_embd);
        if (page) {
            morphkv_convert_rows(layout.type_k, page->data() + layer.k_at, GGML_TYPE_F32, keys.data(),
                                 N_PAGE * layer.n_head_kv, layer.n_embd_k);
        }
        for (int32_t i = 0; i < N_PAGE; ++i) {
            for (int64_t j = 0; j < n_embd; ++j) {
                mean[j] += keys[i * n_embd + j] / N_PAGE;
            }
        }
        morphkv_convert_rows(GGML_TYPE_F32, mean.data(), layout.index_type(il),
                             (char *) index_rows(il) + i_place * layout.index_bytes(il), layer.n_head_kv,
                             layer.n_embd_k);
    }
}

int64_t morphkv_archive::n_places() const {
    if (n_full() == n_dropped()) {
        return 0;  // and there may be no index
    }
    const int64_t n = n_full() - places.i_first;
    return places.n_ring > 0 ? std::min(n, places.n_ring) : n;
}

int64_t morphkv_archive::page_in(int64_t i_place) const {
    int64_t i_page = places.i_first + i_place;
    if (places.n_ring > 0) {
        const int64_t n_before = std::max<int64_t>(0, n_dropped() - i_page);
        i_page += (n_before + places.n_ring - 1) / places.n_ring * places.n_ring;
    }
    return i_page >= n_dropped() && i_page < n_full() ? i_page : -1;
}
