#include "morphkv-archive.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

static int64_t count_pages(const morphkv_page_layout & layout, uint64_t max_bytes) {
    if (max_bytes == 0) {
        return 0;
    }
    uint64_t page_bytes = layout.page_bytes;
    for (const auto & layer : layout.layers) {
        page_bytes += layer.n_head_kv * layer.n_embd_k * sizeof(ggml_fp16_t);
    }
    return std::max<uint64_t>(1, max_bytes / page_bytes);
}

morphkv_archive::morphkv_archive(const morphkv_page_layout & layout, std::unique_ptr<morphkv_page_store> store,
                                 uint64_t max_bytes)
    : layout(layout),
      store(std::move(store)),
      n_max_pages(count_pages(layout, max_bytes)),
      tail(layout.page_bytes) {
    find_pages();
}

void morphkv_archive::find_pages() {
    morphkv_archive_header found = store->found();
    found.n_tokens               = found.n_full() * N_PAGE;
    if (found.n_tokens == 0) {
        return;
    }
    const int64_t n_room = n_max_pages > 0 ? n_max_pages : found.n_full();
    if (found.n_full() - found.dropped > n_room) {
        throw std::runtime_error("the archive has " + std::to_string(found.n_full() - found.dropped) +
                                 " pages, more than max_bytes allows (" + std::to_string(n_room) + ")");
    }
    i_first_page = found.dropped;
    // killed between a page and the header: the oldest place has a newer page
    if (n_max_pages > 0 && !store->holds(place_of(found.dropped), found.dropped)) {
        found.dropped++;
    }
    for (int64_t i = found.dropped; i < found.n_full(); ++i) {
        if (!store->holds(place_of(i), i)) {
            throw std::runtime_error("the archive is truncated, or was written with another max_bytes: page " +
                                     std::to_string(i) + " is missing");
        }
        const auto page = store->get(place_of(i));
        reserve_places(place_of(i) + 1);
        index_page(place_of(i), *page);
        hashes[place_of(i)] = morphkv_hash_page(*page);
    }
    held = found;
}

void morphkv_archive::set_held(const morphkv_archive_header & header) {
    held        = header;
    held.newest = held.n_full() > held.dropped ? hashes[place_of(held.n_full() - 1)] : 0;
}

void morphkv_archive::append(int32_t first, int32_t n, const rows & rows) {
    if (!stopped.empty()) {
        return;
    }
    if (held.first < 0) {
        held.first = first;
    }
    GGML_ASSERT(first == end());

    for (int32_t i = 0; i < n; ++i) {
        const size_t i_row = held.n_tokens % N_PAGE;
        for (size_t il = 0; il < layout.layers.size(); ++il) {
            const auto & layer = layout.layers[il];
            const size_t nk = layout.k_bytes(il), nv = layout.v_bytes(il);
            memcpy(tail.data() + layer.k_at + i_row * nk, rows.k[il].data() + i * nk, nk);
            memcpy(tail.data() + layer.v_at + i_row * nv, rows.v[il].data() + i * nv, nv);
        }
        if (i_row + 1 < N_PAGE) {
            held.n_tokens++;
            continue;
        }
        try {
            store_page(std::make_shared<const morphkv_page>(tail));
            clear_tail_behind(0);
            store->commit(held);
        } catch (const std::exception & err) {
            stop(err.what());
            break;
        }
    }
    // an archive without a token begins nowhere
    if (held.n_tokens == 0) {
        held.first = -1;
    }
}

void morphkv_archive::store_page(std::shared_ptr<const morphkv_page> page) {
    const int64_t i_page  = n_full();
    const size_t  i_place = place_of(i_page);
    auto          header  = held;
    reserve_places(i_place + 1);
    if (n_max_pages > 0 && i_page - header.dropped == n_max_pages) {
        header.dropped++;
        set_held(header);
    }
    const uint64_t hash = morphkv_hash_page(*page);
    store->put(i_place, i_page, hash, page);
    index_page(i_place, *page);
    hashes[i_place] = hash;
    header.n_tokens = (i_page + 1) * N_PAGE;
    set_held(header);
}

void morphkv_archive::reserve_places(size_t n) {
    hashes.resize(std::max(hashes.size(), n));
    if (n <= n_reserved) {
        return;
    }
    size_t n_new = std::max<size_t>({ 64, n, 2 * n_reserved });
    if (n_max_pages > 0) {
        n_new = std::min<size_t>(n_new, n_max_pages);
    }
    std::vector<size_t> new_at;
    size_t              n_bytes = 0;
    auto                n_embd  = [&](size_t il) {
        return layout.layers[il].n_head_kv * layout.layers[il].n_embd_k;
    };
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        new_at.push_back(n_bytes);
        n_bytes += GGML_PAD(n_new * n_embd(il) * sizeof(ggml_fp16_t), 64);
    }
    ggml_backend_buffer_ptr grown(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), n_bytes));
    if (!grown) {
        throw std::runtime_error("no memory for an index of " + std::to_string(n_bytes) + " bytes");
    }
    // attention over a place that is empty must not meet NaN
    ggml_backend_buffer_clear(grown.get(), 0);
    for (size_t il = 0; index && il < layout.layers.size(); ++il) {
        memcpy((char *) ggml_backend_buffer_get_base(grown.get()) + new_at[il],
               (char *) ggml_backend_buffer_get_base(index.get()) + index_at[il],
               n_reserved * n_embd(il) * sizeof(ggml_fp16_t));
    }
    index      = std::move(grown);
    index_at   = std::move(new_at);
    n_reserved = n_new;
}

