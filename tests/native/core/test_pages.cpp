// How a page is laid out, what its hash says, and where it is kept.

#include "case.h"

#include "core/pages.h"

#include <cstring>

using page_ptr = std::shared_ptr<const morphkv_page>;

static page_ptr page_of(uint8_t value) {
    return std::make_shared<const morphkv_page>(64, value);
}

TEST_CASE(a_page_has_keys_then_values_layer_by_layer) {
    morphkv_page_layout layout(GGML_TYPE_F32, GGML_TYPE_F16);
    layout.add_layer(/*n_head_kv =*/2, /*n_embd_k =*/3, /*n_embd_v =*/5);
    layout.add_layer(1, 4, 2);
    CHECK(layout.k_bytes(0) == 2 * 3 * 4 && layout.v_bytes(0) == 2 * 5 * 2);
    CHECK(layout.k_bytes(1) == 4 * 4 && layout.v_bytes(1) == 2 * 2);
    CHECK(layout.layers[0].k_at == 0 && layout.layers[0].v_at == 16 * 24);
    CHECK(layout.layers[1].k_at == 16 * (24 + 20) && layout.layers[1].v_at == 16 * (24 + 20 + 16));
    CHECK(layout.page_bytes == 16 * (24 + 20 + 16 + 4));
}

TEST_CASE(quantized_rows_are_whole_blocks_of_a_head) {
    morphkv_page_layout layout(GGML_TYPE_Q8_0, GGML_TYPE_Q4_0);
    layout.add_layer(2, 64, 32);
    // a block of 32 values: 34 bytes in q8_0, 18 in q4_0
    CHECK(layout.k_bytes(0) == 2 * 2 * 34 && layout.v_bytes(0) == 2 * 18);
}

TEST_CASE(layouts_that_differ_have_other_hashes) {
    auto hash_of = [](ggml_type k, ggml_type v, int32_t n_head, int64_t n_k, int64_t n_v) {
        morphkv_page_layout layout(k, v);
        layout.add_layer(n_head, n_k, n_v);
        return layout.hash();
    };
    const uint64_t hash = hash_of(GGML_TYPE_F16, GGML_TYPE_F16, 2, 32, 64);
    CHECK(hash != 0 && hash == hash_of(GGML_TYPE_F16, GGML_TYPE_F16, 2, 32, 64));
    CHECK(hash != hash_of(GGML_TYPE_F32, GGML_TYPE_F16, 2, 32, 64));
    CHECK(hash != hash_of(GGML_TYPE_F16, GGML_TYPE_F32, 2, 32, 64));
    CHECK(hash != hash_of(GGML_TYPE_F16, GGML_TYPE_F16, 4, 32, 64));
    CHECK(hash != hash_of(GGML_TYPE_F16, GGML_TYPE_F16, 2, 64, 32));
    CHECK(hash != morphkv_page_layout(GGML_TYPE_F16, GGML_TYPE_F16).hash());
}

TEST_CASE(any_flipped_bit_of_a_page_changes_its_hash) {
    morphkv_page   page(64, 7);
    const uint64_t hash = morphkv_hash_page(page);
    for (size_t bit = 0; bit < 8 * page.size(); ++bit) {
        page[bit / 8] ^= 1 << bit % 8;
        CHECK(morphkv_hash_page(page) != hash);
        page[bit / 8] ^= 1 << bit % 8;
    }
    CHECK(morphkv_hash_page(page) == hash);
}

TEST_CASE(memory_gives_back_the_page_of_a_place) {
    auto       store = morphkv_page_store_ram();
    const auto a = page_of(1), b = page_of(2);
    store->put(3, 30, 0, a);
    store->put(0, 40, 0, b);
    CHECK(store->get(3, 30, 0) == a && store->get(0, 40, 0) == b);
    store->put(3, 31, 0, b);
    CHECK(store->get(3, 31, 0) == b);
}

TEST_CASE(memory_knows_that_a_page_is_lost) {
    auto store = morphkv_page_store_ram();
    store->put(1, 7, 99, nullptr);
    CHECK(has(error_of([&] { store->get(1, 7, 99); }), "page 7 is lost"));
    CHECK(!error_of([&] { store->get(5, 8, 0); }).empty());
}

TEST_CASE(memory_is_given_back_with_an_empty_archive) {
    auto                              store = morphkv_page_store_ram();
    auto                              page  = page_of(1);
    std::weak_ptr<const morphkv_page> seen  = page;
    store->put(0, 0, 0, std::move(page));
    morphkv_archive_header some;
    some.first = 0;
    store->commit(some, {});
    CHECK(!seen.expired());
    store->commit({}, {});
    CHECK(seen.expired());
}

TEST_CASE(memory_holds_nothing_of_another_process) {
    auto store = morphkv_page_store_ram();
    CHECK(store->found().archive.first == -1 && store->record_in(0).i_page == -1);
}

TEST_CASE(places_without_an_end_go_on) {
    const morphkv_page_places places = { 5, 0 };
    CHECK(places.of(5) == 0 && places.of(12) == 7);
}

TEST_CASE(places_of_a_ring_come_again) {
    const morphkv_page_places places = { 5, 3 };
    CHECK(places.of(5) == 0 && places.of(7) == 2 && places.of(8) == 0 && places.of(12) == 1);
}

//
// values
//

// 32 values that each type holds exactly: multiples of a power of two, of which the largest sets the scale.
static std::vector<float> exact_values() {
    std::vector<float> res;
    for (int i = 0; i < 32; ++i) {
        res.push_back(i % 2 == 0 ? 127.0f : -127.0f);
    }
    return res;
}

TEST_CASE(rows_of_the_same_type_are_copied) {
    const std::vector<uint8_t> from = { 1, 2, 3, 4, 5, 6, 7, 8 };
    std::vector<uint8_t>       to(8);
    morphkv_convert_rows(GGML_TYPE_F16, from.data(), GGML_TYPE_F16, to.data(), 2, 2);
    CHECK(from == to);
}

TEST_CASE(rows_come_back_from_each_type) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0 }) {
        const auto           values = exact_values();
        std::vector<uint8_t> rows(ggml_row_size(type, 32));
        std::vector<float>   back(32);
        morphkv_convert_rows(GGML_TYPE_F32, values.data(), type, rows.data(), 1, 32);
        morphkv_convert_rows(type, rows.data(), GGML_TYPE_F32, back.data(), 1, 32);
        CHECK(back == values);
    }
}

TEST_CASE(rows_go_from_one_small_type_to_another) {
    const auto               values = exact_values();
    std::vector<ggml_fp16_t> halves(2 * 32);
    for (size_t i = 0; i < halves.size(); ++i) {
        halves[i] = ggml_fp32_to_fp16(values[i % 32] * (i < 32 ? 1 : 2));
    }
    std::vector<uint8_t> rows(2 * ggml_row_size(GGML_TYPE_Q8_0, 32));
    std::vector<float>   back(2 * 32);
    morphkv_convert_rows(GGML_TYPE_F16, halves.data(), GGML_TYPE_Q8_0, rows.data(), 2, 32);
    morphkv_convert_rows(GGML_TYPE_Q8_0, rows.data(), GGML_TYPE_F32, back.data(), 2, 32);
    for (size_t i = 0; i < back.size(); ++i) {
        CHECK(back[i] == values[i % 32] * (i < 32 ? 1 : 2));
    }
}
