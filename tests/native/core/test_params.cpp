// Parameters: defaults, the rule that each broken value is told by, and what waits for the next context of a thread.

#include "case.h"

#include "core/params.h"

#include <cmath>
#include <limits>
#include <thread>

static morphkv_params changed(const std::function<void(morphkv_params &)> & change) {
    auto res = morphkv_params_default();
    change(res);
    return res;
}

static std::string refusal(const std::function<void(morphkv_params &)> & change) {
    const auto params = changed(change);
    return error_of([&] { morphkv_params_checked(&params); });
}

TEST_CASE(the_defaults_are_right) {
    const auto params = morphkv_params_default();
    CHECK(params.size == sizeof(params) && params.capacity == 1024 && params.window == 32);
    CHECK(refusal([](auto &) {}).empty());
}

TEST_CASE(no_votes_are_those_of_the_window) {
    const auto params = changed([](auto & p) { p.window = 7; });
    CHECK(morphkv_params_checked(&params).votes == 7);
    const auto three = changed([](auto & p) { p.votes = 3; });
    CHECK(morphkv_params_checked(&three).votes == 3);
}

TEST_CASE(a_refusal_is_an_invalid_value) {
    const auto params = changed([](auto & p) { p.window = 0; });
    try {
        morphkv_params_checked(&params);
        CHECK(false);
    } catch (const morphkv_error & error) {
        CHECK(error.status == MORPHKV_STATUS_INVALID);
    }
}

TEST_CASE(no_parameters_are_refused) {
    CHECK(error_of([] { morphkv_params_checked(nullptr); }) == "params must not be NULL");
}

TEST_CASE(parameters_of_another_size_are_refused) {
    CHECK(has(refusal([](auto & p) { p.size = 4; }), "params.size must be"));
}

TEST_CASE(a_capacity_holds_two_tokens_and_no_more_than_ids_can_tell) {
    CHECK(has(refusal([](auto & p) { p.capacity = 1; }), "capacity must be in 2..4194304, got 1"));
    CHECK(has(refusal([](auto & p) { p.capacity = (1 << 22) + 1; }), "capacity must be in"));
    CHECK(refusal([](auto & p) { p.capacity = 2, p.window = 1, p.keep = 0; }).empty());
    CHECK(refusal([](auto & p) { p.capacity = 1 << 22; }).empty());
}

TEST_CASE(a_window_is_smaller_than_the_capacity) {
    CHECK(has(refusal([](auto & p) { p.window = 0; }), "window must be in 1..1023, got 0"));
    CHECK(has(refusal([](auto & p) { p.window = 1024; }), "window must be in"));
    CHECK(refusal([](auto & p) { p.window = 1023, p.keep = 0; }).empty());
}

TEST_CASE(a_capacity_exceeds_what_is_kept_and_the_window) {
    CHECK(has(refusal([](auto & p) { p.keep = 992; }), "capacity must exceed keep + window, got capacity=1024"));
    CHECK(refusal([](auto & p) { p.keep = 991; }).empty());
    CHECK(has(refusal([](auto & p) { p.keep = -1; }), "keep must be in"));
    CHECK(has(refusal([](auto & p) { p.keep = std::numeric_limits<int32_t>::max(); }), "keep must be in"));
}

TEST_CASE(an_interval_is_a_token_or_more) {
    CHECK(has(refusal([](auto & p) { p.interval = 0; }), "interval must be in 1..4194304, got 0"));
    CHECK(refusal([](auto & p) { p.interval = 1; }).empty());
}

TEST_CASE(prompts_have_room_or_none) {
    CHECK(has(refusal([](auto & p) { p.prompt_room = -1; }), "prompt_room must be in 0.."));
    CHECK(refusal([](auto & p) { p.prompt_room = 0; }).empty());
}

TEST_CASE(no_more_vote_than_are_in_the_window) {
    CHECK(has(refusal([](auto & p) { p.votes = 33; }), "votes must be in 0..32, got 33"));
    CHECK(refusal([](auto & p) { p.votes = 32; }).empty());
}

TEST_CASE(policies_and_fusions_are_those_there_are) {
    CHECK(has(refusal([](auto & p) { p.fusion = MORPHKV_FUSION_MAX + 1; }), "fusion must be in"));
    CHECK(has(refusal([](auto & p) { p.policy = -1; }), "policy must be in"));
    CHECK(has(refusal([](auto & p) { p.policy = MORPHKV_POLICY_H2O + 1; }), "policy must be in"));
}

TEST_CASE(a_decay_is_a_part_of_one) {
    for (const float decay : { -0.1f, 1.0f, NAN, INFINITY, -INFINITY }) {
        CHECK(has(refusal([&](auto & p) { p.decay = decay; }), "decay must be in [0, 1)"));
    }
    CHECK(refusal([](auto & p) { p.decay = 0.99f; }).empty());
}

