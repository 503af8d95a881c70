// A fuzzer of texts, without a model: what is read is sound, is written and read again as it was, and stays sound through all
// that can happen to a text.
//
//   input    byte 0   what a text may have, and how the rest becomes one (struct recipe)
//            rest     a text as it is in a state, then a byte for each thing that happens to it (enum event)

#include "core/plan.h"
#include "fuzz_target.h"
#include "made_up_text.h"

#include <algorithm>
#include <set>
#include <string>

const size_t fuzz_n_recipe = 1;

namespace {

constexpr int32_t END         = INT32_MAX / 2;  // of positions
constexpr int32_t N_HEAD      = 2;              // of all layers of a group
constexpr int32_t N_SWA       = 8;
constexpr int32_t N_DRAFT     = 4;
constexpr int32_t ROPE_LIMIT  = 120;
constexpr int     N_EVENTS    = 64;
constexpr int64_t N_PAGES_MAX = 1 << 20;

//
// inputs
//

enum class event { APPEND, PROMPT, DRAFT, CUT, REMOVE, REBASE, RECALL, KEEP };

struct recipe {
    bool     has_two_groups;
    bool     has_window;
    bool     has_archive;
    bool     has_images;
    bool     is_mended;  // each number is one that can be, see made_up_text.h
    uint32_t version;
};

recipe read_recipe(uint8_t byte) {
    return { (byte & 1) != 0, (byte & 2) != 0,  (byte & 4) != 0,
             (byte & 8) != 0, (byte & 16) != 0, MORPHKV_STATE_VERSION - (byte >> 6) % 3 };
}

uint8_t write_recipe(const recipe & r) {
    return r.has_two_groups | r.has_window << 1 | r.has_archive << 2 | r.has_images << 3 | r.is_mended << 4 |
           (MORPHKV_STATE_VERSION - r.version) << 6;
}

morphkv_text_rules rules_of(const recipe & r) {
    morphkv_text_rules res{};
    res.shape = { { { 12, 4, 4, 18 } }, r.has_window ? 24 : 0, /*votes =*/3, /*n_query_rows =*/7 };
    if (r.has_two_groups) {
        res.shape.groups.push_back({ 20, 6, 5, 40 });
    }
    for (const auto & group : res.shape.groups) {
        res.n_slots.push_back(N_HEAD * group.n_distant());
    }
    res.n_keep      = 2;
    res.has_archive = r.has_archive;
    res.has_images  = r.has_images;
    res.can_lose    = [r](int32_t lost, int32_t pos) {
        return !r.has_window || pos - lost >= N_SWA;
    };
    return res;
}

//
// what is true of each text
//

// Whether words alone, or tokens in a line as theirs, follow each other without a leap, as those of a chat do: a rebase can
// bring them below a limit.
bool are_words(const morphkv_text & text) {
    const auto & runs = text.positions.runs();
    int32_t      next = runs.empty() ? 0 : runs[0].pos;
    for (const auto & run : runs) {
        if (run.n_column > 0 || run.pos != next) {
            return false;
        }
        next = run.pos + run.n;
    }
    return true;
}

// Rotary positions of a head's slots: as ranked, each is one token's, and they are before those of recent tokens.
void check_rotary(const morphkv_text & text, size_t i_group, int32_t i_head) {
    const auto &  group     = text.groups[i_group];
    const int32_t n_distant = group.shape.n_distant();
    const int64_t recent    = text.rotary_position(i_group, i_head, group.first_recent());
    int64_t       last      = -1;
    CHECK(recent == (int64_t) text.pos_of(group.first_recent()) - text.rotary_offset);
    CHECK(recent >= (text.rotary_offset > 0 ? n_distant : 0));
    for (int32_t i = 0; group.ranked && i < n_distant; ++i) {
        const int64_t at = text.rotary_position(i_group, i_head, (*group.ranked)[i_head * n_distant + i]);
        // an image's tokens stand at one time
        CHECK(at > last || (at == last && !are_words(text)));
        CHECK(at < recent || !are_words(text));
        CHECK(at >= std::min<int64_t>(group.base + (are_words(text) ? i : 0), recent));
        last = at;
    }
}

void check_group(const morphkv_text & text, size_t i_group) {
    const auto & group = text.groups[i_group];
    CHECK(text.n_used(i_group) >= 0 && text.n_used(i_group) <= group.shape.n_limit);
    CHECK(text.n_keep >= 0 && text.n_keep < group.shape.n_distant());
    CHECK(group.n_evicted >= group.n_evictions && group.has_evicted() == (group.n_evicted > 0));
    CHECK(!group.has_evicted() || group.first_recent() < text.n_tokens());
    if (text.is_empty()) {
        return;
    }
    CHECK(group.serial_in(text.n_used(i_group) - 1) == text.n_tokens() - 1);
    if (group.has_evicted()) {
        for (int32_t i = 0; i < N_HEAD; ++i) {
            check_rotary(text, i_group, i);
        }
    } else {
        CHECK(text.rotary_position(i_group, 0, 0) == (int64_t) text.pos_of(0) - text.rotary_offset);
        CHECK(text.rotary_position(i_group, 0, 0) >= 0);
    }
}

void check_positions(const morphkv_text & text, bool has_images) {
    const int32_t n    = text.n_tokens();
    const auto &  runs = text.positions.runs();
    const char *  why  = "";
    CHECK(morphkv_positions::are_right(runs, INT32_MAX, &why) && (has_images || are_words(text)));
    for (const auto & run : runs) {
        for (const int32_t serial : { run.serial, run.serial + run.n / 2, run.serial + run.n - 1 }) {
            const auto pos = text.positions.at(serial);
            CHECK(pos.t >= 0 && pos.h >= pos.t && pos.w >= pos.t && std::max(pos.h, pos.w) < text.positions.next());
            CHECK(text.positions.serial_from(pos.t) == (run.n_column > 0 ? run.serial : serial));
            CHECK(serial == 0 || text.pos_of(serial - 1) <= pos.t);
        }
    }
    CHECK(text.positions.serial_from(0) == 0 && text.positions.serial_from(text.positions.next()) == n);
    CHECK(text.pos_of(n) == text.positions.next());
}

void check_is_sound(const morphkv_text & text, const recipe & r, const morphkv_text_rules & rules) {
    const int32_t n = text.n_tokens();
    check_positions(text, r.has_images);
    for (size_t i = 0; i < text.groups.size(); ++i) {
        check_group(text, i);
    }
    const auto voters = text.voters();
    CHECK((int32_t) voters.size() <= text.votes && std::is_sorted(voters.begin(), voters.end()));
    CHECK(voters.empty() || (voters.front() >= n - text.votes && voters.back() < n));

    const int32_t possible = text.first_possible(rules.can_lose), complete = text.first_complete(rules.can_lose);
    CHECK(possible >= 0 && possible <= n && complete >= 0 && complete <= n);
    CHECK(text.is_empty() || complete < n);
    const int32_t exact = text.first_exact(rules.can_lose);
    CHECK(exact >= 0 && exact <= n && text.decoded_since_cut <= n && text.newest_of_prompt <= n);
    if (!text.windowed) {
        return;
    }
    const auto &      ring = *text.windowed;
    std::set<int32_t> cells;
    CHECK(ring.n_held <= std::min(n, ring.n_cells) && (ring.n_held > 0) == (n > 0));
    for (int32_t i = 0; i < ring.n_held; ++i) {
        CHECK(ring.cell_of(i) >= 0 && ring.cell_of(i) < ring.n_spanned() && cells.insert(ring.cell_of(i)).second);
    }
    CHECK(ring.n_held == n || rules.can_lose(text.pos_of(n - 1 - ring.n_held), text.pos_of(n)));
}

bytes written(const morphkv_saved_text & saved, const recipe & r) {
    bytes_writer          io;
    morphkv_hashed_writer out(io);
    write_text(out, saved, r.has_archive, MORPHKV_STATE_VERSION);
    out.write_checksum();
    return io.data;
}

// It is a text that can be saved and loaded.
void check_is_read_again(const morphkv_saved_text & saved, const recipe & r, const morphkv_text_rules & rules) {
    const bytes           data = written(saved, r);
    bytes_reader          io(data.data(), data.size());
    morphkv_hashed_reader in(io);
    morphkv_saved_text    again = morphkv_read_text(in, MORPHKV_STATE_VERSION, rules);
    in.read_checksum();
    CHECK(io.n_left() == 0 && written(again, r) == data);
}

//
// what happens to a text
//

// Serials, ascending, with those of `ranked` in between.
std::vector<int32_t> some_slots(const morphkv_text & text, size_t i_group, uint32_t seed) {
    const auto &         group = text.groups[i_group];
    std::vector<int32_t> res;
    for (int32_t h = 0; h < N_HEAD; ++h) {
        std::set<int32_t> head;
        for (uint32_t i = seed + h; (int32_t) head.size() < group.shape.n_distant(); i = i * 5 + 1) {
            head.insert(head.count(i % group.first_recent()) ? head.size() : i % group.first_recent());
        }
        res.insert(res.end(), head.begin(), head.end());
    }
    return res;
}

// A batch for it, as the memory object would place it.
void add_batch(morphkv_text & text, int32_t n, bool is_draft, int32_t n_ubatch, bool is_careful, int32_t limit) {
    const int32_t next = text.is_empty() ? n : text.positions.next();
    morphkv_plan  plan({ text }, { { n, is_draft ? n : 1, next } }, N_DRAFT, limit);
    CHECK(plan.is_prompt(0) == (n > 1 && !(is_draft && n <= N_DRAFT)));
    while (n > 0) {
        const int32_t n_now = std::min(n, plan.n_most(n_ubatch, is_careful));
        CHECK(n_now > 0 && n_now <= n_ubatch);
        std::vector<morphkv_planned_text> planned;
        CHECK(plan.add({ 0 }, n_now, planned) && planned.size() == 1);
        for (const size_t i_group : planned[0].cuts) {
            CHECK(text.n_used(i_group) > text.groups[i_group].shape.capacity);
            text.note_cut(i_group);
            CHECK(text.n_used(i_group) == text.groups[i_group].shape.capacity);
        }
        const int32_t pos = text.is_empty() ? next : text.positions.next();
        if (limit > 0 && !text.is_empty() && pos - text.rotary_offset >= limit) {
            std::vector<std::vector<int32_t>> ranked;
            for (size_t i = 0; i < text.groups.size(); ++i) {
                ranked.push_back(text.groups[i].has_evicted() ? some_slots(text, i, n) : std::vector<int32_t>());
            }
            text.note_rebase(text.rebase_offset(limit), ranked);
            CHECK(text.positions.next() - text.rotary_offset < limit);
        }
        for (size_t i = 0; i < text.groups.size(); ++i) {
            CHECK(planned[0].first_cells[i] == text.n_used(i));
            CHECK(planned[0].first_cells[i] + n_now <= text.groups[i].shape.n_limit);
        }
        text.append(pos, n_now, plan.is_prompt(0));
        n -= n_now;
    }
}

void remove_tail(morphkv_saved_text & saved, int32_t n, const recipe & r, const morphkv_text_rules & rules) {
    auto &        text = saved.text;
    const int32_t p0   = std::max(0, text.positions.next() - n);
    switch (morphkv_plan_removal(text, p0, -1, rules.can_lose)) {
        case morphkv_removal::NOTHING:
            CHECK(text.is_empty() || n == 0 || text.positions.runs().back().n_column > 0);
            break;
        case morphkv_removal::ALL:
            saved.text    = morphkv_text(rules.shape, rules.n_keep);
            saved.archive = {};
            break;
        case morphkv_removal::TAIL: {
            const int32_t first = text.positions.serial_from(p0);
            text.remove_from(first);
            CHECK(text.n_tokens() == first && text.pos_of(first - 1) < p0);
        } break;
        case morphkv_removal::REFUSED:
            CHECK(text.positions.serial_from(p0) <= text.first_complete(rules.can_lose) ||
                  !text.positions.can_end_at(text.positions.serial_from(p0)));
            break;
    }
    CHECK(text.is_empty() || r.has_images ||
          morphkv_plan_removal(text, 0, text.positions.next() - 1, rules.can_lose) != morphkv_removal::TAIL);
}

void happen(morphkv_saved_text & saved, event what, int32_t n, const recipe & r, const morphkv_text_rules & rules) {
    auto &        text  = saved.text;
    const int32_t limit = are_words(text) && n % 2 == 0 ? ROPE_LIMIT : 0;
    switch (what) {
        case event::APPEND:
            add_batch(text, 1, true, 1, false, limit);
            break;
        case event::PROMPT:
            add_batch(text, 1 + 2 * n, false, 16, n % 3 == 0, limit);
            break;
        case event::DRAFT:
            add_batch(text, 1 + n % (N_DRAFT + 2), true, 16, n % 3 == 0, limit);
            remove_tail(saved, n % 4, r, rules);
            break;
        case event::CUT:
            for (size_t i = 0; i < text.groups.size(); ++i) {
                if (text.n_used(i) > text.groups[i].shape.capacity) {
                    text.note_cut(i);
                }
            }
            break;
        case event::REMOVE:
            remove_tail(saved, n == 31 ? INT32_MAX : n, r, rules);
            break;
        case event::REBASE:
            if (are_words(text) && !text.is_empty() && text.positions.next() - text.rotary_offset >= ROPE_LIMIT) {
                add_batch(text, 1, true, 1, false, ROPE_LIMIT);
                CHECK(text.n_rebases > 0);
            }
            break;
        case event::RECALL:
            for (size_t i = 0; i < text.groups.size(); ++i) {
                if (text.groups[i].has_evicted()) {
                    const int64_t base = (int64_t) text.pos_of(text.groups[i].first_recent()) -
                                         text.groups[i].shape.n_distant() - text.rotary_offset;
                    text.note_recall(i, std::max<int64_t>(0, base - n), some_slots(text, i, n), n);
                }
            }
            break;
        case event::KEEP:
            text.n_keep = std::min(text.n_keep, n);
            break;
    }
    // what cells know of it
    for (size_t i = 0; i < text.groups.size(); ++i) {
        saved.tokens[i].resize(text.n_used(i));
    }
    saved.windowed_tokens.resize(text.windowed ? text.windowed->n_held : 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_report_at_exit();
    if (size < fuzz_n_recipe) {
        return 0;
    }
    const recipe             r     = read_recipe(data[0]);
    const morphkv_text_rules rules = rules_of(r);
    bytes_reader             io(data + fuzz_n_recipe, size - fuzz_n_recipe);

    std::optional<morphkv_saved_text> saved;
    if (r.is_mended) {
        saved = fuzz_make_text(io, rules, r.version, N_PAGES_MAX);
    } else {
        try {
            morphkv_hashed_reader in(io);
            saved = morphkv_read_text(in, r.version, rules);
        } catch (const std::runtime_error & err) {
            CHECK(err.what()[0] != 0);
            g_fuzz_counts["refused"]++;
            return 0;
        }
    }
    g_fuzz_counts["loaded"]++;
    g_fuzz_counts["loaded, of an older version"] += !r.is_mended && r.version < MORPHKV_STATE_VERSION;
    check_is_sound(saved->text, r, rules);
    check_is_read_again(*saved, r, rules);

    for (int i = 0; i < N_EVENTS && io.n_left() > 0; ++i) {
        uint8_t byte;
        io.read(&byte, sizeof(byte));
        // numbers that can grow no more
        const auto & text = saved->text;
        if (std::max(text.positions.next(), text.n_tokens()) > END - 128 ||
            std::max(text.n_recalls, text.n_recalled) > INT64_MAX / 2 - 128) {
            break;
        }
        const int64_t n_evicted = text.groups[0].n_evicted;
        happen(*saved, event(byte & 7), byte >> 3, r, rules);
        check_is_sound(saved->text, r, rules);
        check_is_read_again(*saved, r, rules);
        g_fuzz_counts["things that happened"]++;
        g_fuzz_counts["of these with an eviction"] += text.groups[0].n_evicted > n_evicted;
    }
    return 0;
}

void fuzz_write_corpus(const std::string & folder) {
    int n_seeds = 0;
    for (int kind = 0; kind < 8; ++kind) {
        for (const int n_words : { 0, 5, 18, 70, 300 }) {
            recipe r         = { (kind & 1) != 0, (kind & 2) != 0, (kind & 4) != 0, false, false, 6 };
            r.version        = r.has_two_groups ? 6 : 6 - n_seeds % 3;
            r.is_mended      = r.version == 6 && n_seeds % 2 == 0;
            r.has_images     = r.version == 6 && n_words == 18;
            const auto rules = rules_of(r);

            morphkv_saved_text saved = { morphkv_text(rules.shape, rules.n_keep), {}, {}, {} };
            saved.tokens.resize(rules.shape.groups.size());
            if (n_words > 0) {
                saved.text.append(0, 1, true);
                happen(saved, event::PROMPT, 2, r, rules);
            }
            while (saved.text.n_tokens() < n_words) {
                happen(saved, event::APPEND, 2, r, rules);
            }
            if (saved.text.has_evicted() && n_words == 70) {
                happen(saved, event::RECALL, 3, r, rules);
            }
            if (r.has_archive && saved.text.has_evicted()) {
                saved.archive.first    = 0;
                saved.archive.n_tokens = saved.text.groups[0].first_recent();
                saved.archive.dropped  = saved.archive.n_full() / 2;
            }
            if (r.has_images) {
                // the last words are an image
                auto       runs = saved.text.positions.runs();
                const auto last = runs.back();
                CHECK(runs.size() == 1 && last.n > 6);
                runs.back().n -= 6;
                runs.push_back({ last.n - 6, 6, last.pos + last.n - 6, 3 });
                saved.text.positions.set(runs);
            }

            bytes_writer          io;
            morphkv_hashed_writer out(io);
            io.data = { write_recipe(r) };
            write_text(out, saved, r.has_archive, r.is_mended ? MORPHKV_STATE_VERSION : r.version);
            for (int i = 0; i < 24; ++i) {
                io.data.push_back(i * 37 + n_seeds);
            }
            fuzz_write_seed(folder, n_seeds++, io.data);
        }
    }
}
