// How many layers fit, with a probe that says what it is told to.

#include "case.h"
#include "check.h"

#include "core/fit.h"

#include <vector>

TEST_CASE(all_is_tried_first_and_nothing_more_where_it_fits) {
    std::vector<int32_t> tried;
    const int32_t        n = morphkv_most_that_fit(31, [&](int32_t n) {
        tried.push_back(n);
        return true;
    });
    CHECK(n == 31);
    CHECK(tried == std::vector<int32_t>{ 31 });
}

TEST_CASE(the_largest_that_fits_is_found_in_a_few_tries) {
    for (int32_t n_max = 0; n_max <= 70; ++n_max) {
        for (int32_t n_fit = 0; n_fit <= n_max; ++n_fit) {
            int32_t n_tries = 0;
            CHECK(morphkv_most_that_fit(n_max, [&](int32_t n) {
                      CHECK(n >= 1 && n <= n_max);
                      n_tries++;
                      return n <= n_fit;
                  }) == n_fit);
            CHECK(n_tries <= 8);  // 1 + log2(70)
        }
    }
}

TEST_CASE(what_is_returned_was_tried_or_is_0) {
    // more layers may need less where they change how devices share them
    for (uint32_t mask = 0; mask < 256; ++mask) {
        std::vector<bool> has_fit(9);
        const int32_t     n = morphkv_most_that_fit(8, [&](int32_t n) { return has_fit[n] = mask >> (n - 1) & 1; });
        CHECK(n == 0 || has_fit[n]);
    }
}
