#include "made_up_text.h"

#include <algorithm>
#include <limits>

namespace {

constexpr int32_t  END        = std::numeric_limits<int32_t>::max() / 2;  // of serials and positions
constexpr uint32_t N_RUNS_MAX = 8;

template <typename T> T take(bytes_reader & in) {
    T res{};
    if (in.n_left() >= sizeof(T)) {
        in.read(&res, sizeof(T));
    }
    return res;
}

int64_t clamp(int64_t value, int64_t least, int64_t most) {
    return std::max(least, std::min(value, most));
}

void make_positions(bytes_reader & in, uint32_t n_runs, bool is_old, bool has_images, morphkv_text & text) {
    std::vector<morphkv_run> runs;
    morphkv_positions        sum;
    for (uint32_t i = 0; i < std::min(n_runs, has_images ? N_RUNS_MAX : 1); ++i) {
        auto run     = take<morphkv_run>(in);
        run.serial   = sum.n_tokens();
        run.pos      = is_old ? 0 : clamp(run.pos, sum.next(), END - 1);
        run.n_column = has_images ? std::max(run.n_column, MORPHKV_BOTH_WAYS) : 0;
        run.n        = clamp(run.n, 1, END - std::max(run.serial, run.pos));
        if (sum.next() >= END || run.serial >= END) {
            break;
        }
        runs.push_back(run);
        sum.set(runs);
    }
    text.positions = sum;
}

void make_counters(const morphkv_text_header & header, const std::vector<morphkv_group_header> & of_groups,
                   morphkv_text & text) {
    constexpr int64_t MANY = std::numeric_limits<int64_t>::max() / 2;
    const int32_t     n    = text.n_tokens();
    int64_t           room = text.is_empty() ? 0 : END;  // of the rotary offset
    for (size_t i = 0; i < text.groups.size(); ++i) {
        auto &        group = text.groups[i];
        const int64_t least = std::max(0, n - group.shape.n_limit);
        const int64_t most  = std::max<int64_t>(n - group.shape.n_distant() - 1, 0);
        group.n_evicted     = clamp(of_groups[i].n_evicted, least, most);
        group.n_evictions   = clamp(of_groups[i].n_evictions, group.n_evicted > 0, group.n_evicted);
        text.n_keep         = clamp(i == 0 ? header.n_keep : text.n_keep, 0, group.shape.n_distant() - 1);
        if (!text.is_empty()) {
            const int32_t first =
                group.has_evicted() ? text.pos_of(group.first_recent()) - group.shape.n_distant() : text.pos_of(0);
            room = std::min<int64_t>(room, first);
        }
    }
    text.rotary_offset     = clamp(header.rotary_offset, 0, header.n_rebases > 0 ? room : 0);
    text.n_rebases         = clamp(header.n_rebases, text.rotary_offset > 0, text.rotary_offset);
    text.n_recalls         = text.has_evicted() ? clamp(header.n_recalls, 0, MANY) : 0;
    text.n_recalled        = clamp(header.n_recalled, 0, MANY);
    text.decoded_since_cut = clamp(header.decoded_since_cut, 0, n);
    text.newest_of_prompt  = clamp(header.newest_of_prompt, -1, n);
}

std::vector<int32_t> take_tokens(bytes_reader & in, int32_t n) {
    std::vector<int32_t> res;
    for (int32_t i = 0; i < n; ++i) {
        res.push_back(std::max(-1, take<int32_t>(in)));
    }
    return res;
}

// In each head n_distant of the tokens before the recent ones, ascending.
void make_ranked(bytes_reader & in, size_t n_slots, morphkv_cut_group & group) {
    const int32_t n_distant = group.shape.n_distant(), end = group.first_recent();
    auto          ranked = std::make_shared<std::vector<int32_t>>();
    for (size_t i = 0; i < n_slots; ++i) {
        ranked->push_back(clamp(take<int32_t>(in), 0, end - 1));
    }
    for (auto head = ranked->begin(); head != ranked->end(); head += n_distant) {
        std::sort(head, head + n_distant);
        for (int32_t i = 0; i < n_distant; ++i) {
            head[i] = std::max(head[i], i == 0 ? 0 : head[i - 1] + 1);
        }
        for (int32_t i = n_distant - 1; i >= 0; --i) {
            head[i] = std::min(head[i], end - (n_distant - i));
        }
    }
    group.ranked = ranked;
}

void make_base(int32_t base, const morphkv_text & text, morphkv_cut_group & group) {
    if (group.ranked && text.n_recalls > 0) {
        const int64_t first = (int64_t) text.pos_of(group.first_recent()) - group.shape.n_distant();
        group.base          = clamp(base, 0, std::max<int64_t>(0, first - text.rotary_offset));
    }
}

void make_ring(bytes_reader & in, const morphkv_can_lose & can_lose, morphkv_text & text) {
    auto &        windowed = *text.windowed;
    const auto    ring     = take<morphkv_ring_header>(in);
    const int32_t n        = text.n_tokens();
    windowed.n_held        = clamp(ring.n_held, n > 0, std::min(n, windowed.n_cells));
    windowed.i_next        = n > 0 ? (ring.i_newest % windowed.n_cells + 1) % windowed.n_cells : 0;
    while (windowed.n_held < n && windowed.n_held < windowed.n_cells &&
           !can_lose(text.pos_of(n - 1 - windowed.n_held), text.pos_of(n))) {
        windowed.n_held++;
    }
}

morphkv_archive_header make_archive(bytes_reader & in, const morphkv_text & text, int64_t n_pages_max) {
    constexpr int64_t N_PAGE = morphkv_page_layout::N_PAGE;
    const int64_t     end    = text.has_evicted() ? text.groups[0].first_recent() : 0;
    auto              res    = take<morphkv_archive_header>(in);
    res.zero                 = 0;
    res.n_tokens             = clamp(res.n_tokens, 0, end);
    res.first                = res.n_tokens == 0 ? -1 : clamp(res.first, 0, end - res.n_tokens);
    res.dropped = clamp(res.dropped, std::max<int64_t>(0, res.n_tokens / N_PAGE - n_pages_max), res.n_full());
    return res;
}

}  // namespace

