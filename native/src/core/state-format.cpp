#include "core/state-format.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <stdexcept>

//
// bytes
//

void morphkv_hashed_writer::write(const void * data, size_t size) {
    // an empty vector's data() may be null, which llama.cpp would give to memcpy
    if (size > 0) {
        io.write(data, size);
        hash.add(data, size);
    }
}

void morphkv_hashed_writer::write_mark(uint64_t i, bool is_lost) {
    const uint64_t value = (hash.value + i) ^ (is_lost ? MORPHKV_STATE_LOST : 0);
    io.write(&value, sizeof(value));
}

void morphkv_hashed_reader::read(void * data, size_t size) {
    if (size > 0) {
        io.read(data, size);
        hash.add(data, size);
    }
}

bool morphkv_hashed_reader::read_mark(uint64_t i, bool may_be_lost) {
    uint64_t value = ~(hash.value + i);  // a file may end here
    io.read(&value, sizeof(value));
    const bool is_lost = may_be_lost && value == ((hash.value + i) ^ MORPHKV_STATE_LOST);
    if (value != hash.value + i && !is_lost) {
        throw std::runtime_error("the state is damaged or truncated: a checksum is wrong");
    }
    return is_lost;
}

//
// rules
//

static void require(bool ok, const char * rule, int64_t value) {
    if (!ok) {
        throw std::runtime_error("the state is damaged: " + std::string(rule) + ", got " + std::to_string(value));
    }
}

void morphkv_check_state_header(const morphkv_state_header & header, const morphkv_state_header & own) {
    if (header.magic != own.magic) {
        throw std::runtime_error("this is no state of a MorphKV cache");
    }
    if (header.version < MORPHKV_STATE_VERSION_MIN || header.version > own.version) {
        throw std::runtime_error("the state must have version " + std::to_string(MORPHKV_STATE_VERSION_MIN) + " to " +
                                 std::to_string(own.version) + ", got " + std::to_string(header.version));
    }
    if (header.n_seq != own.n_seq) {
        throw std::runtime_error("the state must hold " + std::to_string(own.n_seq) + " sequences, got " +
                                 std::to_string(header.n_seq));
    }
    if (header.has_no_pages != own.has_no_pages) {
        throw std::runtime_error("a checkpoint is no state, and a state no checkpoint, where there is an archive");
    }
    if (header.archive != own.archive) {
        throw std::runtime_error("the state was saved with another archive_type, or one of the two has no archive");
    }
    if (header.attached != own.attached) {
        throw std::runtime_error("the state was saved with other attached files");
    }
    auto as_own    = header;
    as_own.version = own.version;
    if (memcmp(&as_own, &own, sizeof(own)) != 0) {
        throw std::runtime_error("the state was saved with other MorphKV parameters, K/V types or another model");
    }
}

// What the offset of a text may be less by where slots were opened: any number of slots that a cache can have.
constexpr int64_t MOST_OPEN = 1 << 24;

