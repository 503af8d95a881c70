// States that nobody wrote: each rule refuses with its sentence, and what no rule refuses harms nothing.

#include "saved_texts.h"

#include "core/plan.h"

#include <algorithm>
#include <random>

// Both groups have evicted and have ranks, of which those of the first come from a recall; a gap in its positions; an archive.
static morphkv_saved_text rich_text() {
    auto text = filled_text(TWO_GROUPS, 51);
    text.note_rebase(20, { first_ranks(TWO_GROUPS, 0), first_ranks(TWO_GROUPS, 1) });
    text.note_recall(0, /*base =*/19, first_ranks(TWO_GROUPS, 0), 5);
    text.append(53, 1, false);
    auto res             = saved(text);
    res.archive.first    = 0;
    res.archive.n_tokens = 40;
    return res;
}

static morphkv_saved_text poor_text() {
    return saved(filled_text(TWO_GROUPS, 5));
}

static std::string why_not(const morphkv_saved_text & text, bool has_archive = true) {
    return error_of([&] { read_back(written(text, has_archive), TWO_GROUPS, has_archive); });
}

// Why a text that was right until this change is refused.
template <typename F> static std::string refusal(F && change, morphkv_saved_text text = rich_text()) {
    CHECK(why_not(text).empty());
    change(text);
    return why_not(text);
}

//
// counters
//

using saved_text = morphkv_saved_text;

TEST_CASE(the_texts_of_these_cases_are_right) {
    CHECK(why_not(rich_text()).empty() && why_not(poor_text()).empty());
}

TEST_CASE(an_eviction_evicts_a_token_or_more) {
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].n_evictions = 1000; }), "evictions evict"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[1].n_evictions = -1; }), "evictions evict"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].n_evictions = 0; }), "no eviction evicts nothing"));
}

TEST_CASE(cells_are_those_of_the_cache) {
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].n_evicted -= 4; }), "more cells"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[1].n_evicted = INT32_MIN; }), "more cells"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[1].n_evicted = INT32_MAX; }), "more cells"));
}

TEST_CASE(a_recent_token_is_left) {
    CHECK(has(refusal([](saved_text & s) {
                  s.text.groups[0].n_evicted = s.text.n_tokens() - 4;
                  s.tokens[0].resize(4);
              }),
              "a recent token is left"));
}

TEST_CASE(some_slots_are_not_kept) {
    CHECK(has(refusal([](saved_text & s) { s.text.n_keep = 4; }), "some slots are not kept"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_keep = -1; }), "some slots are not kept"));
}

TEST_CASE(marks_are_places_of_the_text) {
    CHECK(has(refusal([](saved_text & s) { s.text.decoded_since_cut = -1; }), "exact_pos"));
    CHECK(has(refusal([](saved_text & s) { s.text.decoded_since_cut = 53; }), "exact_pos"));
    CHECK(has(refusal([](saved_text & s) { s.text.newest_of_prompt = -2; }), "pos_prompt"));
    CHECK(has(refusal([](saved_text & s) { s.text.newest_of_prompt = 53; }), "pos_prompt"));
}

TEST_CASE(rebases_and_recalls_are_counted) {
    CHECK(has(refusal([](saved_text & s) { s.text.n_rebases = 21; }), "rebases are counted"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_rebases = -1; }), "rotary positions"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_rebases = -1; }, poor_text()), "rebases are counted"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_recalls = -1; }), "recalled tokens stand"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_recalled = -1; }), "recalled tokens are counted"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_recalls = 1; }, poor_text()), "recalls bring back"));
}

TEST_CASE(recalls_brought_something_within_the_text) {
    CHECK(has(refusal([](saved_text & s) { s.text.brought_at = -1; }), "a recall brings tokens within"));
    CHECK(has(refusal([](saved_text & s) { s.text.brought_at = 53; }), "a recall brings tokens within"));
    CHECK(has(refusal([](saved_text & s) { s.text.brought_at = 1; }, poor_text()), "a recall brings tokens within"));
}

TEST_CASE(a_query_has_the_row_of_its_token) {
    CHECK(has(refusal([](saved_text & s) { std::swap(s.text.queries[0], s.text.queries[1]); }), "a query has a row"));
    CHECK(has(refusal([](saved_text & s) { s.text.queries[0] = 52; }), "a query has a row"));
    CHECK(has(refusal([](saved_text & s) { s.text.queries[0] = -4; }), "a query has a row"));
    CHECK(refusal([](saved_text & s) { s.text.queries[0] = -1; }).empty());
}

