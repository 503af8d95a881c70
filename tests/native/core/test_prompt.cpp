// The reading of a prompt: which tokens are decoded, taken back and decoded again, and when the archive is asked.

#include "case.h"
#include "core/prompt.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

// A sequence of which n_removable tokens can go, and an archive that gives n_recalled tokens each time.
struct fake_sequence {
    int64_t n_recalled;
    int32_t n_removable;
    int     n_asked = 0;
    bool    fails   = false;

    // Of a sequence that goes back to a mark alone: where one has to be at least, and those that were set.
    bool                 has_marks  = false;
    int32_t              first_mark = 0;
    std::vector<int32_t> marks      = {};

    void next(morphkv_prompt & prompt, int32_t n_held) {
        auto recall = [this] {
            n_asked++;
            if (fails) {
                throw std::runtime_error("fails");
            }
            morphkv_recalled res{};
            res.n_recalled = n_recalled;
            return res;
        };
        morphkv_prompt_memory memory{ recall, nullptr, nullptr, nullptr };
        memory.n_removable = [&](int32_t n) {
            if (!has_marks) {
                return std::min(n, n_removable);
            }
            return !marks.empty() && n_held - marks.back() <= n ? n_held - marks.back() : 0;
        };
        if (has_marks) {
            memory.mark = [this, n_held] {
                marks.push_back(n_held);
            };
            memory.first_mark = [this, n_held, &prompt](int32_t n) {
                CHECK(n == prompt.n_tokens - 1 - n_held);
                return first_mark;
            };
        }
        morphkv_prompt_step(prompt, n_held, memory);
    }
};

static void check_next(const morphkv_prompt & prompt, int32_t n_back, int32_t n_end, int32_t n_recalls) {
    CHECK(prompt.n_back == n_back && prompt.n_end == n_end && prompt.n_recalls == n_recalls);
}

TEST_CASE(it_is_read_to_its_last_token_and_its_end_once_more) {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(10, 400);
    seq.next(prompt, 10);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 300);  // a host with smaller batches
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 128, 399, 1);
    CHECK(prompt.stage == MORPHKV_PROMPT_STAGE_AGAIN);
    seq.next(prompt, 271);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
    CHECK(prompt.stage == MORPHKV_PROMPT_STAGE_LAST);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 2);
}

TEST_CASE(what_is_decoded_again_is_new_and_can_be_taken_back) {
    for (const int32_t n_removable : { 1000, 50, 0 }) {
        for (const int32_t n_past : { 0, 380, 399 }) {
            for (const int32_t n_redo : { 128, 7, 0 }) {
                fake_sequence seq{ 16, n_removable };
                auto          prompt = morphkv_prompt_begin(n_past, 400);
                prompt.n_redo        = n_redo;
                seq.next(prompt, 399);
                const int32_t n = std::min({ n_removable, 399 - n_past, n_redo });
                check_next(prompt, n, n > 0 ? 399 : 400, 1);
            }
        }
    }
}

TEST_CASE(nothing_is_decoded_again_where_nothing_came_back) {
    fake_sequence seq{ 0, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 400);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
}

TEST_CASE(a_prompt_of_one_token_asks_once) {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 1);
    seq.next(prompt, 0);
    check_next(prompt, 0, 1, 1);
}

TEST_CASE(a_prompt_that_is_whole_asks_nothing) {
    fake_sequence seq{ 16, 1000 };
    auto          prompt = morphkv_prompt_begin(0, 400);
    seq.next(prompt, 400);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 0);
}

TEST_CASE(a_recall_that_fails_says_how_to_go_on) {
    fake_sequence seq{ 16, 1000 };
    seq.fails   = true;
    auto prompt = morphkv_prompt_begin(0, 400);
    try {
        seq.next(prompt, 399);
        CHECK(false);
    } catch (const std::runtime_error &) {
        check_next(prompt, 0, 400, 0);
    }
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.n_asked == 1);
}

//
// with marks
//