static void check_group(const morphkv_text & text, size_t i_group, size_t n_slots, int32_t first_attached) {
    const auto &  group     = text.groups[i_group];
    const int32_t n_distant = group.shape.n_distant();
    // slots that were opened held no token of the text (opening.h)
    const int32_t n_open    = first_attached < 0 ? n_distant : 0;
    require(group.n_evictions >= 0 && group.n_evicted + n_open >= group.n_evictions - (n_open > 0), "evictions evict",
            group.n_evicted);
    require(group.n_evictions > 0 || group.n_evicted == 0, "no eviction evicts nothing", group.n_evicted);
    require(group.n_evicted <= text.n_tokens(), "evicted tokens are of the text", group.n_evicted);
    require(text.n_used(i_group) <= group.shape.n_limit, "a sequence has more cells than this cache",
            text.n_used(i_group));
    require(!group.has_evicted() || text.n_used(i_group) > n_distant, "a recent token is left after evictions",
            text.n_used(i_group));

    require(text.n_keep >= 0 && text.n_keep < n_distant, "some slots are not kept", text.n_keep);

    const int64_t n_ranked = group.ranked ? group.ranked->size() : 0;
    require(n_ranked == 0 || (n_ranked == (int64_t) n_slots && group.has_evicted()),
            "a rebase places all distant tokens", n_ranked);
    for (int64_t i = 0; i < n_ranked; ++i) {
        const int32_t serial = (*group.ranked)[i];
        const int32_t before = i % n_distant == 0 ? std::min(-1, first_attached - 1) : (*group.ranked)[i - 1];
        require(serial > before && serial < group.first_recent() &&
                    (serial >= 0 || serial < -morphkv_page_layout::N_PAGE),
                "distant tokens are in order and older than recent ones", serial);
    }
    // Once they are rebased, recent tokens stand at rotary positions behind the distant slots' number, without an eviction from
    // 0 on. Before that they may stand nearer to 0, as the tokens of an image share their time.
    const int64_t first = text.is_empty()       ? 0
                          : group.has_evicted() ? (int64_t) text.pos_of(group.first_recent()) - n_distant
                                                : text.pos_of(0);
    require(text.rotary_offset == 0 || (text.rotary_offset > 0 && text.n_rebases > 0 && text.rotary_offset <= first) ||
                (n_open > 0 && group.has_evicted() && text.rotary_offset >= first - MOST_OPEN &&
                 text.rotary_offset <= first),
            "rotary positions are not negative", text.rotary_offset);

    require(n_ranked == 0 || text.n_rebases > 0 || text.n_recalls > 0,
            "distant tokens are placed by a rebase or a recall", n_ranked);
    require(group.base >= 0 && (group.base == 0 || (n_ranked > 0 && text.n_recalls > 0)) &&
                group.base <= std::max<int64_t>(0, first - text.rotary_offset),
            "recalled tokens stand before recent ones", group.base);
}

static void check_text(const morphkv_saved_text & saved, const morphkv_text_rules & rules) {
    const auto &  text = saved.text;
    const int32_t n    = text.n_tokens();
    for (size_t i = 0; i < text.groups.size(); ++i) {
        check_group(text, i, rules.n_slots[i], rules.first_attached);
    }
    require(text.decoded_since_cut >= 0 && text.decoded_since_cut <= n, "exact_pos is a position",
            text.decoded_since_cut);
    require(text.newest_of_prompt >= -1 && text.newest_of_prompt <= n, "pos_prompt is a position",
            text.newest_of_prompt);
    // each moves the offset, so its bound is a bound for the counter too
    const int64_t n_open = rules.first_attached < 0 ? MOST_OPEN : 0;
    require(text.n_rebases >= 0 && text.n_rebases <= std::max<int64_t>(0, text.rotary_offset + n_open),
            "rebases are counted", text.n_rebases);
    constexpr int64_t MANY = std::numeric_limits<int64_t>::max() / 2;  // with room to go on
    require(text.n_recalls >= 0 && text.n_recalls <= MANY && (text.has_evicted() || text.n_recalls == 0),
            "recalls bring back what was evicted", text.n_recalls);
    require(text.brought_at >= 0 && text.brought_at <= n && (text.brought_at == 0 || text.n_recalls > 0),
            "a recall brings tokens within the text", text.brought_at);
    require(text.n_recalled >= 0 && text.n_recalled <= MANY, "recalled tokens are counted", text.n_recalled);
    for (size_t i = 0; i < text.queries.size(); ++i) {
        const int32_t serial = text.queries[i];
        require(serial == -1 || (serial >= 0 && serial < n && text.query_row(serial) == (int32_t) i),
                "a query has a row", serial);
    }
    if (rules.has_archive) {
        const std::string why = saved.archive.why_not();
        if (!why.empty()) {
            throw std::runtime_error("the state is damaged: " + why);
        }
        const auto &  first        = text.groups.front();
        const int32_t first_recent = first.has_evicted() ? first.first_recent() : 0;
        require(saved.archive.end() <= first_recent, "archived tokens left the window", saved.archive.end());
    }
}

static void read_tokens(morphkv_hashed_reader & in, size_t n, std::vector<int32_t> & tokens) {
    tokens.resize(n);
    in.read_all(tokens);
    for (const int32_t token : tokens) {
        require(token >= -1, "a token is not negative", token);
    }
}

