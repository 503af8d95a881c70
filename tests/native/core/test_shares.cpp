// How layers share what all would take alike.

#include "case.h"
#include "check.h"

#include "core/params.h"
#include "core/shares.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

static morphkv_params params_of(int32_t capacity, int32_t room, const std::vector<uint16_t> & large) {
    auto res        = morphkv_params_default();
    res.capacity    = capacity;
    res.prompt_room = room;
    res.n_large     = large.size();
    std::copy(large.begin(), large.end(), res.large_layers);
    return res;
}

static int64_t n_cells(int32_t capacity, const morphkv_params & params) {
    return (capacity + morphkv_params_room(params) + MORPHKV_CELL_STEP - 1) / MORPHKV_CELL_STEP * MORPHKV_CELL_STEP;
}

static int64_t bytes_of(const std::vector<int32_t> & capacities, const std::vector<size_t> & cell_bytes,
                        const morphkv_params & params) {
    int64_t res = 0;
    for (size_t i = 0; i < capacities.size(); ++i) {
        res += n_cells(capacities[i], params) * cell_bytes[i];
    }
    return res;
}

static std::string refusal(const morphkv_params & params, const std::vector<size_t> & cell_bytes) {
    try {
        morphkv_share_capacity(params, cell_bytes, 0);
    } catch (const morphkv_error & err) {
        return err.what();
    }
    return "";
}

// The demo model's layers, and those that its profile finds.
static const std::vector<uint16_t> EIGHT = { 0, 18, 7, 17, 23, 20, 8, 14 };

TEST_CASE(without_large_layers_all_are_alike) {
    const auto res = morphkv_share_capacity(params_of(512, 1024, {}), std::vector<size_t>(30, 100), 0);
    CHECK(res == std::vector<int32_t>(30, 512));
}

TEST_CASE(a_quarter_of_the_layers_gets_what_the_others_leave) {
    const auto res = morphkv_share_capacity(params_of(512, 1024, EIGHT), std::vector<size_t>(30, 100), 0);
    // half for 22 layers; 70 steps of 256 for eight: 6 with 9, 2 with 8
    CHECK(std::count(res.begin(), res.end(), 256) == 22);
    CHECK(res[0] == 1280 && res[20] == 1280 && res[8] == 1024 && res[14] == 1024);
    CHECK(std::accumulate(res.begin(), res.end(), 0) == 30 * 512);
}

TEST_CASE(all_layers_alike_have_the_same_bytes) {
    for (const int32_t capacity : { 300, 512, 640, 1000, 1024, 2048, 4096 }) {
        for (const int32_t room : { 0, 128, 512, 1024, 2000 }) {
            for (const size_t n_layer : { 2, 4, 30, 80 }) {
                std::vector<uint16_t> large;
                for (size_t i = 0; i < (n_layer + 3) / 4; ++i) {
                    large.push_back(n_layer - 1 - i);
                }
                const auto                params = params_of(capacity, room, large);
                const std::vector<size_t> bytes(n_layer, 384);
                const auto                res   = morphkv_share_capacity(params, bytes, 0);
                const int64_t             alike = n_cells(capacity, params) * 384 * n_layer;
                CHECK(bytes_of(res, bytes, params) == alike);
                CHECK(*std::min_element(res.begin(), res.end()) > params.keep + params.window);
            }
        }
    }
}

TEST_CASE(layers_of_other_sizes_share_bytes_and_not_cells) {
    std::vector<size_t> bytes(30, 200);
    bytes[3]             = 0;    // nothing is cut
    bytes[0]             = 800;  // of the large ones
    bytes[5]             = 100;
    const auto    params = params_of(1024, 1024, EIGHT);
    const auto    res    = morphkv_share_capacity(params, bytes, 0);
    const int64_t alike  = bytes_of(std::vector<int32_t>(30, 1024), bytes, params);
    const int64_t got    = bytes_of(res, bytes, params);
    CHECK(got <= alike && got > 0.98 * alike);
    CHECK(res[0] > 1024 && res[1] == 512 && res[5] == 512);
}