morphkv_saved_text fuzz_make_text(bytes_reader & in, const morphkv_text_rules & rules, uint32_t version,
                                  int64_t n_pages_max) {
    morphkv_saved_text res    = { morphkv_text(rules.shape, rules.n_keep), {}, {}, {} };
    auto &             text   = res.text;
    const auto         header = take<morphkv_text_header>(in);

    std::vector<morphkv_group_header> of_groups;
    for (size_t i = 0; i < text.groups.size(); ++i) {
        of_groups.push_back(take<morphkv_group_header>(in));
    }
    make_positions(in, header.n_runs, version < 6, rules.has_images && version >= 6, text);
    make_counters(header, of_groups, text);

    const int32_t n_rows = text.queries.size();
    for (int32_t i = 0; i < n_rows; ++i) {
        const int32_t serial = take<int32_t>(in);
        const int64_t in_row = serial < 0 ? -1 : (int64_t) serial - serial % n_rows + i;
        text.queries[i]      = in_row < text.n_tokens() ? in_row : -1;
    }
    for (size_t i = 0; i < text.groups.size(); ++i) {
        auto & group = text.groups[i];
        res.tokens.push_back(take_tokens(in, text.n_used(i)));
        if (of_groups[i].n_ranked > 0 && group.has_evicted() && (text.n_rebases > 0 || text.n_recalls > 0)) {
            make_ranked(in, rules.n_slots[i], group);
        }
        make_base(version >= 5 ? of_groups[i].base : 0, text, group);
    }
    if (text.windowed) {
        make_ring(in, rules.can_lose, text);
        res.windowed_tokens = take_tokens(in, text.windowed->n_held);
    }
    if (rules.has_archive) {
        res.archive = make_archive(in, text, n_pages_max);
    }
    return res;
}
