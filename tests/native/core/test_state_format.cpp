// States without their tensors: what is written comes back, today's and that of versions 4 and 5.

#include "saved_texts.h"

#include <cstddef>

using numbers = std::vector<int32_t>;

static bool is_same(const morphkv_text & a, const morphkv_text & b) {
    bool res = a.positions.runs().size() == b.positions.runs().size() && a.groups.size() == b.groups.size() &&
               a.queries == b.queries && a.n_keep == b.n_keep && a.brought_at == b.brought_at &&
               a.decoded_since_cut == b.decoded_since_cut && a.newest_of_prompt == b.newest_of_prompt &&
               a.rotary_offset == b.rotary_offset && a.n_rebases == b.n_rebases && a.n_recalls == b.n_recalls &&
               a.n_recalled == b.n_recalled && a.windowed.has_value() == b.windowed.has_value();
    for (int32_t i = 0; res && i < a.n_tokens(); ++i) {
        res = a.positions.at(i) == b.positions.at(i);
    }
    for (size_t i = 0; res && i < a.groups.size(); ++i) {
        const auto &x = a.groups[i], &y = b.groups[i];
        res = x.n_evictions == y.n_evictions && x.n_evicted == y.n_evicted && x.base == y.base &&
              (x.ranked ? y.ranked && *x.ranked == *y.ranked : !y.ranked);
    }
    if (res && a.windowed) {
        res = a.windowed->n_held == b.windowed->n_held && a.windowed->i_next == b.windowed->i_next;
    }
    return res;
}

static void check_comes_back(const morphkv_saved_text & text, const morphkv_text_shape & shape,
                             bool has_archive = false) {
    const auto bytes = written(text, has_archive);
    const auto back  = read_back(bytes, shape, has_archive);
    CHECK(is_same(text.text, back.text) && back.tokens == text.tokens && back.windowed_tokens == text.windowed_tokens);
    CHECK(!has_archive || memcmp(&back.archive, &text.archive, sizeof(text.archive)) == 0);
    CHECK(written(back, has_archive) == bytes);
}

//
// bytes
//

TEST_CASE(bytes_come_back_with_their_checksum) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    out.write_all(numbers({ 1, 2, 3 }));
    out.write_checksum();
    CHECK(bytes.data.size() == 12 + 8);
    bytes_reader          reader(bytes.data);
    morphkv_hashed_reader in(reader);
    numbers               back(3);
    in.read_all(back);
    in.read_checksum();
    CHECK(back == numbers({ 1, 2, 3 }));
}

// An empty vector's data() may be null, which llama.cpp would give to memcpy.
struct strict_writer : bytes_writer {
    void write(const void * from, size_t n) override {
        CHECK(from && n > 0);
        bytes_writer::write(from, n);
    }
};

TEST_CASE(nothing_is_written_of_an_empty_vector) {
    strict_writer         bytes;
    morphkv_hashed_writer out(bytes);
    out.write_all(numbers());
    CHECK(bytes.data.empty());
    bytes_reader          reader(nullptr, 0);
    morphkv_hashed_reader in(reader);
    numbers               none;
    in.read_all(none);
}

TEST_CASE(a_flipped_bit_breaks_the_checksum) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    out.write_all(numbers({ 1, 2, 3 }));
    out.write_checksum();
    for (size_t bit = 0; bit < 8 * bytes.data.size(); ++bit) {
        auto broken = bytes.data;
        broken[bit / 8] ^= 1 << bit % 8;
        bytes_reader          reader(broken);
        morphkv_hashed_reader in(reader);
        numbers               back(3);
        in.read_all(back);
        CHECK(has(error_of([&] { in.read_checksum(); }), "a checksum is wrong"));
    }
}

TEST_CASE(no_two_marks_are_alike) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    out.write_mark(1);
    out.write_mark(2);
    bytes_reader          reader(bytes.data);
    morphkv_hashed_reader in(reader);
    CHECK(!in.read_mark(1));
    CHECK(has(error_of([&] { in.read_mark(1); }), "a checksum is wrong"));
}

TEST_CASE(a_mark_says_that_a_page_is_lost_where_one_may_be) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    out.write_mark(1, /*is_lost =*/true);
    out.write_mark(2);
    bytes_reader          reader(bytes.data), again(bytes.data);
    morphkv_hashed_reader in(reader), strict(again);
    CHECK(in.read_mark(1, /*may_be_lost =*/true) && !in.read_mark(2, true));
    CHECK(has(error_of([&] { strict.read_mark(1); }), "a checksum is wrong"));
}

TEST_CASE(a_mark_that_the_reader_does_not_give_is_wrong) {
    // llama.cpp's file reader gives less than was asked for without a word
    struct : morphkv_byte_reader {
        void read(void *, size_t) override {}
    } silent;

    morphkv_hashed_reader in(silent);
    CHECK(has(error_of([&] { in.read_checksum(); }), "a checksum is wrong"));
    CHECK(has(error_of([&] { in.read_mark(3, true); }), "a checksum is wrong"));
}

