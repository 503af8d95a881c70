// Plans of moves, carried out on cells that are plain numbers: after evictions, rebases and recalls in any order each key is
// that of its slot's token and rotated to where it belongs.

#include "moved_cells.h"

#include <algorithm>
#include <random>

struct cell {
    int32_t serial;    // of whom the key is
    int64_t rotary;    // where it stands
    int32_t of_value;  // of whom the value is
};

struct setting {
    std::vector<morphkv_moved_layer> layers;
    bool                             has_archive, is_exact, keeps_originals;
    uint64_t                         n_max_pages;
};

class moved_text {
public:
    moved_text(uint32_t seed, const setting & setting)
        : random(seed),
          setting_(setting),
          text({ { SHAPE }, 0, 2, 4 }, 0),
          archive(layout_of(setting.layers), morphkv_page_store_ram(),
                  setting.n_max_pages * (layout_of(setting.layers).page_bytes + 2 * n_heads())),
          rows(setting.layers.size()) {}

    void step() {
        while (text.n_used(0) < SHAPE.n_limit) {
            append();
        }
        evict();
        const int32_t what = below(4);
        if (what == 0) {
            rebase();
        } else if (what == 1 && setting_.has_archive && archive.n_full() > archive.n_dropped()) {
            recall();
        }
        check();
    }

    int32_t n_rebases = 0, n_recalls = 0;

private:
    static constexpr morphkv_cut_shape SHAPE = { /*capacity =*/9, /*window =*/4, /*interval =*/3, /*n_limit =*/14 };

    int32_t below(int32_t n) { return random() % n; }

    int32_t n_heads() const {
        int32_t res = 0;
        for (const auto & layer : setting_.layers) {
            res += layer.n_head_kv;
        }
        return res;
    }

    void append() {
        const int32_t pos = text.is_empty() ? 30 : text.positions.next(), serial = text.n_tokens();
        text.append(pos, 1, false);
        for (size_t il = 0; il < rows.size(); ++il) {
            rows[il].resize(rows[il].size() + setting_.layers[il].n_head_kv,
                            { serial, (int64_t) pos - text.rotary_offset, serial });
        }
    }

    // Each head keeps any of its older tokens.
    void evict() {
        const int32_t n_old = text.n_used(0) - SHAPE.window;
        if (setting_.has_archive) {
            const int32_t end = std::max(0, archive.end()), first_recent = text.n_tokens() - SHAPE.window;
            append_tokens(archive, end, first_recent - end);
        }
        for (size_t il = 0; il < rows.size(); ++il) {
            const int32_t n_head = setting_.layers[il].n_head_kv;
            for (int32_t h = 0; h < n_head; ++h) {
                // slots, and graduates in the places of some
                for (int32_t i = SHAPE.n_distant(); i < n_old; ++i) {
                    if (below(2) == 0) {
                        rows[il][below(SHAPE.n_distant()) * n_head + h] = rows[il][i * n_head + h];
                    }
                }
            }
            rows[il].erase(rows[il].begin() + SHAPE.n_distant() * n_head, rows[il].begin() + n_old * n_head);
        }
        text.note_cut(0);
    }

    // (n_head_kv, n_distant)
    std::vector<int32_t> slots_of(size_t il) const {
        std::vector<int32_t> res;
        const int32_t        n_head = setting_.layers[il].n_head_kv;
        for (int32_t h = 0; h < n_head; ++h) {
            for (int32_t i = 0; i < SHAPE.n_distant(); ++i) {
                res.push_back(rows[il][i * n_head + h].serial);
            }
        }
        return res;
    }

    void rebase() {
        std::vector<morphkv_slots> slots;
        for (size_t il = 0; il < rows.size(); ++il) {
            slots.push_back({ slots_of(il), slots_of(il) });
        }
        // anything between no change and all distant tokens close together
        const int32_t most   = text.pos_of(text.groups[0].first_recent()) - SHAPE.n_distant();
        const int32_t offset = text.rotary_offset + below(most - text.rotary_offset + 1);
        auto          plan   = run_plan(slots, {}, offset, 0);
        text.note_rebase(offset, { std::move(plan.ranked) });
        n_rebases++;
    }

    void recall() {
        const int64_t              i_page = archive.n_dropped() + below(archive.n_full() - archive.n_dropped());
        const auto                 page   = archive.find_page(i_page);
        std::vector<morphkv_slots> slots;
        for (size_t il = 0; il < rows.size(); ++il) {
            slots.push_back({ slots_of(il), slots_of(il) });
            // any of its tokens that is not there yet, into any slot of any head
            for (int32_t i = 0; i < 4; ++i) {
                const int32_t h = below(setting_.layers[il].n_head_kv), serial = archive.serial_of(i_page) + below(16);
                const auto    begin  = slots[il].after.begin() + h * SHAPE.n_distant();
                const bool    is_new = std::find(begin, begin + SHAPE.n_distant(), serial) == begin + SHAPE.n_distant();
                if (is_new) {
                    *(begin + below(SHAPE.n_distant())) = serial;
                }
            }
        }
        const int32_t first_recent = text.pos_of(text.groups[0].first_recent()) - text.rotary_offset;
        const int32_t base         = first_recent - SHAPE.n_distant();
        auto          plan         = run_plan(slots, { { i_page, page } }, text.rotary_offset, base);
        text.note_recall(0, base, std::move(plan.ranked), 1);
        n_recalls++;
    }

