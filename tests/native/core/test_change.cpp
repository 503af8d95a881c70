// What a prompt can have again of a text: by ids that say where they are from.

#include "case.h"

#include "core/change.h"

#include <numeric>

using tokens = std::vector<int32_t>;

static tokens from(int32_t first, int32_t n) {
    tokens res(n);
    std::iota(res.begin(), res.end(), first);
    return res;
}

static tokens operator+(tokens a, const tokens & b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

static morphkv_change change(const tokens & text, const tokens & prompt, int32_t n_cached = 0) {
    return morphkv_plan_change(text.data(), text.size(), prompt.data(), prompt.size(), n_cached);
}

static bool is_nothing(const morphkv_change & x) {
    return x.n_first == 0 && x.n_passage == 0 && x.passage_first == 0 && x.passage_to == 0;
}

static const tokens TEXT = from(0, 2000);
static const tokens NEW  = from(5000, 50);

TEST_CASE(an_edit_goes_back_to_128_tokens_before_it) {
    const auto res = change(TEXT, from(0, 700) + NEW);
    CHECK(res.n_first == 572 && res.n_passage == 0 && res.size == sizeof(res));
}

TEST_CASE(a_prompt_that_is_known_to_its_end) {
    CHECK(change(TEXT, from(0, 700)).n_first == 699 - 128);
    CHECK(change(TEXT, TEXT).n_first == 1999 - 128);
}

TEST_CASE(what_saves_little_is_left) {
    CHECK(change(TEXT, from(0, 256) + NEW).n_first == 128);
    CHECK(is_nothing(change(TEXT, from(0, 255) + NEW)));
    CHECK(change(TEXT, from(0, 700) + NEW, /*n_cached =*/444).n_first == 572);
    CHECK(is_nothing(change(TEXT, from(0, 700) + NEW, /*n_cached =*/445)));
}

TEST_CASE(a_part_left_out) {
    const auto res = change(TEXT, from(0, 100) + from(400, 1600) + NEW);
    CHECK(res.n_first == 100 && res.passage_first == 400 && res.passage_to == 100 && res.n_passage == 1600 - 128);
}

TEST_CASE(a_part_in_place_of_another) {
    for (const int32_t n_new : { 1, 15, 16, 17, 500 }) {
        const auto res = change(TEXT, from(0, 100) + from(7000, n_new) + from(400, 1600) + NEW);
        CHECK(res.n_first == 100 && res.passage_first == 400 && res.passage_to == 100 + n_new);
        CHECK(res.n_passage == 1600 - 128);
    }
}

TEST_CASE(a_passage_that_ends_before_the_text) {
    const auto res = change(TEXT, from(0, 100) + from(400, 500) + from(8000, 400));
    CHECK(res.passage_first == 400 && res.n_passage == 500 - 128);
}

TEST_CASE(a_prompt_ends_within_a_passage) {
    // its last token is decoded
    const auto res = change(TEXT, from(0, 100) + from(400, 600));
    CHECK(res.passage_to == 100 && res.n_passage == 599 - 128);
}

TEST_CASE(a_passage_that_saves_little_is_left) {
    CHECK(change(TEXT, from(0, 20) + from(400, 256 + 128) + NEW).n_passage == 256);
    CHECK(is_nothing(change(TEXT, from(0, 20) + from(400, 200) + NEW)));
    // more is at hand
    CHECK(is_nothing(change(TEXT, from(0, 20) + from(400, 500) + NEW, /*n_cached =*/300)));
}

TEST_CASE(another_text) {
    CHECK(is_nothing(change(TEXT, from(9000, 3000))));
    CHECK(is_nothing(change(TEXT, from(0, 20) + from(9000, 3000))));
    // without a common beginning nothing is there to put it behind
    CHECK(is_nothing(change(TEXT, from(9000, 20) + from(400, 1600))));
}

TEST_CASE(short_ones) {
    for (const int32_t n : { 0, 1, 2, 31, 33 }) {
        CHECK(is_nothing(change(from(0, n), from(0, 700))));
        CHECK(is_nothing(change(TEXT, from(0, n))));
    }
}