TEST_CASE(protected_tokens_are_a_part_of_the_window_of_which_no_more_vote) {
    const auto params = changed([](auto & p) { p.protect = 100; });
    const auto once   = morphkv_params_checked(&params);
    CHECK(once.window == 132 && once.votes == 32 && once.protect == 0);
    const auto twice = morphkv_params_checked(&once);
    CHECK(twice.window == 132 && twice.votes == 32);
    CHECK(has(refusal([](auto & p) { p.protect = -2; }), "protect must be in -1.."));
    CHECK(
        has(refusal([](auto & p) { p.protect = 988; }),
            "capacity must exceed keep + window + protect, got capacity=1024 with keep=4, window=32 and protect=988"));
    CHECK(refusal([](auto & p) { p.protect = 987; }).empty());
}

TEST_CASE(a_policy_protects_as_many_as_it_takes) {
    auto window = [](int32_t policy, int32_t keep, int32_t window) {
        const auto params = changed([&](auto & p) { p.policy = policy, p.keep = keep, p.window = window; });
        return morphkv_params_checked(&params).window;
    };
    CHECK(window(MORPHKV_POLICY_MORPHKV, 4, 32) == 32 && window(MORPHKV_POLICY_RECENCY, 4, 32) == 32);
    CHECK(window(MORPHKV_POLICY_H2O, 4, 32) == 512 && window(MORPHKV_POLICY_COMMITTEES, 4, 32) == 256);
    CHECK(window(MORPHKV_POLICY_H2O, 4, 600) == 600 && window(MORPHKV_POLICY_H2O, 900, 32) == 123);
}

TEST_CASE(sums_are_carried_where_a_policy_or_a_decay_says_so) {
    auto carried = [](int32_t policy, float decay) {
        return morphkv_params_carried(changed([&](auto & p) { p.policy = policy, p.decay = decay; }));
    };
    CHECK(carried(MORPHKV_POLICY_MORPHKV, 0.0f) == 0.0f && carried(MORPHKV_POLICY_MORPHKV, 0.5f) == 0.5f);
    CHECK(carried(MORPHKV_POLICY_H2O, 0.0f) == 1.0f && carried(MORPHKV_POLICY_COMMITTEES, 0.5f) == 0.5f);
    CHECK(carried(MORPHKV_POLICY_RECENCY, 0.5f) == 0.0f && carried(MORPHKV_POLICY_RANDOM, 0.5f) == 0.0f);
}

TEST_CASE(a_rope_limit_is_a_number_or_none) {
    CHECK(has(refusal([](auto & p) { p.rope_limit = -2; }), "rope_limit must be in -1.."));
    CHECK(refusal([](auto & p) { p.rope_limit = std::numeric_limits<int32_t>::max(); }).empty());
}

TEST_CASE(a_texts_room_is_that_of_steps_or_of_prompts) {
    CHECK(morphkv_params_room(changed([](auto & p) { p.interval = 8, p.prompt_room = 3; })) == 8);
    CHECK(morphkv_params_room(changed([](auto & p) { p.interval = 3, p.prompt_room = 8; })) == 8);
}

//
// the next context
//

TEST_CASE(what_is_pending_is_taken_once) {
    CHECK(!morphkv_pending_get() && !morphkv_pending_take());
    morphkv_pending_set(changed([](auto & p) { p.capacity = 77; }));
    CHECK(morphkv_pending_get()->capacity == 77 && morphkv_pending_get()->capacity == 77);
    CHECK(morphkv_pending_take()->capacity == 77);
    CHECK(!morphkv_pending_get());
}

TEST_CASE(what_is_pending_can_be_taken_back) {
    morphkv_pending_set(morphkv_params_default());
    morphkv_pending_set(std::nullopt);
    CHECK(!morphkv_pending_take());
}

TEST_CASE(what_is_pending_is_the_threads_own) {
    morphkv_pending_set(morphkv_params_default());
    bool is_pending = true;
    std::thread([&] { is_pending = morphkv_pending_get().has_value(); }).join();
    CHECK(!is_pending && morphkv_pending_take());
}

//
// errors
//

TEST_CASE(an_error_stays_until_it_is_cleared) {
    CHECK(morphkv_error_set(MORPHKV_STATUS_FAILED, "a sentence") == MORPHKV_STATUS_FAILED);
    CHECK(morphkv_last_status() == MORPHKV_STATUS_FAILED && std::string(morphkv_last_error()) == "a sentence");
    morphkv_error_clear();
    CHECK(morphkv_last_status() == MORPHKV_STATUS_OK && std::string(morphkv_last_error()).empty());
}

TEST_CASE(an_error_is_the_threads_own) {
    morphkv_error_set(MORPHKV_STATUS_FAILED, "a sentence");
    std::string of_other = "?";
    std::thread([&] { of_other = morphkv_last_error(); }).join();
    CHECK(of_other.empty());
    morphkv_error_clear();
}
