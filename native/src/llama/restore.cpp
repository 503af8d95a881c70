// Going back by the archive to any place of a text, where that has been evicted in part, and putting a passage behind a text
// (core/restore.h). Nearly what the text would be: keys and values are the archive's, and which distant tokens there were is
// not known.

#include "core/restore.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>
#include <stdexcept>

static void check(bool ok, morphkv_status status, const std::string & what) {
    if (!ok) {
        throw morphkv_error(status, what);
    }
}

void morphkv_cache::check_restorable() const {
    check(archives != nullptr, MORPHKV_STATUS_INVALID, "a restore needs an archive, and none was started");
    check(!window && !follows_target, MORPHKV_STATUS_UNSUPPORTED,
          "a restore is not possible with layers that have a sliding window");
}

std::vector<morphkv_group_slots> morphkv_cache::group_slots(llama_seq_id seq_id) {
    auto & originals = sequences[seq_id].originals;
    if (keeps_originals) {
        originals.resize(groups.size());
    }
    std::vector<morphkv_group_slots> res;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto & side = groups[i].side;
        res.push_back({ moved_layers(i), {}, is_archive_exact(seq_id, i), keeps_originals ? &originals[i] : nullptr });
        for (const auto & layer : side.layers) {
            res.back().serials.push_back(side.get_serials(layer, seq_id));
        }
    }
    return res;
}

int32_t morphkv_cache::lay_down(llama_seq_id seq_id, const morphkv_text & wanted, const llama_token * tokens) {
    auto &                              text = sequences[seq_id].text;
    std::optional<morphkv_restore_plan> plan;
    try {
        plan = morphkv_plan_restore(text, wanted, group_slots(seq_id), sources_of(seq_id), rope_limit());
    } catch (const std::runtime_error & err) {
        throw morphkv_error(MORPHKV_STATUS_FAILED, "restore failed: " + std::string(err.what()) + "; sequence " +
                                                       std::to_string(seq_id) + " is unchanged");
    }
    morphkv_runner runner(engine);
    runner.inject_failure = inject_failure;
    std::string why;
    for (size_t i = 0; i < groups.size() && why.empty(); ++i) {
        try {
            why = run_moves(seq_id, i, plan->groups[i].layers, /*query_delta =*/0, runner);
        } catch (const std::exception & err) {
            why = err.what();
        }
    }
    if (!why.empty()) {
        fail("restore", seq_id, why, runner.has_changed);
        throw morphkv_error(MORPHKV_STATUS_FAILED, morphkv_last_error());
    }
    // their serials will be other tokens'
    const int32_t n_same = std::min(text.n_tokens(), wanted.n_tokens());
    for (auto & of_group : sequences[seq_id].originals) {
        for (auto & of_layer : of_group) {
            for (int32_t & serial : of_layer.serial) {
                serial = serial < n_same ? serial : -1;
            }
        }
    }
    text = std::move(plan->text);
    for (size_t i = 0; i < groups.size(); ++i) {
        auto &                   side = groups[i].side;
        std::vector<llama_token> in_cells;
        for (int32_t j = 0; j < text.n_used(i); ++j) {
            in_cells.push_back(tokens[text.groups[i].serial_in(j)]);
        }
        groups[i].cells->llama_kv_cache::seq_rm(seq_id, -1, -1);
        morphkv_set_tokens(groups[i], seq_id, text, i, 0, in_cells, n_pos);
        for (size_t il = 0; il < plan->groups[i].serials.size(); ++il) {
            side.set_serials(side.layers[il], seq_id, plan->groups[i].serials[il]);
        }
        side.clear_sums(seq_id);
    }
    archives->of(seq_id).truncate(plan->archive_end);
    return text.n_used(GROUP);
}

morphkv_restored morphkv_cache::restore(llama_seq_id seq_id, const llama_token * tokens, int32_t n) {
    const int64_t t_start_us = ggml_time_us();
    const auto &  text       = sequences[seq_id].text;
    check(n >= 1 && n <= text.n_tokens(), MORPHKV_STATUS_INVALID,
          "n_tokens must be in 1.." + std::to_string(text.n_tokens()) + ", got " + std::to_string(n));

    morphkv_restored res{};
    res.size = sizeof(res);
    if (n == text.n_tokens()) {
        return res;
    }
    const llama_pos pos = text.pos_of(n);
    check(text.positions.serial_from(pos) == n && text.positions.can_end_at(n), MORPHKV_STATUS_INVALID,
          "a text cannot end inside of an image, got n_tokens = " + std::to_string(n));
    if (plan_removal(seq_id, pos, -1) == morphkv_removal::TAIL) {
        seq_rm(seq_id, pos, -1);
        return res;
    }
    check_restorable();
    morphkv_text wanted = text;
    wanted.remove_from(n);
    res.n_restored = lay_down(seq_id, wanted, tokens);
    res.took_ms    = (ggml_time_us() - t_start_us) / 1000.0;
    return res;
}

void morphkv_cache::archive_all(llama_seq_id seq_id) {
    archive_old(seq_id, sequences[seq_id].text.n_tokens());
    const std::string why = archives->of(seq_id).why_stopped();
    check(why.empty(), MORPHKV_STATUS_FAILED, "the archive grows no more: " + why);
}

std::unique_ptr<morphkv_passage> morphkv_cache::take_passage(llama_seq_id seq_id, int32_t first, int32_t n) {
    check_restorable();
    const auto & text = sequences[seq_id].text;
    check(first >= 0 && n >= 1 && first <= text.n_tokens() - n, MORPHKV_STATUS_INVALID,
          "a passage must be within the text's " + std::to_string(text.n_tokens()) + " tokens, got " +
              std::to_string(n) + " from " + std::to_string(first));
    for (const auto & run : text.positions.runs()) {
        check(run.n_column == 0 || run.serial >= first + n || run.serial + run.n <= first, MORPHKV_STATUS_INVALID,
              "a passage must be of words, got one with an image");
    }
    archive_all(seq_id);
    auto & archive = archives->of(seq_id);
    // as it was: what is in cells is not in it
    auto   give    = [&] {
        archive.truncate(text.has_evicted() ? text.groups[GROUP].first_recent() : 0);
    };
    try {
        auto res = std::make_unique<morphkv_passage>(morphkv_take_passage(archive, first, n));
        give();
        return res;
    } catch (const std::exception & err) {
        give();
        throw morphkv_error(MORPHKV_STATUS_FAILED, err.what());
    }
}

morphkv_restored morphkv_cache::put_passage(llama_seq_id seq_id, const morphkv_passage & passage,
                                            const llama_token * tokens) {
    const int64_t t_start_us = ggml_time_us();
    check_restorable();
    auto & archive = archives->of(seq_id);
    check(passage.layout == archive.layout.hash(), MORPHKV_STATUS_INVALID,
          "a passage must be of an archive of the same model and types");
    const auto & text = sequences[seq_id].text;
    check(!text.is_empty(), MORPHKV_STATUS_INVALID, "a passage must come behind a text, got an empty sequence");
    archive_all(seq_id);
    const int32_t end    = text.has_evicted() ? text.groups[GROUP].first_recent() : 0;
    morphkv_text  wanted = text;
    wanted.append(text.positions.next(), passage.n, /*is_prompt =*/true);
    archive.append(text.n_tokens(), passage.n, passage.rows);

    morphkv_restored res{};
    res.size = sizeof(res);
    try {
        res.n_restored = lay_down(seq_id, wanted, tokens);
    } catch (...) {
        archives->of(seq_id).truncate(end);
        throw;
    }
    res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    return res;
}