TEST_CASE(where_room_takes_all_there_is_nothing_to_share) {
    // 256 + 1,024 are five steps; with four nothing would be kept
    const auto res = morphkv_share_capacity(params_of(256, 1024, EIGHT), std::vector<size_t>(30, 100), 0);
    CHECK(res == std::vector<int32_t>(30, 256));
}

TEST_CASE(what_is_never_evicted_fits_into_each_layer) {
    auto params       = params_of(1024, 1024, EIGHT);
    params.keep       = 700;
    const auto    res = morphkv_share_capacity(params, std::vector<size_t>(30, 100), 0);
    const int32_t min = *std::min_element(res.begin(), res.end());
    CHECK(min == 768 && res[0] > 1024);
}

TEST_CASE(large_layers_have_no_more_than_a_model_was_trained_on) {
    const auto params = params_of(1024, 1024, EIGHT);
    for (const int32_t limit : { 2048, 2304, 2560, 3000 }) {
        const auto res = morphkv_share_capacity(params, std::vector<size_t>(30, 100), limit);
        CHECK(*std::max_element(res.begin(), res.end()) + 1024 <= limit);
        CHECK(bytes_of(res, std::vector<size_t>(30, 100), params) <= 30 * 2048 * 100);
    }
    // what they may not have, the others have
    const auto res = morphkv_share_capacity(params, std::vector<size_t>(30, 100), 2560);
    CHECK(*std::min_element(res.begin(), res.end()) > 512);
}

TEST_CASE(capacities_that_are_given_are_taken) {
    auto params           = params_of(40, 0, { 1 });
    params.large_capacity = 60;
    params.small_capacity = 48;
    CHECK(morphkv_share_capacity(params, { 10, 10, 0 }, 0) == std::vector<int32_t>({ 48, 60, 48 }));
}

TEST_CASE(layers_that_keep_all_have_as_many_cells_as_there_are_positions) {
    auto params           = params_of(40, 10, { 1 });
    params.interval       = 20;
    params.large_capacity = -1;
    params                = morphkv_params_checked(&params);
    CHECK(morphkv_share_capacity(params, { 10, 10, 0 }, 500) == std::vector<int32_t>({ 40, 480, 40 }));
    CHECK(has(refusal(params, { 10, 10 }), "need a limit of positions: rope_limit must not be 0"));
}

TEST_CASE(a_large_layer_is_one_that_is_cut) {
    CHECK(has(refusal(params_of(512, 0, { 2 }), { 10, 10, 0 }), "one that is cut, got layer 2 of 3"));
    CHECK(has(refusal(params_of(512, 0, { 3 }), { 10, 10, 0 }), "one that is cut, got layer 3 of 3"));
}

static std::string why_not(const morphkv_params & params) {
    try {
        morphkv_params_checked(&params);
    } catch (const morphkv_error & err) {
        return err.what();
    }
    return "";
}

TEST_CASE(parameters_of_groups_are_checked) {
    CHECK(why_not(params_of(512, 0, { 1, 2 })).empty());
    CHECK(has(why_not(params_of(512, 0, { 1, 2, 1 })), "large_layers must differ, got 1 twice"));
    auto params    = params_of(512, 0, {});
    params.n_large = MORPHKV_LARGE_MAX + 1;
    CHECK(has(why_not(params), "n_large must be in 0..128"));
    params                = params_of(512, 0, { 1 });
    params.small_capacity = 100;
    CHECK(has(why_not(params), "large_capacity must be in 100.."));
    params.large_capacity = 200;
    CHECK(why_not(params).empty());
    params.small_capacity = 0;
    CHECK(has(why_not(params), "large_capacity must be in 512.."));
    params.large_capacity = 512;
    CHECK(why_not(params).empty() && morphkv_params_checked(&params).small_capacity == 512);
    params.large_capacity = -2;
    CHECK(has(why_not(params), "large_capacity must be in 512.."));
    params.large_capacity = 200;
    params.small_capacity = 36;
    CHECK(has(why_not(params), "small_capacity must be in 37.."));
    params.small_capacity = 37;
    params.n_large        = 0;
    CHECK(has(why_not(params), "need large_layers"));
}