//
// headers
//

static morphkv_state_header header_of() {
    morphkv_state_header res{};
    res.capacity = 8;
    res.window   = 4;
    res.n_seq    = 1;
    res.archive  = 77;
    return res;
}

template <typename F> static std::string refusal(F && change) {
    auto header = header_of();
    change(header);
    return error_of([&] { morphkv_check_state_header(header, header_of()); });
}

TEST_CASE(a_header_of_the_same_cache_is_right) {
    CHECK(refusal([](auto &) {}).empty());
}

TEST_CASE(versions_4_to_6_are_read) {
    for (uint32_t version = 0; version < 9; ++version) {
        const auto why = refusal([&](auto & header) { header.version = version; });
        CHECK(version >= 4 && version <= 6 ? why.empty() : has(why, "must have version 4 to 6, got"));
    }
}

TEST_CASE(what_is_no_state_is_refused) {
    CHECK(has(refusal([](auto & header) { header.magic ^= 1; }), "no state of a MorphKV cache"));
}

TEST_CASE(a_state_of_another_number_of_sequences_is_refused) {
    CHECK(has(refusal([](auto & header) { header.n_seq = 3; }), "must hold 1 sequences, got 3"));
}

TEST_CASE(a_checkpoint_is_no_state) {
    CHECK(has(refusal([](auto & header) { header.has_no_pages = 1; }), "a checkpoint is no state"));
}

TEST_CASE(a_state_of_another_archive_is_refused) {
    CHECK(has(refusal([](auto & header) { header.archive = 0; }), "archive_type"));
}

TEST_CASE(any_other_difference_is_refused) {
    for (size_t i = 0; i < sizeof(morphkv_state_header); ++i) {
        const bool is_version =
            i >= offsetof(morphkv_state_header, version) && i < offsetof(morphkv_state_header, capacity);
        auto header = header_of();
        ((uint8_t *) &header)[i] ^= 0x40;
        CHECK(is_version || !error_of([&] { morphkv_check_state_header(header, header_of()); }).empty());
    }
    CHECK(has(refusal([](auto & header) { header.decay = 0.5f; }), "other MorphKV parameters"));
}

//
// texts
//

TEST_CASE(an_empty_text_comes_back) {
    check_comes_back(saved(morphkv_text(TWO_GROUPS, 2)), TWO_GROUPS);
    check_comes_back(saved(morphkv_text(ONE_GROUP, 2)), ONE_GROUP);
}

TEST_CASE(a_text_before_its_first_eviction_comes_back) {
    check_comes_back(saved(filled_text(TWO_GROUPS, 7)), TWO_GROUPS);
    check_comes_back(saved(filled_text(ONE_GROUP, 10, /*pos =*/100)), ONE_GROUP);
}

TEST_CASE(a_text_of_which_one_group_has_evicted_comes_back) {
    check_comes_back(saved(filled_text(TWO_GROUPS, 15)), TWO_GROUPS);
}

TEST_CASE(a_text_of_which_both_groups_have_evicted_comes_back) {
    for (int32_t n = 21; n < 40; ++n) {
        check_comes_back(saved(filled_text(TWO_GROUPS, n, n % 3)), TWO_GROUPS);
    }
}

TEST_CASE(what_was_taken_back_stays_so) {
    auto text = filled_text(TWO_GROUPS, 26);
    text.remove_from(25);
    check_comes_back(saved(text), TWO_GROUPS);
}

TEST_CASE(kept_tokens_come_back) {
    auto text   = filled_text(TWO_GROUPS, 30);
    text.n_keep = 3;
    check_comes_back(saved(text), TWO_GROUPS);
}

TEST_CASE(images_and_gaps_come_back) {
    auto text = filled_text(ONE_GROUP, 2);
    text.positions.append_image(2, 2, 4);
    text.positions.append(50, 3);
    check_comes_back(saved(text), ONE_GROUP);
}

TEST_CASE(a_rebased_text_comes_back) {
    auto text = filled_text(TWO_GROUPS, 60);
    text.note_rebase(20, { first_ranks(TWO_GROUPS, 0), first_ranks(TWO_GROUPS, 1) });
    check_comes_back(saved(text), TWO_GROUPS);
}

TEST_CASE(a_text_that_was_rebased_before_it_evicted_comes_back) {
    auto text = filled_text(ONE_GROUP, 6, /*pos =*/30);
    text.note_rebase(30, { {} });
    check_comes_back(saved(text), ONE_GROUP);
}

TEST_CASE(a_text_of_which_one_group_recalled_comes_back) {
    auto text = filled_text(TWO_GROUPS, 60);
    text.note_recall(1, /*base =*/20, first_ranks(TWO_GROUPS, 1), 5);
    check_comes_back(saved(text), TWO_GROUPS);
}

TEST_CASE(what_its_archive_holds_comes_back) {
    auto text             = saved(filled_text(ONE_GROUP, 60));
    text.archive.first    = 3;
    text.archive.n_tokens = 40;
    text.archive.dropped  = 1;
    text.archive.newest   = 99;
    check_comes_back(text, ONE_GROUP, /*has_archive =*/true);
}