static void read_positions(const std::vector<morphkv_run> & runs, bool has_images, morphkv_text & text) {
    // with room to go on: llama.cpp adds to positions
    constexpr int32_t END = std::numeric_limits<int32_t>::max() / 2;
    const char *      why = nullptr;
    if (!morphkv_positions::are_right(runs, END, &why)) {
        throw std::runtime_error("the state is damaged: " + std::string(why));
    }
    int32_t next = runs.empty() ? 0 : runs[0].pos;
    for (const auto & run : runs) {
        require(has_images || (run.n_column <= 0 && run.pos == next),
                "words follow each other where images have no rows", run.pos);
        next = run.pos + run.n;
    }
    text.positions.set(runs);
}

//
// texts
//

void morphkv_write_text(morphkv_hashed_writer & out, const morphkv_saved_text & saved, bool has_archive) {
    const auto &        text = saved.text;
    morphkv_text_header header{};
    header.n_rebases         = text.n_rebases;
    header.n_recalls         = text.n_recalls;
    header.n_recalled        = text.n_recalled;
    header.decoded_since_cut = text.decoded_since_cut;
    header.newest_of_prompt  = text.newest_of_prompt;
    header.rotary_offset     = text.rotary_offset;
    header.n_keep            = text.n_keep;
    header.n_groups          = text.groups.size();
    header.n_runs            = text.positions.runs().size();
    out.write(&header, sizeof(header));
    for (const auto & group : text.groups) {
        const bool                 is_first = &group == &text.groups.front();
        const morphkv_group_header of_group = { group.n_evictions, group.n_evicted, group.base,
                                                group.ranked ? (uint32_t) group.ranked->size() : 0,
                                                is_first ? text.brought_at : 0 };
        out.write(&of_group, sizeof(of_group));
    }
    out.write_all(text.positions.runs());
    out.write_all(text.queries);
    for (size_t i = 0; i < text.groups.size(); ++i) {
        out.write_all(saved.tokens[i]);
        if (text.groups[i].ranked) {
            out.write_all(*text.groups[i].ranked);
        }
    }
    if (text.windowed) {
        const morphkv_ring_header ring = { text.n_tokens() - 1, (uint32_t) text.windowed->cell_of(0),
                                           (uint32_t) text.windowed->n_held };
        out.write(&ring, sizeof(ring));
        out.write_all(saved.windowed_tokens);
    }
    if (has_archive) {
        out.write(&saved.archive, sizeof(saved.archive));
    }
}

static void read_ranked(morphkv_hashed_reader & in, size_t n, morphkv_cut_group & group) {
    if (n > 0) {
        auto ranked = std::make_shared<std::vector<int32_t>>(n);
        in.read_all(*ranked);
        group.ranked = ranked;
    }
}

// Windowed cells and the archive's header, which both versions have in common.
static void read_rest(morphkv_hashed_reader & in, const morphkv_text_rules & rules, morphkv_saved_text & res) {
    auto &        text = res.text;
    const int32_t n    = text.n_tokens();
    if (text.windowed) {
        auto &              windowed = *text.windowed;
        morphkv_ring_header ring{};
        in.read(&ring, sizeof(ring));
        require(ring.newest == n - 1 || n == 0, "all layers have the same newest token", ring.newest);
        require(ring.i_newest < (uint32_t) windowed.n_cells, "a token is in a cell", ring.i_newest);
        require(ring.n_held <= (uint32_t) std::min(windowed.n_cells, n) && (ring.n_held > 0) == (n > 0),
                "windowed layers hold tokens of the text", ring.n_held);
        windowed.n_held = ring.n_held;
        windowed.i_next = n > 0 ? (ring.i_newest + 1) % windowed.n_cells : 0;
        read_tokens(in, ring.n_held, res.windowed_tokens);
        require(windowed.n_held == n || rules.can_lose(text.pos_of(n - 1 - windowed.n_held), text.pos_of(n)),
                "windowed layers hold a window", windowed.n_held);
    }
    if (rules.has_archive) {
        in.read(&res.archive, sizeof(res.archive));
    }
}

