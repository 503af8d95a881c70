// Texts that were read once and for all: a file of one is written, attached to a context, and brought from. What is attached
// comes before each text of the context, as if that had begun with it (core/sources.h).

#include "core/hash.h"
#include "core/opening.h"
#include "core/restore.h"
#include "core/search.h"
#include "device/graph-recall.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "llama/memory.h"

#include <algorithm>
#include <cstring>
#include <map>

// Most tokens at a prompt's end that are decoded again by default, and the last one.
static constexpr int32_t N_REDO = 129;

static constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

static void check(bool ok, morphkv_status status, const std::string & what) {
    if (!ok) {
        throw morphkv_error(status, what);
    }
}

// Tells models apart: by their file, and by the weights of their norms, which are F32 wherever they lie.
static uint64_t hash_model(const llama_model & model, const char * model_path) {
    morphkv_word_hash res;
    if (model_path) {
        res.add(morphkv_hash_model_file(model_path));
    }
    std::vector<uint8_t> data;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        res.add(name.data(), name.size());
        res.add(tensor->ne, sizeof(tensor->ne));
        if (tensor->type == GGML_TYPE_F32 && ggml_n_dims(tensor) == 1 && tensor->buffer &&
            name.find("norm") != std::string::npos) {
            data.resize(ggml_nbytes(tensor));
            ggml_backend_tensor_get(tensor, data.data(), 0, data.size());
            res.add(data.data(), data.size());
        }
    }
    return res.get();
}

void morphkv_cache::attach(llama_context * lctx, const std::string & path, const char * model_path) {
    set_context(lctx);
    check(archives != nullptr, MORPHKV_STATUS_INVALID, "a file is attached beside an archive, and none was started");
    check(!follows_target, MORPHKV_STATUS_UNSUPPORTED, "nothing can be attached to a draft head");
    for (llama_seq_id s = 0; s < (llama_seq_id) sequences.size(); ++s) {
        check(n_used(s) == 0, MORPHKV_STATUS_INVALID,
              "a file must be attached before anything is decoded, but sequence " + std::to_string(s) + " holds " +
                  std::to_string(n_used(s)) + " tokens");
    }
    auto file =
        std::make_shared<morphkv_knowledge>(path, archives->of(0).layout, hash_model(lctx->get_model(), model_path));
    const auto is_one = [&](const auto & other) {
        return other->get_id() == file->get_id();
    };
    check(std::none_of(attached.begin(), attached.end(), is_one), MORPHKV_STATUS_INVALID,
          path + " is attached already");
    const int64_t n_slots = groups.back().shape.n_distant();
    check(file->n_tokens() >= n_slots, MORPHKV_STATUS_INVALID,
          path + " must have at least as many tokens as there are slots for (capacity - window = " +
              std::to_string(n_slots) + "), got " + std::to_string(file->n_tokens()) +
              ": a text that short fits into a prompt");
    check(sources_of(0).n_attached() + file->n_pages() < (1 << 25), MORPHKV_STATUS_INVALID,
          "all attached files must have fewer than 2^29 tokens");
    attached.push_back(std::move(file));
    if (!reader) {
        try {
            reader = std::make_unique<morphkv_reader>(*lctx, archives->of(0).layout);
        } catch (const std::exception & err) {
            LLAMA_LOG_WARN("%s: MorphKV: recalled passages of files are not read again: %s\n", __func__, err.what());
        }
    }
}

uint32_t morphkv_cache::attached_hash() const {
    if (attached.empty()) {
        return 0;
    }
    morphkv_word_hash res;
    for (const auto & file : attached) {
        res.add(file->get_id());
    }
    return (uint32_t) (res.get() >> 32) | 1;
}

void morphkv_cache::write_knowledge(llama_seq_id seq_id, const std::string & path, const char * model_path,
                                    const llama_token * tokens, int32_t n) {
    check(archives != nullptr, MORPHKV_STATUS_INVALID, "a file is written of an archive, and none was started");
    const auto & text = sequences[seq_id].text;
    check(n == text.n_tokens(), MORPHKV_STATUS_INVALID,
          "n_tokens must be " + std::to_string(text.n_tokens()) + ", got " + std::to_string(n));
    check(n > 0 && n % N_PAGE == 0, MORPHKV_STATUS_INVALID,
          "an archive is written in whole pages of 16 tokens, got " + std::to_string(n) + " tokens");
    auto & archive = archives->of(seq_id);
    // as it was: what is in cells is not in it
    auto   give    = [&] {
        archives->of(seq_id).truncate(text.has_evicted() ? text.groups[GROUP].first_recent() : 0);
    };
    try {
        archive_all(seq_id);
        morphkv_write_knowledge(path, archives->of(seq_id), hash_model(engine.context()->get_model(), model_path),
                                { tokens, tokens + n });
        give();
    } catch (...) {
        if (archive.why_stopped().empty()) {
            give();
        }
        throw;
    }
}