static fake_sequence marked(int64_t n_recalled, int32_t first_mark = 0) {
    fake_sequence res{ n_recalled, 0 };
    res.has_marks  = true;
    res.first_mark = first_mark;
    return res;
}

TEST_CASE(with_marks_it_is_marked_where_its_end_begins_and_before_its_last_token) {
    auto seq    = marked(16);
    auto prompt = morphkv_prompt_begin(10, 400);
    seq.next(prompt, 10);
    check_next(prompt, 0, 271, 0);
    seq.next(prompt, 200);  // a host with smaller batches
    check_next(prompt, 0, 271, 0);
    CHECK(seq.marks.empty());
    seq.next(prompt, 271);
    check_next(prompt, 0, 399, 0);
    CHECK(seq.marks == std::vector<int32_t>({ 271 }));
    seq.next(prompt, 300);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 128, 399, 1);
    seq.next(prompt, 271);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
    CHECK(seq.marks == std::vector<int32_t>({ 271, 399 }) && seq.n_asked == 2);
}

TEST_CASE(a_short_prompt_is_marked_where_it_begins) {
    auto seq    = marked(16);
    auto prompt = morphkv_prompt_begin(300, 350);
    seq.next(prompt, 300);
    check_next(prompt, 0, 349, 0);
    seq.next(prompt, 349);
    check_next(prompt, 49, 349, 1);
    seq.next(prompt, 300);
    seq.next(prompt, 349);
    CHECK(seq.marks == std::vector<int32_t>({ 300, 349 }));
}

TEST_CASE(a_mark_is_where_it_can_be_gone_back_to) {
    auto seq    = marked(16, /*first_mark =*/350);  // an eviction in the prompt's end is to come
    auto prompt = morphkv_prompt_begin(10, 400);
    seq.next(prompt, 271);
    check_next(prompt, 0, 350, 0);
    seq.next(prompt, 350);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 49, 399, 1);

    seq    = marked(16, /*first_mark =*/410);
    prompt = morphkv_prompt_begin(10, 400);
    seq.next(prompt, 10);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 1);
    CHECK(seq.marks == std::vector<int32_t>({ 399 }));
}

TEST_CASE(a_mark_that_lies_too_far_back_is_not_gone_back_to) {
    auto seq    = marked(16);
    seq.marks   = { 100 };  // of an earlier prompt
    auto prompt = morphkv_prompt_begin(300, 350);
    seq.next(prompt, 340);  // the host has decoded on
    check_next(prompt, 0, 349, 0);
    seq.next(prompt, 349);
    check_next(prompt, 0, 350, 1);
    CHECK(seq.marks == std::vector<int32_t>({ 100, 349 }));
}

TEST_CASE(without_recalls_it_is_marked_before_its_last_token) {
    auto seq     = marked(16);
    auto prompt  = morphkv_prompt_begin(0, 400);
    prompt.stage = MORPHKV_PROMPT_STAGE_LAST;
    seq.next(prompt, 0);
    check_next(prompt, 0, 399, 0);
    seq.next(prompt, 399);
    check_next(prompt, 0, 400, 0);
    seq.next(prompt, 400);
    check_next(prompt, 0, 400, 0);
    CHECK(seq.marks == std::vector<int32_t>({ 399 }) && seq.n_asked == 0);

    fake_sequence plain{ 16, 1000 };
    prompt       = morphkv_prompt_begin(0, 400);
    prompt.stage = MORPHKV_PROMPT_STAGE_LAST;
    plain.next(prompt, 0);
    check_next(prompt, 0, 400, 0);
}

TEST_CASE(a_recall_that_fails_leaves_its_mark) {
    auto seq    = marked(16);
    seq.fails   = true;
    auto prompt = morphkv_prompt_begin(0, 400);
    seq.next(prompt, 271);
    try {
        seq.next(prompt, 399);
        CHECK(false);
    } catch (const std::runtime_error &) {
        check_next(prompt, 0, 400, 0);
    }
    CHECK(seq.marks == std::vector<int32_t>({ 271, 399 }));
}