// What all versions have.
template <typename header_type> static void set_counters(const header_type & header, morphkv_text & text) {
    text.n_rebases         = header.n_rebases;
    text.n_recalls         = header.n_recalls;
    text.n_recalled        = header.n_recalled;
    text.decoded_since_cut = header.decoded_since_cut;
    text.newest_of_prompt  = header.newest_of_prompt;
    text.rotary_offset     = header.rotary_offset;
    text.n_keep            = header.n_keep;
}

static void read_v6(morphkv_hashed_reader & in, const morphkv_text_rules & rules, morphkv_saved_text & res) {
    constexpr uint32_t  N_RUNS_MAX = 1 << 20;
    auto &              text       = res.text;
    morphkv_text_header header{};
    in.read(&header, sizeof(header));
    require(header.n_groups == text.groups.size(), "a text has the groups of this cache", header.n_groups);
    require(header.n_runs <= N_RUNS_MAX, "a text has few runs of positions", header.n_runs);
    set_counters(header, text);

    std::vector<uint32_t> n_ranked;
    for (size_t i = 0; i < text.groups.size(); ++i) {
        morphkv_group_header of_group{};
        in.read(&of_group, sizeof(of_group));
        require(of_group.n_ranked == 0 || of_group.n_ranked == rules.n_slots[i], "a rebase places all distant tokens",
                of_group.n_ranked);
        text.groups[i].n_evictions = of_group.n_evictions;
        text.groups[i].n_evicted   = of_group.n_evicted;
        text.groups[i].base        = of_group.base;
        require(i == 0 || of_group.brought_at == 0, "a number that is not used is 0", of_group.brought_at);
        text.brought_at += of_group.brought_at;
        n_ranked.push_back(of_group.n_ranked);
    }
    std::vector<morphkv_run> runs(header.n_runs);
    in.read_all(runs);
    read_positions(runs, rules.has_images, text);
    in.read_all(text.queries);
    for (size_t i = 0; i < text.groups.size(); ++i) {
        const int64_t n_used = (int64_t) text.n_tokens() - text.groups[i].n_evicted;
        require(n_used >= 0 && n_used <= text.groups[i].shape.n_limit, "a sequence has more cells than this cache",
                n_used);
        read_tokens(in, n_used, res.tokens[i]);
        read_ranked(in, n_ranked[i], text.groups[i]);
    }
}

static void read_v5(morphkv_hashed_reader & in, uint32_t version, const morphkv_text_rules & rules,
                    morphkv_saved_text & res) {
    auto &                 text  = res.text;
    auto &                 group = text.groups.front();
    morphkv_text_header_v5 header{};
    in.read(&header, version >= 5 ? sizeof(header) : offsetof(morphkv_text_header_v5, base));
    require(text.groups.size() == 1, "before version 6 a text has one group of layers that are cut", version);
    require(header.first_distant == 0, "before version 6 a text begins at position 0", header.first_distant);
    require(header.zero == 0, "a number that is not used is 0", header.zero);
    require(header.n_used <= (uint32_t) group.shape.n_limit, "a sequence has more cells than this cache",
            header.n_used);
    require((int64_t) header.first_recent - group.shape.n_distant() == header.n_evicted && header.n_evicted >= 0,
            "evicted tokens are those between the runs", header.n_evicted);
    require(header.n_ranked == 0 || header.n_ranked == rules.n_slots[0], "a rebase places all distant tokens",
            header.n_ranked);
    set_counters(header, text);
    group.n_evictions = header.n_evictions;
    group.n_evicted   = header.n_evicted;
    group.base        = header.base;

    const int64_t n = header.n_used + header.n_evicted;
    require(n <= std::numeric_limits<int32_t>::max() / 2, "positions fit 30 bits", n);
    text.positions.append(0, n);
    in.read_all(text.queries);
    read_tokens(in, header.n_used, res.tokens[0]);
    read_ranked(in, header.n_ranked, group);
}

morphkv_saved_text morphkv_read_text(morphkv_hashed_reader & in, uint32_t version, const morphkv_text_rules & rules) {
    morphkv_saved_text res = { morphkv_text(rules.shape, rules.n_keep), {}, {}, {} };
    res.tokens.resize(res.text.groups.size());
    if (version >= 6) {
        read_v6(in, rules, res);
    } else {
        read_v5(in, version, rules, res);
    }
    read_rest(in, rules, res);
    check_text(res, rules);
    return res;
}
