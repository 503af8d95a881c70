#include "core/shares.h"

#include "core/params.h"

#include <algorithm>

namespace {

constexpr int32_t STEP = MORPHKV_CELL_STEP;

int32_t steps_for(int32_t n_cells) {
    return (n_cells + STEP - 1) / STEP;
}

// Steps of each large layer, none of fewer than n_small, that take n_bytes at most.
std::vector<int32_t> share_out(const std::vector<size_t> & bytes, int32_t n_small, int32_t n_most, size_t n_bytes) {
    std::vector<int32_t> res(bytes.size(), n_small);
    for (bool goes_on = true; goes_on;) {
        goes_on = false;
        for (size_t i = 0; i < res.size(); ++i) {
            if (bytes[i] <= n_bytes && (n_most == 0 || res[i] < n_most)) {
                n_bytes -= bytes[i];
                res[i]++;
                goes_on = true;
            } else if (res[i] < n_most || n_most == 0) {
                return res;  // the rest of this round have what those before had a round ago
            }
        }
    }
    return res;
}

}  // namespace

std::vector<int32_t> morphkv_share_capacity(const morphkv_params & params, const std::vector<size_t> & cell_bytes,
                                            int32_t n_most) {
    std::vector<int32_t> res(cell_bytes.size(), params.capacity);
    if (params.n_large == 0) {
        return res;
    }
    const std::vector<uint16_t> large(params.large_layers, params.large_layers + params.n_large);
    for (const uint16_t il : large) {
        if (il >= cell_bytes.size() || cell_bytes[il] == 0) {
            throw morphkv_error(MORPHKV_STATUS_INVALID,
                                "a layer with a larger capacity must be one that is cut, got layer " +
                                    std::to_string(il) + " of " + std::to_string(cell_bytes.size()));
        }
    }
    const int32_t room = morphkv_params_room(params);
    if (params.large_capacity != 0) {
        if (params.large_capacity < 0 && n_most == 0) {
            throw morphkv_error(MORPHKV_STATUS_INVALID,
                                "layers that keep all need a limit of positions: rope_limit must not be 0");
        }
        std::fill(res.begin(), res.end(), params.small_capacity);
        for (const uint16_t il : large) {
            res[il] = params.large_capacity < 0 ? n_most - room : params.large_capacity;
        }
        return res;
    }

    const int32_t alike   = steps_for(params.capacity + room);
    // half of what all would have, to the next step; and enough for what is always kept
    const int32_t half    = ((alike * STEP - room) / 2 + room + STEP / 2) / STEP;
    const int32_t n_least = steps_for(params.keep + params.window + 1 + room);

    size_t              n_bytes = 0;  // of a step of all layers
    std::vector<size_t> bytes;        // of a step of each large one
    for (const size_t n : cell_bytes) {
        n_bytes += n;
    }
    for (const uint16_t il : large) {
        bytes.push_back(cell_bytes[il]);
    }
    const int32_t limit = n_most > 0 ? n_most / STEP : 0;
    for (int32_t n_small = std::max(half, n_least); n_small < alike; ++n_small) {
        const auto steps = share_out(bytes, n_small, limit, (alike - n_small) * n_bytes);
        if (limit > 0 && n_small + 1 < alike &&
            std::all_of(steps.begin(), steps.end(), [&](int32_t n) { return n == limit; })) {
            continue;  // large layers may not have more, so the others keep more
        }
        std::fill(res.begin(), res.end(), n_small * STEP - room);
        for (size_t i = 0; i < large.size(); ++i) {
            res[large[i]] = steps[i] * STEP - room;
        }
        return res;
    }
    return res;
}