TEST_CASE(texts_follow_each_other) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    const auto            a = saved(filled_text(ONE_GROUP, 5)), b = saved(filled_text(ONE_GROUP, 30));
    morphkv_write_text(out, a, false);
    morphkv_write_text(out, b, false);
    out.write_checksum();
    bytes_reader          reader(bytes.data);
    morphkv_hashed_reader in(reader);
    const auto            rules = rules_of(ONE_GROUP, false);
    CHECK(is_same(morphkv_read_text(in, MORPHKV_STATE_VERSION, rules).text, a.text));
    CHECK(is_same(morphkv_read_text(in, MORPHKV_STATE_VERSION, rules).text, b.text));
    in.read_checksum();
}

//
// versions 4 and 5
//

// As these wrote it: positions where there are serials now.
static std::vector<uint8_t> written_v5(
    const morphkv_saved_text & saved, uint32_t version, bool has_archive = false,
    const std::function<void(morphkv_text_header_v5 &)> & change = [](auto &) {}) {
    bytes_writer          bytes;
    morphkv_hashed_writer out(bytes);
    write_text(out, saved, has_archive, version, change);
    out.write_checksum();
    return bytes.data;
}

static const morphkv_text_shape WINDOWED = { ONE_GROUP.groups, 9, 2, 4 };

TEST_CASE(texts_of_versions_4_and_5_are_read) {
    for (const uint32_t version : { 4, 5 }) {
        for (const int32_t n : { 0, 3, 10, 11, 40 }) {
            const auto text = saved(filled_text(WINDOWED, n));
            const auto back = read_back(written_v5(text, version), WINDOWED, false, version);
            CHECK(is_same(back.text, text.text) && back.tokens == text.tokens);
            CHECK(back.windowed_tokens == text.windowed_tokens);
        }
    }
}

TEST_CASE(archives_of_versions_4_and_5_are_read) {
    auto text             = saved(filled_text(ONE_GROUP, 60));
    text.archive.first    = 0;
    text.archive.n_tokens = 40;
    for (const uint32_t version : { 4, 5 }) {
        const auto back = read_back(written_v5(text, version, true), ONE_GROUP, true, version);
        CHECK(back.archive.n_tokens == 40);
    }
}

TEST_CASE(a_rebased_text_of_version_4_is_read) {
    auto text = filled_text(ONE_GROUP, 60);
    text.note_rebase(20, { first_ranks(ONE_GROUP, 0) });
    CHECK(is_same(read_back(written_v5(saved(text), 4), ONE_GROUP, false, 4).text, text));
}

TEST_CASE(a_text_of_version_5_has_recalled_tokens_before_the_recent_ones) {
    auto text = filled_text(ONE_GROUP, 60);
    text.note_recall(0, 40, first_ranks(ONE_GROUP, 0), 5);
    text.brought_at = 0;  // which it does not say
    CHECK(is_same(read_back(written_v5(saved(text), 5), ONE_GROUP, false, 5).text, text));
}

TEST_CASE(a_text_of_an_older_version_is_written_as_one_of_today) {
    const auto text = saved(filled_text(ONE_GROUP, 40));
    CHECK(written(read_back(written_v5(text, 4), ONE_GROUP, false, 4)) == written(text));
}

TEST_CASE(older_versions_know_one_group) {
    const auto text = saved(filled_text(ONE_GROUP, 5));
    CHECK(has(error_of([&] { read_back(written_v5(text, 5), TWO_GROUPS, false, 5); }),
              "before version 6 a text has one group"));
}

TEST_CASE(numbers_that_no_older_version_wrote_are_refused) {
    auto why = [](auto && change) {
        const auto text = saved(filled_text(ONE_GROUP, 40));
        return error_of([&] { read_back(written_v5(text, 5, false, change), ONE_GROUP, false, 5); });
    };
    using header = morphkv_text_header_v5;
    CHECK(why([](header &) {}).empty());
    CHECK(has(why([](header & h) { h.first_distant = 7; }), "begins at position 0"));
    CHECK(has(why([](header & h) { h.zero = 1; }), "not used is 0"));
    CHECK(has(why([](header & h) { h.n_used = 11; }), "more cells"));
    CHECK(has(why([](header & h) { h.n_used = UINT32_MAX; }), "more cells"));
    CHECK(has(why([](header & h) { h.first_recent++; }), "between the runs"));
    CHECK(has(why([](header & h) { h.n_evicted++; }), "between the runs"));
    CHECK(has(why([](header & h) { h.n_evicted = -1, h.first_recent = 3; }), "between the runs"));
    CHECK(has(why([](header & h) { h.n_evicted = int64_t(1) << 32, h.first_recent = 4; }), "between the runs"));
    CHECK(has(why([](header & h) { h.n_evicted = INT32_MAX - 4, h.first_recent = INT32_MAX; }), "30 bits"));
    CHECK(has(why([](header & h) { h.n_ranked = 5; }), "all distant tokens"));
}