TEST_CASE(tokens_are_not_negative) {
    CHECK(has(refusal([](saved_text & s) { s.tokens[0][0] = -2; }), "a token is not negative"));
    CHECK(has(refusal([](saved_text & s) { s.tokens[1].back() = INT32_MIN; }), "a token is not negative"));
    CHECK(has(refusal([](saved_text & s) { s.windowed_tokens[3] = -2; }), "a token is not negative"));
    // llama.cpp's "none"
    CHECK(refusal([](saved_text & s) { s.tokens[0][0] = -1; }).empty());
}

//
// positions
//

TEST_CASE(positions_are_right_runs) {
    auto with = [](std::vector<morphkv_run> runs) {
        return refusal([&](saved_text & s) { s.text.positions.set(runs); }, poor_text());
    };
    CHECK(with({ { 0, 5, 0, 0 } }).empty());
    CHECK(has(with({ { 0, 3, 0, 0 }, { 4, 1, 9, 0 } }), "runs of tokens follow"));
    CHECK(has(with({ { 0, 3, 5, 0 }, { 3, 2, 7, 0 } }), "positions grow"));
    CHECK(has(with({ { 0, 5, INT32_MAX / 2 - 4, 0 } }), "positions grow"));
    CHECK(has(with({ { 0, 5, 0, -2 } }), "columns"));
}

TEST_CASE(rotary_positions_are_not_negative) {
    CHECK(has(refusal([](saved_text & s) { s.text.rotary_offset = -1; }), "rotary positions"));
    CHECK(has(refusal([](saved_text & s) { s.text.rotary_offset = 44; }), "rotary positions"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_rebases = 0; }), "rotary positions"));
    // a new text whose first token came to less than 0
    CHECK(has(refusal([](saved_text & s) { s.text.rotary_offset = s.text.n_rebases = 1; }, poor_text()),
              "rotary positions"));
    CHECK(has(refusal([](saved_text & s) { s.text.rotary_offset = s.text.n_rebases = 1; },
                      saved(morphkv_text(TWO_GROUPS, 2))),
              "rotary positions"));
}

static void set_rank(saved_text & s, size_t i_group, size_t i, int32_t serial) {
    auto ranked                   = *s.text.groups[i_group].ranked;
    ranked[i]                     = serial;
    s.text.groups[i_group].ranked = std::make_shared<std::vector<int32_t>>(ranked);
}

TEST_CASE(ranks_are_in_order_head_by_head) {
    CHECK(has(refusal([](saved_text & s) { set_rank(s, 0, 1, 0); }), "in order"));
    CHECK(has(refusal([](saved_text & s) { set_rank(s, 0, 4, -1); }), "in order"));
    CHECK(has(refusal([](saved_text & s) { set_rank(s, 1, 20, s.text.groups[1].first_recent()); }), "in order"));
    CHECK(refusal([](saved_text & s) { set_rank(s, 1, 20, s.text.groups[1].first_recent() - 1); }).empty());
}

TEST_CASE(all_distant_tokens_have_a_rank_or_none) {
    CHECK(has(refusal([](saved_text & s) {
                  s.text.groups[1].ranked = std::make_shared<std::vector<int32_t>>(std::vector<int32_t>({ 1, 2, 3 }));
              }),
              "all distant tokens"));
    CHECK(has(refusal(
                  [](saved_text & s) {
                      s.text.groups[0].ranked = std::make_shared<std::vector<int32_t>>(first_ranks(TWO_GROUPS, 0));
                  },
                  poor_text()),
              "all distant tokens"));
    CHECK(has(refusal([](saved_text & s) {
                  s.text.n_rebases = s.text.n_recalls = s.text.rotary_offset = 0;
                  s.text.groups[0].base                                      = 0;
              }),
              "by a rebase or a recall"));
}

TEST_CASE(recalled_tokens_stand_before_recent_ones) {
    // there are 4 slots, and recent tokens stand 20 before their positions
    CHECK(refusal([](saved_text & s) { s.text.groups[0].base = s.text.groups[0].first_recent() - 20 - 4; }).empty());
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].base = s.text.groups[0].first_recent() - 20 - 3; }),
              "recalled tokens stand"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].base = -1; }), "recalled tokens stand"));
    CHECK(has(refusal([](saved_text & s) { s.text.n_recalls = 0; }), "recalled tokens stand"));
    CHECK(has(refusal([](saved_text & s) { s.text.groups[0].ranked = nullptr; }), "recalled tokens stand"));
}

//
// windowed layers
//

