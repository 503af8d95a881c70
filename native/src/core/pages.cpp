#include "core/pages.h"

#include "core/hash.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>

//
// layout
//

void morphkv_page_layout::add_layer(int32_t n_head_kv, int64_t n_embd_k, int64_t n_embd_v, int32_t il) {
    layers.push_back({ n_head_kv, n_embd_k, n_embd_v, il < 0 ? (int32_t) layers.size() : il, page_bytes, 0 });
    page_bytes += N_PAGE * k_bytes(layers.size() - 1);
    layers.back().v_at = page_bytes;
    page_bytes += N_PAGE * v_bytes(layers.size() - 1);
}

morphkv_page_layout morphkv_page_layout::in_model_order(ggml_type type_k, ggml_type type_v) const {
    auto ordered = layers;
    std::sort(ordered.begin(), ordered.end(), [](const layer & a, const layer & b) { return a.il < b.il; });
    morphkv_page_layout res(type_k, type_v);
    for (const layer & cur : ordered) {
        res.add_layer(cur.n_head_kv, cur.n_embd_k, cur.n_embd_v, cur.il);
    }
    return res;
}

size_t morphkv_page_layout::find(int32_t il) const {
    const auto it = std::find_if(layers.begin(), layers.end(), [il](const layer & cur) { return cur.il == il; });
    GGML_ASSERT(it != layers.end());
    return it - layers.begin();
}

size_t morphkv_page_layout::k_bytes(size_t i_layer) const {
    return ggml_row_size(type_k, layers[i_layer].n_embd_k) * layers[i_layer].n_head_kv;
}

size_t morphkv_page_layout::v_bytes(size_t i_layer) const {
    return ggml_row_size(type_v, layers[i_layer].n_embd_v) * layers[i_layer].n_head_kv;
}

ggml_type morphkv_page_layout::index_type(size_t i_layer) const {
    return layers[i_layer].n_embd_k % ggml_blck_size(GGML_TYPE_Q8_0) == 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
}

size_t morphkv_page_layout::index_bytes(size_t i_layer) const {
    return ggml_row_size(index_type(i_layer), layers[i_layer].n_embd_k) * layers[i_layer].n_head_kv;
}

uint64_t morphkv_page_layout::hash() const {
    morphkv_word_hash res;
    res.add(type_k);
    res.add(type_v);
    for (const auto & layer : layers) {
        res.add(layer.n_head_kv);
        res.add(layer.n_embd_k);
        res.add(layer.n_embd_v);
    }
    const auto is_before = [](const layer & a, const layer & b) {
        return a.il < b.il;
    };
    if (!std::is_sorted(layers.begin(), layers.end(), is_before)) {
        for (const auto & layer : layers) {
            res.add(layer.il);
        }
    }
    return res.get();
}

uint64_t morphkv_hash_page(const morphkv_page & page) {
    morphkv_word_hash res;
    res.add(page.data(), page.size());
    return res.get();
}

std::string morphkv_archive_header::why_not() const {
    if (n_tokens < 0 || n_tokens > INT32_MAX / 2) {
        return "an archive has a number of tokens, got " + std::to_string(n_tokens);
    }
    if (first < -1 || first > INT32_MAX / 2 || zero != 0 || (first < 0) != (n_tokens == 0)) {
        return "an archive begins where it has tokens, got " + std::to_string(first);
    }
    if (dropped < 0 || dropped > n_full()) {
        return "pages that were dropped had been full, got " + std::to_string(dropped);
    }
    return "";
}

//
// memory
//

namespace {

// What tests let fail.
void check_memory() {
    const int error = morphkv_store_fault();
    if (error == ENOMEM) {
        throw std::bad_alloc();
    }
    if (error != 0) {
        throw std::runtime_error(std::string("memory fails: ") + strerror(error));
    }
}

class ram_store : public morphkv_page_store {
public:
    void put(size_t i_place, int64_t, uint64_t, std::shared_ptr<const morphkv_page> page) override {
        check_memory();
        pages.resize(std::max(pages.size(), i_place + 1));
        pages[i_place] = std::move(page);
    }

    std::shared_ptr<const morphkv_page> get(size_t i_place, int64_t i_page, uint64_t) const override {
        check_memory();
        if (!pages.at(i_place)) {
            throw std::runtime_error("page " + std::to_string(i_page) + " is lost");
        }
        return pages[i_place];
    }

    void commit(const morphkv_archive_header & header, const morphkv_page_places &) override {
        if (header.first < 0) {
            pages.clear();
        }
    }

    record record_in(size_t) const override { return {}; }

private:
    std::vector<std::shared_ptr<const morphkv_page>> pages;
};

}  // namespace

std::unique_ptr<morphkv_page_store> morphkv_page_store_ram() {
    return std::make_unique<ram_store>();
}

//
// values
//

void morphkv_convert_rows(ggml_type from, const void * data, ggml_type to, void * out, int64_t n_rows, int64_t n_row) {
    if (n_row == 0) {
        return;
    }
    if (from == to) {
        memcpy(out, data, n_rows * ggml_row_size(to, n_row));
        return;
    }
    std::vector<float> floats;
    const auto *       values = (const float *) data;
    if (from != GGML_TYPE_F32) {
        floats.resize(n_rows * n_row);
        ggml_get_type_traits(from)->to_float(data, floats.data(), n_rows * n_row);
        values = floats.data();
    }
    if (to == GGML_TYPE_F32) {
        memcpy(out, values, n_rows * n_row * sizeof(float));
    } else {
        ggml_quantize_chunk(to, values, out, 0, n_rows, n_row, nullptr);
    }
}
