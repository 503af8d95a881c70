#include "core/positions.h"

#include <algorithm>
#include <numeric>

// Behind all positions of a run.
static int64_t end_of(const morphkv_run & run) {
    const int64_t n_row = run.n_column > 0 ? ((int64_t) run.n + run.n_column - 1) / run.n_column : 0;
    return run.pos + (run.n_column > 0 ? std::max<int64_t>(std::min(run.n, run.n_column), n_row) : run.n);
}

void morphkv_positions::append(int32_t pos, int32_t n) {
    if (n <= 0) {
        return;
    }
    if (!all.empty() && all.back().n_column == 0 && next() == pos) {
        all.back().n += n;
        return;
    }
    all.push_back({ n_tokens(), n, pos, 0 });
}

void morphkv_positions::append_image(int32_t pos, int32_t n_column, int32_t n) {
    if (n <= 0) {
        return;
    }
    if (!all.empty() && all.back().n_column > 0 && all.back().pos == pos) {
        all.back().n += n;
        all.back().n_column = n_column;
        return;
    }
    all.push_back({ n_tokens(), n, pos, n_column });
}

void morphkv_positions::append_both_ways(int32_t pos, int32_t n) {
    if (n > 0) {
        all.push_back({ n_tokens(), n, pos, MORPHKV_BOTH_WAYS });
    }
}

void morphkv_positions::truncate(int32_t n) {
    while (!all.empty() && all.back().serial >= n) {
        all.pop_back();
    }
    if (!all.empty()) {
        all.back().n = std::min(all.back().n, n - all.back().serial);
    }
}

int32_t morphkv_positions::n_tokens() const {
    return all.empty() ? 0 : all.back().serial + all.back().n;
}

int32_t morphkv_positions::next() const {
    return all.empty() ? 0 : (int32_t) end_of(all.back());
}

morphkv_position morphkv_positions::at(int32_t serial) const {
    auto line = [](int64_t pos) {
        const auto p = (int32_t) std::clamp<int64_t>(pos, INT32_MIN, INT32_MAX);
        return morphkv_position{ p, p, p };
    };
    if (all.empty()) {
        return line(serial);
    }
    if (serial >= n_tokens()) {
        return line((int64_t) next() + serial - n_tokens());
    }
    const morphkv_run * run = serial < 0 ? &all.front() : find(serial);
    const int64_t       i   = (int64_t) serial - run->serial;
    if (run->n_column <= 0 || i < 0) {
        return line(run->pos + i);
    }
    return { run->pos, run->pos + (int32_t) i / run->n_column, run->pos + (int32_t) i % run->n_column };
}

const morphkv_run * morphkv_positions::find(int32_t serial) const {
    if (serial < 0 || serial >= n_tokens()) {
        return nullptr;
    }
    const auto run = std::upper_bound(all.begin(), all.end(), serial,
                                      [](int32_t serial, const morphkv_run & run) { return serial < run.serial; });
    return &*(run - 1);
}

int32_t morphkv_positions::pos_from(int32_t serial) const {
    const morphkv_run * run = find(serial);
    return run && run->n_column != 0 && serial > run->serial ? (int32_t) end_of(*run) : at(serial).t;
}

bool morphkv_positions::can_end_at(int32_t serial) const {
    const morphkv_run * run = find(serial);
    return !run || run->n_column == 0 || serial == run->serial;
}

std::vector<int32_t> morphkv_positions::packed(const int32_t * serials, int32_t n) const {
    std::vector<int32_t> res(n);
    std::iota(res.begin(), res.end(), 0);
    if (std::none_of(all.begin(), all.end(), [](const morphkv_run & run) { return run.n_column > 0; })) {
        return res;
    }
    int32_t             next  = 0;
    const morphkv_run * image = nullptr;
    int32_t             at    = 0;  // of that image
    for (int32_t i = 0; i < n; ++i) {
        const morphkv_run * run = find(serials[i]);
        if (!run || run->n_column <= 0) {
            res[i] = next++;
            continue;
        }
        at     = run == image ? at : next;
        image  = run;
        res[i] = at;
        next   = std::min<int64_t>(next + 1, at + end_of(*run) - run->pos);
    }
    return res;
}

int32_t morphkv_positions::serial_from(int32_t pos) const {
    auto run = std::lower_bound(all.begin(), all.end(), pos,
                                [](const morphkv_run & run, int32_t pos) { return end_of(run) <= pos; });
    if (run == all.end()) {
        return n_tokens();
    }
    if (pos <= run->pos) {
        return run->serial;
    }
    // an image is at the time of its beginning as a whole
    return run->n_column > 0 ? run->serial + run->n : run->serial + (pos - run->pos);
}

bool morphkv_positions::are_right(const std::vector<morphkv_run> & runs, int32_t end, const char ** why) {
    int64_t serial = 0, pos = 0;
    for (const auto & run : runs) {
        if (run.serial != serial || run.n <= 0) {
            *why = "runs of tokens follow each other";
            return false;
        }
        if (run.n_column < MORPHKV_BOTH_WAYS) {
            *why = "an image has columns";
            return false;
        }
        if (run.pos < pos || end_of(run) > end) {
            *why = "positions grow, and have an end";
            return false;
        }
        serial += run.n;
        pos = end_of(run);
        if (serial > end) {
            *why = "a text has an end";
            return false;
        }
    }
    return true;
}