TEST_CASE(a_ring_holds_a_window) {
    auto with = [](int32_t n_held, const saved_text & text) {
        return refusal(
            [&](saved_text & s) {
                s.text.windowed->n_held = n_held;
                s.windowed_tokens.resize(std::max(0, n_held));
            },
            text);
    };
    const auto words = saved(filled_text(TWO_GROUPS, 49));
    CHECK(with(3, words).empty());  // the next token attends to them and itself
    CHECK(has(with(2, words), "hold a window"));
    // behind a gap that is less
    CHECK(with(1, rich_text()).empty());
    CHECK(has(with(0, words), "tokens of the text"));
    CHECK(has(with(10, words), "tokens of the text"));
    CHECK(has(with(-1, words), "tokens of the text"));
}

TEST_CASE(a_short_text_is_in_the_ring_as_a_whole) {
    CHECK(has(refusal(
                  [](saved_text & s) {
                      s.text.windowed->n_held = 6;
                      s.windowed_tokens.resize(6);
                  },
                  poor_text()),
              "tokens of the text"));
}

// Bytes of the ring's header, in a text without an archive.
static std::string with_ring(const morphkv_saved_text & text, const morphkv_ring_header & ring) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    auto                  without = text;
    without.text.windowed.reset();
    morphkv_write_text(out, without, false);
    out.write(&ring, sizeof(ring));
    out.write_all(text.windowed_tokens);
    out.write_checksum();
    return error_of([&] { read_back(bytes.data, TWO_GROUPS); });
}

TEST_CASE(a_ring_has_the_texts_newest_token_in_a_cell) {
    CHECK(with_ring(poor_text(), { 4, 4, 5 }).empty());
    CHECK(has(with_ring(poor_text(), { 3, 4, 5 }), "the same newest token"));
    CHECK(has(with_ring(poor_text(), { 4, 9, 5 }), "a token is in a cell"));
    CHECK(has(with_ring(poor_text(), { 4, UINT32_MAX, 5 }), "a token is in a cell"));
}

TEST_CASE(a_ring_of_an_empty_text_begins_anywhere) {
    CHECK(with_ring(saved(morphkv_text(TWO_GROUPS, 2)), { 77, 3, 0 }).empty());
}

//
// archives
//

TEST_CASE(what_is_archived_has_left_the_window) {
    const int32_t first_recent = rich_text().text.groups[0].first_recent();
    CHECK(refusal([&](saved_text & s) { s.archive.n_tokens = first_recent; }).empty());
    CHECK(has(refusal([&](saved_text & s) { s.archive.n_tokens = first_recent + 1; }), "left the window"));
}

TEST_CASE(before_an_eviction_nothing_is_archived) {
    CHECK(has(refusal(
                  [](saved_text & s) {
                      s.archive.first    = 0;
                      s.archive.n_tokens = 1;
                  },
                  poor_text()),
              "left the window"));
}

TEST_CASE(what_another_group_has_evicted_is_not_archived) {
    // the second group alone has evicted: the window of the first holds all 9 tokens
    morphkv_text_shape shape = TWO_GROUPS;
    std::swap(shape.groups[0], shape.groups[1]);
    auto text             = saved(filled_text(shape, 12));
    text.archive.first    = 0;
    text.archive.n_tokens = 7;
    CHECK(!text.text.groups[0].has_evicted() && text.text.groups[1].has_evicted());
    CHECK(has(error_of([&] { read_back(written(text, true), shape, true); }), "left the window"));
}

TEST_CASE(an_archive_has_a_right_header) {
    CHECK(has(refusal([](saved_text & s) { s.archive.dropped = 3; }), "pages that were dropped"));
    CHECK(has(refusal([](saved_text & s) { s.archive.first = -1; }), "an archive begins"));
    CHECK(has(refusal([](saved_text & s) { s.archive.n_tokens = -1; }), "a number of tokens"));
}

//
// bits
//

TEST_CASE(a_state_that_ends_early_is_refused) {
    const auto bytes = written(rich_text(), true);
    for (size_t n = 0; n < bytes.size(); ++n) {
        CHECK(!error_of([&] { read_back({ bytes.begin(), bytes.begin() + n }, TWO_GROUPS, true); }).empty());
    }
}

TEST_CASE(any_flipped_bit_is_refused) {
    for (const auto & text : { rich_text(), poor_text() }) {
        auto bytes = written(text, true);
        for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
            bytes[bit / 8] ^= 1 << bit % 8;
            CHECK(!error_of([&] { read_back(bytes, TWO_GROUPS, true); }).empty());
            bytes[bit / 8] ^= 1 << bit % 8;
        }
    }
}

