// The planner against a simulation that decodes token by token into lists: the same cuts and rebases before the same tokens,
// however these come in micro-batches.

#include "case.h"

#include "core/plan.h"

#include <algorithm>
#include <random>

static constexpr int32_t VOTES = 3, N_DRAFT = 3, N_QUERY_ROWS = VOTES + N_DRAFT;

// What happens before a token.
struct event {
    std::vector<size_t>  cuts;
    std::vector<int32_t> cells;  // of the token, by group
    int32_t              offset;
};

static bool operator==(const event & a, const event & b) {
    return a.cuts == b.cuts && a.cells == b.cells && a.offset == b.offset;
}

struct simulation {
    std::vector<morphkv_cut_shape>    shapes;
    int32_t                           limit;
    std::vector<int32_t>              pos;     // of each token
    std::vector<bool>                 votes;   // whether the token's query is there
    std::vector<std::vector<int32_t>> recent;  // by group: tokens behind the slots, or all
    std::vector<bool>                 evicted;
    int32_t                           last_of_prompt = -1;
    int32_t                           offset         = 0;

    int32_t n_cells(size_t g) const { return (evicted[g] ? shapes[g].n_distant() : 0) + recent[g].size(); }

    bool all_vote() const {
        return (int32_t) votes.size() >= VOTES &&
               std::all_of(votes.end() - VOTES, votes.end(), [](bool there) { return there; });
    }

    // n_step: tokens of the draft that begins here, 0 inside of one and in prompts
    event decode(int32_t next_pos, int32_t n_step, bool is_prompt) {
        event     res;
        const int n      = pos.size();
        bool      is_cut = false;
        for (size_t g = 0; g < shapes.size(); ++g) {
            const bool is_full = n_cells(g) == shapes[g].n_limit;
            const bool is_early =
                n_step > 0 && n_cells(g) > shapes[g].capacity && n_cells(g) + n_step > shapes[g].n_limit;
            const bool is_due = n_step > 0 && n_cells(g) >= shapes[g].capacity + shapes[g].interval &&
                                n - 1 > last_of_prompt && all_vote();
            is_cut |= (is_full && n_cells(g) > shapes[g].capacity) || is_early || is_due;
        }
        for (size_t g = 0; is_cut && g < shapes.size(); ++g) {
            if (n_cells(g) > shapes[g].capacity) {
                res.cuts.push_back(g);
            }
        }
        for (const size_t g : res.cuts) {
            recent[g].erase(recent[g].begin(), recent[g].end() - shapes[g].window);
            evicted[g] = true;
        }
        if (limit > 0 && n > 0 && next_pos - offset >= limit) {
            int32_t n_most = 0;
            for (const auto & shape : shapes) {
                n_most = std::max(n_most, shape.n_limit);
            }
            offset = INT32_MAX;
            for (size_t g = 0; g < shapes.size(); ++g) {
                // slots, and half of what is free below the limit, come before the recent tokens
                offset = std::min(offset, evicted[g] ? pos[recent[g][0]] - shapes[g].n_distant() - (limit - n_most) / 2
                                                     : pos[0]);
            }
        }
        CHECK(n == 0 || limit == 0 || next_pos - offset < limit);
        for (size_t g = 0; g < shapes.size(); ++g) {
            res.cells.push_back(n_cells(g));
            CHECK(n_cells(g) < shapes[g].n_limit);
            recent[g].push_back(n);
        }
        res.offset = offset;
        pos.push_back(next_pos);
        votes.push_back(true);
        if (n >= N_QUERY_ROWS) {
            votes[n - N_QUERY_ROWS] = false;
        }
        last_of_prompt = is_prompt ? n : last_of_prompt;
        return res;
    }

    void remove_last(int32_t n) {
        for (int32_t i = 0; i < n; ++i) {
            pos.pop_back();
            votes.pop_back();
            for (auto & held : recent) {
                held.pop_back();
            }
        }
        last_of_prompt = std::min<int32_t>(last_of_prompt, pos.size());
    }

    // One recent token must stay.
    int32_t n_removable() const {
        size_t res = pos.size() - 1;
        for (size_t g = 0; g < shapes.size(); ++g) {
            res = evicted[g] ? std::min(res, recent[g].size() - 1) : res;
        }
        return res;
    }
};

class random_run {
public:
    random_run(uint32_t seed, const std::vector<morphkv_cut_shape> & shapes, int32_t n_texts, int32_t limit)
        : random(seed),
          limit(limit) {
        for (int32_t i = 0; i < n_texts; ++i) {
            texts.emplace_back(morphkv_text_shape{ shapes, 0, VOTES, N_QUERY_ROWS }, 0);
            simulations.push_back(
                { shapes, limit, {}, {}, { shapes.size(), std::vector<int32_t>() }, std::vector<bool>(shapes.size()) });
        }
    }

    void step() {
        roll_back();
        std::vector<morphkv_batch_part> parts(texts.size());
        for (size_t i = 0; i < texts.size(); ++i) {
            const int32_t n   = below(3) == 0 ? 0 : below(3) == 0 ? 1 + below(40) : 1 + below(4);
            const int32_t pos = texts[i].is_empty() ? below(15) : texts[i].positions.next();
            parts[i]          = { n, below(2) == 0 ? n : std::min(n, 1), pos };
        }
        const bool is_careful = below(2) == 0;
        auto       planned    = run_plan(parts, is_careful);
        if (planned.empty()) {
            CHECK(!is_careful);  // the first try may fail, the second must not
            planned = run_plan(parts, true);
        }
        for (size_t i = 0; i < texts.size(); ++i) {
            const bool is_step = parts[i].n == 1 || (parts[i].n <= N_DRAFT && parts[i].n_logits == parts[i].n);
            for (int32_t j = 0; j < parts[i].n; ++j) {
                const event want =
                    simulations[i].decode(parts[i].pos + j, is_step && j == 0 ? parts[i].n : 0, !is_step);
                CHECK(planned[i].at(j) == want);
            }
            CHECK((int32_t) planned[i].size() == parts[i].n);
        }
    }