void morphkv_cache::note_brought(llama_seq_id seq_id, const morphkv_pages & pages,
                                 const std::vector<morphkv_slots> & slots) {
    auto &     from    = sequences[seq_id].from;
    const auto sources = sources_of(seq_id);
    from.pages.clear();
    for (const auto & [page, _] : pages) {
        from.pages.push_back(page);
    }
    from.n_tokens.resize(attached.size());
    for (const auto & layer : slots) {
        for (size_t i = 0; i < layer.after.size(); ++i) {
            if (layer.after[i] >= 0 || layer.after[i] == layer.before[i]) {
                continue;
            }
            const size_t i_source = sources.source_of(sources.page_of(layer.after[i]));
            if (i_source < attached.size()) {
                from.n_tokens[i_source]++;
            }
        }
    }
    for (size_t i = 0; i < attached.size(); ++i) {
        const std::string news = attached[i]->take_news();
        if (!news.empty()) {
            LLAMA_LOG_WARN("%s: MorphKV: attached: %s\n", "tell", news.c_str());
        }
    }
}

morphkv_archive::rows morphkv_cache::read_rows(llama_seq_id seq_id, int32_t first, int32_t n) {
    archive_all(seq_id);
    return morphkv_take_passage(archives->of(seq_id), first, n).rows;
}

// Rows of cells [first, first + n) come to those from `to` on.
static void shift_rows(const morphkv_side & side, llama_seq_id seq_id, int32_t first, int32_t n, int32_t to) {
    std::vector<uint8_t> rows;
    for (const auto & layer : side.layers) {
        for (ggml_tensor * t : { layer.k, layer.v }) {
            if (t) {
                const size_t at = seq_id * t->nb[2];
                rows.resize(n * t->nb[1]);
                ggml_backend_tensor_get(t, rows.data(), at + first * t->nb[1], rows.size());
                ggml_backend_tensor_set(t, rows.data(), at + to * t->nb[1], rows.size());
            }
        }
    }
}

static morphkv_pages found_pages(const morphkv_sources & sources, const std::vector<int64_t> & pages) {
    morphkv_pages res;
    for (const int64_t page : pages) {
        if (auto found = sources.find_page(page)) {
            res.emplace_back(page, std::move(found));
        }
    }
    return res;
}

// What a head's slots get, all heads of a group alike.
static std::vector<morphkv_slots> slots_of(const std::vector<int32_t> & of_head, const morphkv_side & side) {
    std::vector<morphkv_slots> res;
    for (const auto & layer : side.layers) {
        morphkv_slots slots;
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            slots.after.insert(slots.after.end(), of_head.begin(), of_head.end());
        }
        for (const int32_t serial : slots.after) {
            slots.before.push_back(serial < 0 ? -1 : serial);
        }
        res.push_back(std::move(slots));
    }
    return res;
}

// What tensors hold, to go back to.
class tensors_before {
public:
    explicit tensors_before(std::vector<morphkv_slice> all) : slices(std::move(all)) {
        for (const auto & slice : slices) {
            data.emplace_back(slice.size);
            ggml_backend_tensor_get(slice.tensor, data.back().data(), slice.offset, slice.size);
        }
    }

    void put_back() const {
        for (size_t i = 0; i < slices.size(); ++i) {
            ggml_backend_tensor_set(slices[i].tensor, data[i].data(), slices[i].offset, slices[i].size);
        }
    }

private:
    std::vector<morphkv_slice>        slices;
    std::vector<std::vector<uint8_t>> data;
};