void morphkv_archive::index_page(size_t i_place, const morphkv_page & page) {
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        const auto &       layer  = layout.layers[il];
        const int64_t      n_embd = layer.n_head_kv * layer.n_embd_k;
        std::vector<float> keys(N_PAGE * n_embd), mean(n_embd);
        morphkv_convert_rows(layout.type_k, page.data() + layer.k_at, GGML_TYPE_F32, keys.data(),
                             N_PAGE * layer.n_head_kv, layer.n_embd_k);
        for (int32_t i = 0; i < N_PAGE; ++i) {
            for (int64_t j = 0; j < n_embd; ++j) {
                mean[j] += keys[i * n_embd + j] / N_PAGE;
            }
        }
        auto * base = (char *) ggml_backend_buffer_get_base(index.get()) + index_at[il];
        ggml_fp32_to_fp16_row(mean.data(), (ggml_fp16_t *) base + i_place * n_embd, n_embd);
    }
}

void morphkv_archive::truncate(int32_t pos) {
    if (pos >= end()) {
        return;
    }
    const int64_t n      = pos - held.first;
    const int64_t i_page = n / N_PAGE;
    if (n <= 0 || i_page < held.dropped) {
        clear();
        return;
    }
    if (i_page < n_full()) {
        tail = *get_page(i_page);
    }
    auto header     = held;
    header.n_tokens = n;
    set_held(header);
    clear_tail_behind(n % N_PAGE);
    store->commit(held);
}

void morphkv_archive::clear_tail_behind(size_t n_rows) {
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        const auto & layer = layout.layers[il];
        const size_t nk = layout.k_bytes(il), nv = layout.v_bytes(il);
        memset(tail.data() + layer.k_at + n_rows * nk, 0, (N_PAGE - n_rows) * nk);
        memset(tail.data() + layer.v_at + n_rows * nv, 0, (N_PAGE - n_rows) * nv);
    }
}

void morphkv_archive::clear() {
    stopped.clear();
    if (held.first < 0) {
        return;
    }
    held         = {};
    i_first_page = 0;
    clear_tail_behind(0);
    hashes.clear();
    store->commit(held);
}

void morphkv_archive::copy(const morphkv_archive & other) {
    begin(other.held);
    for (int64_t i = other.n_dropped(); i < other.n_full(); ++i) {
        store_page(other.get_page(i));
    }
    set_tail(other.held, other.tail);
    stopped = other.stopped;
}

ggml_tensor * morphkv_archive::index_tensor(ggml_context * ctx, size_t i_layer) const {
    const auto &  layer = layout.layers[i_layer];
    ggml_tensor * res   = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, layer.n_head_kv * layer.n_embd_k, n_places(), 1);
    ggml_backend_tensor_alloc(index.get(), res, (char *) ggml_backend_buffer_get_base(index.get()) + index_at[i_layer]);
    return res;
}

int64_t morphkv_archive::n_places() const {
    return n_max_pages > 0 ? std::min(n_full(), n_max_pages) : n_full() - i_first_page;
}

int64_t morphkv_archive::page_in(int64_t i_place) const {
    if (n_max_pages == 0) {
        return i_first_page + i_place;
    }
    const int64_t i_page = n_dropped() + (i_place - n_dropped() % n_max_pages + n_max_pages) % n_max_pages;
    return i_page < n_full() ? i_page : -1;
}

void morphkv_archive::read_k(int64_t i_page, size_t i_layer, void * out) const {
    store->get(place_of(i_page), layout.layers[i_layer].k_at, N_PAGE * layout.k_bytes(i_layer), out);
}

void morphkv_archive::read_v(int64_t i_page, size_t i_layer, void * out) const {
    store->get(place_of(i_page), layout.layers[i_layer].v_at, N_PAGE * layout.v_bytes(i_layer), out);
}

size_t morphkv_archive::n_bytes() const {
    return n_places() * layout.page_bytes + (index ? ggml_backend_buffer_get_size(index.get()) : 0);
}

//
// states
//

void morphkv_archive::begin(const morphkv_archive_header & header) {
    clear();
    held.first    = header.first;
    held.dropped  = header.dropped;
    held.n_tokens = header.dropped * N_PAGE;
    i_first_page  = header.dropped;
}

void morphkv_archive::add_page(const morphkv_page & page) {
    store_page(std::make_shared<const morphkv_page>(page));
}

void morphkv_archive::set_tail(const morphkv_archive_header & header, morphkv_page page) {
    tail          = std::move(page);
    held.first    = header.first;
    held.n_tokens = header.n_tokens;
    store->commit(held);
}

bool morphkv_archive::go_back(const morphkv_archive_header & header, const morphkv_page & old_tail) {
    const int64_t n_full_then = header.n_full();
    const bool    is_same     = header.first == held.first && n_full_then >= held.dropped && n_full_then <= n_full() &&
                                (n_full_then == held.dropped || hashes[place_of(n_full_then - 1)] == header.newest);
    if (!is_same) {
        clear();
        return false;
    }
    auto then    = header;
    then.dropped = held.dropped;
    set_held(then);
    tail = old_tail;
    store->commit(held);
    return true;
}