    int32_t n_cuts = 0, n_rebases = 0;

private:
    int32_t below(int32_t n) { return random() % n; }

    void roll_back() {
        for (size_t i = 0; i < texts.size(); ++i) {
            const int32_t n_most = texts[i].is_empty() ? 0 : std::min(simulations[i].n_removable(), 6);
            if (n_most > 0 && below(3) == 0) {
                const int32_t n = 1 + below(n_most);
                texts[i].remove_from(texts[i].n_tokens() - n);
                simulations[i].remove_last(n);
            }
        }
    }

    // By text what happened before each of its tokens; the texts are as after the batch. Empty where a micro-batch had no cells.
    std::vector<std::vector<event>> run_plan(const std::vector<morphkv_batch_part> & parts, bool is_careful) {
        morphkv_plan                    plan(texts, parts, N_DRAFT, limit);
        auto                            after = texts;
        auto                            left  = parts;
        std::vector<std::vector<event>> res(texts.size());
        while (true) {
            std::vector<int32_t> some;
            int32_t              n = INT32_MAX;
            for (size_t i = 0; i < texts.size(); ++i) {
                if (left[i].n > 0 && (some.empty() || below(3) > 0)) {
                    some.push_back(i);
                    n = std::min(n, left[i].n);
                }
            }
            if (some.empty()) {
                break;
            }
            const int32_t n_most = plan.n_most(1 + below(30), is_careful);
            CHECK(n_most > 0);
            // a splitter gives each text of a micro-batch as many
            some.resize(std::min<size_t>(some.size(), n_most));
            n = std::min<int32_t>(n, n_most / some.size());

            std::vector<morphkv_planned_text> planned;
            if (!plan.add(some, n, planned)) {
                return {};
            }
            for (const auto & one : planned) {
                take(one, n, parts, plan.is_prompt(one.i_text), after[one.i_text], res[one.i_text]);
                left[one.i_text].n -= n;
            }
        }
        texts = after;
        return res;
    }

    // What a cache does with it.
    void take(const morphkv_planned_text & one, int32_t n, const std::vector<morphkv_batch_part> & parts,
              bool is_prompt, morphkv_text & text, std::vector<event> & events) {
        for (const size_t g : one.cuts) {
            text.note_cut(g);
            n_cuts++;
        }
        const int32_t next = text.is_empty() ? parts[one.i_text].pos : text.positions.next();
        if (limit > 0 && !text.is_empty() && next - text.rotary_offset >= limit) {
            text.rotary_offset = text.rebase_offset(limit);
            n_rebases++;
        }
        for (int32_t j = 0; j < n; ++j) {
            event cur{ j == 0 ? one.cuts : std::vector<size_t>(), one.first_cells, text.rotary_offset };
            for (int32_t & cell : cur.cells) {
                cell += j;
            }
            events.push_back(cur);
        }
        text.append(next, n, is_prompt);
    }

    std::mt19937              random;
    int32_t                   limit;
    std::vector<morphkv_text> texts;
    std::vector<simulation>   simulations;
};

static void run(const std::vector<morphkv_cut_shape> & shapes, int32_t n_texts, int32_t limit) {
    int32_t n_cuts = 0, n_rebases = 0;
    for (uint32_t seed = 0; seed < 10; ++seed) {
        random_run random(seed, shapes, n_texts, limit);
        for (int32_t i = 0; i < 60; ++i) {
            random.step();
        }
        n_cuts += random.n_cuts;
        n_rebases += random.n_rebases;
    }
    CHECK(n_cuts > 100 && (n_rebases > 20) == (limit > 0));
}

static const morphkv_cut_shape SMALL = { 8, 4, 2, 14 }, TIGHT = { 8, 4, 2, 10 }, LARGE = { 12, 5, 4, 20 },
                               EACH = { 6, 5, 1, 7 };

TEST_CASE(one_text_is_cut_as_if_token_by_token) {
    run({ SMALL }, 1, 0);
}

TEST_CASE(a_text_without_room_for_prompts_is_cut_as_if_token_by_token) {
    run({ TIGHT }, 1, 0);
}

TEST_CASE(a_text_with_an_eviction_at_every_token_is_cut_as_if_token_by_token) {
    run({ EACH }, 1, 0);
}

TEST_CASE(three_texts_in_a_batch_are_cut_as_if_token_by_token) {
    run({ SMALL }, 3, 0);
}

TEST_CASE(two_groups_of_layers_are_cut_as_if_token_by_token) {
    run({ SMALL, LARGE }, 1, 0);
    run({ TIGHT, LARGE }, 2, 0);
}

TEST_CASE(three_groups_of_layers_are_cut_as_if_token_by_token) {
    run({ LARGE, EACH, TIGHT }, 2, 0);
}

TEST_CASE(rotary_positions_are_rebased_as_if_token_by_token) {
    run({ SMALL }, 2, 40);
}

TEST_CASE(a_rotary_limit_just_above_the_cells_is_kept) {
    run({ SMALL }, 1, 15);
    run({ SMALL, LARGE }, 2, 21);
}