    morphkv_move_plan run_plan(const std::vector<morphkv_slots> & slots, const morphkv_pages & pages, int32_t offset,
                               int32_t base) {
        auto plan =
            morphkv_plan_moves(text, 0, setting_.layers, slots, pages, setting_.has_archive ? &archive : nullptr,
                               setting_.is_exact, setting_.keeps_originals ? &originals : nullptr, offset, base);
        for (size_t il = 0; il < rows.size(); ++il) {
            carry_out(il, plan.layers[il]);
            place(il, slots[il].after, offset, base);
        }
        return plan;
    }

    void carry_out(size_t il, const morphkv_move & move) {
        CHECK(move.turned.size() == move.by.size() && move.placed.size() == move.at.size());
        const int32_t n_head = setting_.layers[il].n_head_kv;
        for (size_t i = 0; i < move.turned.size(); ++i) {
            rows[il][move.turned[i]].rotary += move.by[i];
        }
        const auto k = floats_of(move.k), v = floats_of(move.v);
        CHECK(k.size() == move.placed.size() && v.size() == move.filled.size());
        for (size_t i = 0; i < move.placed.size(); ++i) {
            cell & cur = rows[il][move.placed[i]];
            cur.serial = (int32_t) k[i] / 100;
            cur.rotary = move.at[i];
            CHECK(k[i] == key_of(cur.serial, il, move.placed[i] % n_head));
        }
        for (size_t i = 0; i < move.filled.size(); ++i) {
            cell & cur   = rows[il][move.filled[i]];
            cur.of_value = (int32_t) v[i] / 100;
            CHECK(v[i] == value_of(cur.of_value, il, move.filled[i] % n_head));
        }
    }

    // Where tokens ought to be: recent ones at their position less the offset; of the others each that would be below the
    // slots' number at its rank.
    void place(size_t il, const std::vector<int32_t> & after, int32_t offset, int32_t base) {
        const int32_t n_head = setting_.layers[il].n_head_kv, n_distant = SHAPE.n_distant();
        for (size_t row = 0; row < rows[il].size(); ++row) {
            const int32_t i = row / n_head, h = row % n_head;
            const cell &  cur = rows[il][row];
            if (i < n_distant) {
                CHECK(cur.serial == after[h * n_distant + i]);
            }
            CHECK(cur.of_value == cur.serial);
            int64_t want = (int64_t) text.pos_of(cur.serial) - offset;
            if (i < n_distant && want < base + n_distant) {
                want = base;
                for (int32_t j = 0; j < n_distant; ++j) {
                    want += after[h * n_distant + j] < cur.serial;
                }
            }
            CHECK(!setting_.layers[il].rotates || cur.rotary == want);
        }
    }

    // What the text says of all of them.
    void check() const {
        size_t i_head = 0;
        for (size_t il = 0; il < rows.size(); ++il) {
            const int32_t n_head = setting_.layers[il].n_head_kv;
            for (size_t row = 0; row < rows[il].size(); ++row) {
                const cell & cur = rows[il][row];
                CHECK(!setting_.layers[il].rotates ||
                      text.rotary_position(0, i_head + row % n_head, cur.serial) == cur.rotary);
            }
            i_head += n_head;
        }
    }

    std::mt19937                   random;
    const setting                  setting_;
    morphkv_text                   text;
    morphkv_archive                archive;
    std::vector<morphkv_originals> originals;
    std::vector<std::vector<cell>> rows;  // by layer: (n_used, n_head_kv)
};

constexpr morphkv_cut_shape moved_text::SHAPE;

static void run(const setting & setting) {
    int32_t n_rebases = 0, n_recalls = 0;
    for (uint32_t seed = 0; seed < 10; ++seed) {
        moved_text text(seed, setting);
        for (int32_t i = 0; i < 60; ++i) {
            text.step();
        }
        n_rebases += text.n_rebases;
        n_recalls += text.n_recalls;
    }
    CHECK(n_rebases > 50 && (n_recalls > 50) == setting.has_archive);
}

static const std::vector<morphkv_moved_layer> LAYERS = { { 2, true }, { 1, false }, { 3, true } };

TEST_CASE(keys_that_are_turned_stand_right) {
    run({ LAYERS, /*has_archive =*/false, /*is_exact =*/false, /*keeps_originals =*/false, 0 });
}

TEST_CASE(keys_of_an_exact_archive_stand_right) {
    run({ LAYERS, true, true, false, 0 });
}

TEST_CASE(keys_stand_right_where_an_archive_brings_recalled_ones_alone) {
    run({ LAYERS, true, false, false, 0 });
}

TEST_CASE(keys_stand_right_where_originals_are_kept) {
    run({ LAYERS, true, true, true, 0 });
}

TEST_CASE(keys_stand_right_where_pages_have_made_room) {
    run({ LAYERS, true, true, false, 3 });
    run({ LAYERS, true, true, true, 3 });
}
