#include "core/fit.h"

int32_t morphkv_most_that_fit(int32_t n_max, const std::function<bool(int32_t n)> & fits) {
    if (n_max <= 0 || fits(n_max)) {
        return n_max > 0 ? n_max : 0;
    }
    int32_t most = 0, too_many = n_max;
    while (too_many - most > 1) {
        const int32_t n             = most + (too_many - most) / 2;
        (fits(n) ? most : too_many) = n;
    }
    return most;
}