bool morphkv_cache::open_slots(llama_seq_id seq_id, const morphkv_recall_params & p, int64_t t_start_us,
                               morphkv_recalled & res) {
    auto & text = sequences[seq_id].text;
    if (text.n_tokens() <= text.n_keep) {
        return true;
    }
    // those that a prompt decodes again once something has come, where no eviction is due then; so a slot at least is free
    const int32_t n_more = std::min(params.interval, std::max(1, N_REDO - params.window));
    const auto    opened = morphkv_opened(text, params.window + n_more);
    if (!opened) {
        // there is no free slot, and one is free once it is cut
        check(cut({ seq_id }), MORPHKV_STATUS_FAILED, morphkv_last_error());
        return false;
    }
    const asked now = ask(seq_id, p, p.votes > 0 ? p.votes : std::min(MORPHKV_RECALL_VOTES, params.votes));
    if (now.n_votes == 0) {
        return true;
    }
    archive_old(seq_id, 0);  // what another text left is not asked
    const int32_t n_first  = opened->groups[GROUP].first_recent();
    const int32_t n_opened = morphkv_n_opened(*opened);
    morphkv_pages wanted;
    morphkv_pages
        pages;  // for all free slots: those, and then others as they come, as more of the best have more that is alike
    {
        const auto            sources  = sources_of(seq_id);
        const auto            layers   = cut_layers();
        const size_t          n_wanted = n_wanted_pages(seq_id, p);
        const size_t          n_look   = morphkv_n_pages_to_look_at(n_wanted, p.look, sources.n_pages());
        morphkv_device_scorer scorer(engine, layers, sources, now.queries);
        wanted = found_pages(sources, morphkv_choose_pages(sources, n_wanted, n_look, text.n_keep, scorer));
        pages  = wanted;
        morphkv_fill_up(sources, n_opened, pages);
    }
    const double ask_ms = (ggml_time_us() - t_start_us) / 1000.0;
    read_again(seq_id, p, wanted, res);
    std::copy(wanted.begin(), wanted.end(), pages.begin());
    archive_old(seq_id, n_first);

    const auto                              sources = sources_of(seq_id);
    std::vector<std::vector<morphkv_slots>> slots;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto of_head = morphkv_open_slots(*opened, i, sources, pages);
        if (of_head.empty()) {
            archives->of(seq_id).truncate(0);
            return true;  // too many pages are damaged
        }
        slots.push_back(slots_of(of_head, groups[i].side));
    }
    const morphkv_text                    was = text;
    const tensors_before                  before(slices(seq_id, *opened));
    std::vector<std::vector<llama_token>> tokens;
    for (const auto & group : groups) {
        tokens.push_back(morphkv_get_tokens(group, seq_id, 0, text.n_tokens()));
        shift_rows(group.side, seq_id, n_first, text.n_tokens() - n_first, group.shape.n_distant());
    }
    // tokens stand where they did until they are moved
    text               = *opened;
    text.rotary_offset = was.rotary_offset;
    for (auto & group : text.groups) {
        group.base = 0;
    }
    std::vector<morphkv_move_plan> plans;
    morphkv_runner                 runner(engine);
    runner.inject_failure = inject_failure;
    std::string why;
    for (size_t i = 0; i < groups.size() && why.empty(); ++i) {
        try {
            plans.push_back(plan_moves(seq_id, i, opened->rotary_offset, opened->groups[i].base, slots[i], pages));
            why = run_moves(seq_id, i, plans[i].layers, was.rotary_offset - opened->rotary_offset, runner);
        } catch (const std::exception & err) {
            why = err.what();
        }
    }
    if (!why.empty()) {
        synchronize();
        before.put_back();
        text = was;
        archives->of(seq_id).truncate(0);
        throw morphkv_error(MORPHKV_STATUS_FAILED,
                            "recall failed: " + why + "; sequence " + std::to_string(seq_id) + " is unchanged");
    }
    text           = *opened;
    res.n_archived = sources.n_attached() * N_PAGE;
    res.ask_ms     = ask_ms;
    for (const auto & plan : plans) {
        for (const auto & move : plan.layers) {
            res.n_recalled += move.filled.size();
        }
    }
    for (size_t i = 0; i < groups.size(); ++i) {
        auto & side = groups[i].side;
        side.set_first_serials(seq_id);
        for (size_t il = 0; il < side.layers.size(); ++il) {
            side.set_serials(side.layers[il], seq_id, slots[i][il].after);
        }
        const int32_t base = opened->groups[i].base;
        if (i == GROUP) {
            text.note_recall(GROUP, base, std::move(plans[i].ranked), res.n_recalled);
        } else {
            text.note_placed(i, base, std::move(plans[i].ranked));
        }
        std::vector<llama_token> in_cells;
        for (int32_t j = 0; j < text.n_used(i); ++j) {
            in_cells.push_back(tokens[i][text.groups[i].serial_in(j)]);
        }
        groups[i].cells->llama_kv_cache::seq_rm(seq_id, -1, -1);
        morphkv_set_tokens(groups[i], seq_id, text, i, 0, in_cells, n_pos);
        note_brought(seq_id, wanted, slots[i]);
    }
    res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    sequences[seq_id].recall_ms += res.took_ms;
    return true;
}