// All that a cache asks of a text, and does with it.
static void use(morphkv_saved_text saved) {
    auto &        text     = saved.text;
    const int32_t n        = text.n_tokens();
    const auto    can_lose = rules_of(TWO_GROUPS, false).can_lose;
    CHECK(n >= 0 && text.positions.next() >= 0 && text.positions.next() <= INT32_MAX / 2);
    for (size_t i = 0; i < text.groups.size(); ++i) {
        const auto & group = text.groups[i];
        CHECK((int32_t) saved.tokens[i].size() == text.n_used(i) && text.n_used(i) <= group.shape.n_limit);
        CHECK(!group.has_evicted() || text.n_used(i) > group.shape.n_distant());
        for (int32_t j = group.shape.n_distant(); j < text.n_used(i); ++j) {
            CHECK(group.serial_in(j) < n && text.rotary_position(i, 0, group.serial_in(j)) >= 0);
        }
        for (size_t j = 0; group.ranked && j < group.ranked->size(); ++j) {
            CHECK(text.rotary_position(i, j / group.shape.n_distant(), (*group.ranked)[j]) >= 0);
        }
    }
    for (const int32_t serial : text.voters()) {
        CHECK(serial >= 0 && serial < n);
    }
    for (const int32_t at :
         { text.first_possible(can_lose), text.first_complete(can_lose), text.first_exact(can_lose) }) {
        CHECK(at >= 0 && at <= n);
    }
    CHECK(text.windowed->n_held <= n && text.windowed->n_spanned() <= text.windowed->n_cells);

    // goes back as far as it can, and on
    if (morphkv_plan_removal(text, text.pos_of(text.first_complete(can_lose) + 1), -1, can_lose) ==
        morphkv_removal::TAIL) {
        text.remove_from(text.first_complete(can_lose) + 1);
        CHECK(text.windowed->n_held >= 0 && text.windowed->cell_of(0) < text.windowed->n_cells);
    }
    morphkv_plan                      plan({ text }, { { 40, 1, 0 } }, 3, /*limit =*/1000);
    std::vector<morphkv_planned_text> planned;
    for (int32_t i = 0; i < 40; ++i) {
        CHECK(plan.n_most(1, true) == 1 && plan.add({ 0 }, 1, planned));
    }
}

static std::vector<uint8_t> with_checksum(std::vector<uint8_t> bytes) {
    morphkv_byte_hash hash;
    hash.add(bytes.data(), bytes.size() - sizeof(hash.value));
    memcpy(bytes.data() + bytes.size() - sizeof(hash.value), &hash.value, sizeof(hash.value));
    return bytes;
}

// Returns whether it is loaded; then it is one that could have been written.
static bool is_loaded(const std::vector<uint8_t> & bytes) {
    std::optional<morphkv_saved_text> text;
    error_of([&] { text = read_back(with_checksum(bytes), TWO_GROUPS, true); });
    if (text) {
        const auto again = written(*text, true);
        CHECK(written(read_back(again, TWO_GROUPS, true), true) == again);
        use(std::move(*text));
    }
    return text.has_value();
}

TEST_CASE(a_flipped_bit_with_a_right_checksum_is_refused_or_harmless) {
    for (const auto & text : { rich_text(), poor_text() }) {
        auto bytes    = written(text, true);
        int  n_loaded = 0;
        for (size_t bit = 0; bit < 8 * (bytes.size() - 8); ++bit) {
            bytes[bit / 8] ^= 1 << bit % 8;
            n_loaded += is_loaded(bytes);
            bytes[bit / 8] ^= 1 << bit % 8;
        }
        CHECK(n_loaded > 0);
    }
}

TEST_CASE(hostile_numbers_with_a_right_checksum_are_refused_or_harmless) {
    const int32_t numbers[] = { 0, 1, -1, 4, 53, 1 << 20, INT32_MAX / 2, INT32_MAX, INT32_MIN };
    std::mt19937  random(4);
    for (const auto & text : { rich_text(), poor_text() }) {
        const auto right = written(text, true);
        for (int32_t n = 0; n < 3000; ++n) {
            auto bytes = right;
            for (uint32_t i = 0; i <= random() % 3; ++i) {
                // one or two of the header's numbers, or of the others
                const size_t n_words = random() % 2 == 0 ? 32 : (bytes.size() - 8) / 4;
                memcpy(bytes.data() + random() % n_words * 4, &numbers[random() % 9], 4);
            }
            is_loaded(bytes);
        }
    }
}
