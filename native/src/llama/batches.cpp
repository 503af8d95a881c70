// Which batches are accepted, and how one is split into micro-batches: core/plan.h in llama.cpp's terms.

#include "core/arrival.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>

static bool refuse(const std::string & sentence) {
    LLAMA_LOG_ERROR("%s: MorphKV: %s\n", "accepts", sentence.c_str());
    morphkv_error_set(MORPHKV_STATUS_INVALID, sentence.c_str());
    return false;
}

bool morphkv_cache::attends_both_ways() const {
    return engine.context() && !engine.context()->get_causal_attn();
}

bool morphkv_cache::accepts(const llama_batch & batch) const {
    // embeddings are looked at by text, below
    const bool             is_line = batch.token && !attends_both_ways();
    std::vector<llama_pos> newest;
    for (const auto & sequence : sequences) {
        newest.push_back(sequence.text.positions.next() - 1);
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s   = batch.seq_id[i][0];
        const std::string  got = ", got " + std::to_string(batch.pos[i]);
        if (batch.n_seq_id[i] != 1 || s < 0 || s >= (llama_seq_id) newest.size()) {
            return refuse("a token must belong to one sequence among 0.." + std::to_string(newest.size() - 1) +
                          ", got " + (batch.n_seq_id[i] == 1 ? std::to_string(s) : "several"));
        }
        if (is_line && newest[s] >= 0 && batch.pos[i] != newest[s] + 1) {
            return refuse("positions must be consecutive" + got + " after " + std::to_string(newest[s]) +
                          " in sequence " + std::to_string(s));
        }
        if (pos_end > 0 && batch.pos[i] >= pos_end) {
            return refuse("positions of this model are learned and must be below " + std::to_string(pos_end) + got);
        }
        newest[s] = batch.pos[i];
    }
    for (size_t s = 0; !is_line && s < sequences.size(); ++s) {
        morphkv_batch_part part;
        std::string        why = note_arrival(batch, s, part);
        if (why.empty() && part.is_whole && part.n > 0) {
            why = part.n != batch.n_tokens ? "tokens that attend to each other both ways must be of one sequence"
                                           : morphkv_why_no_room(sequences[s].text, part.n);
        }
        if (why.empty() && part.n_column > 0 && window) {
            why = "images in rows and columns need a model without sliding windows";
        }
        if (!why.empty()) {
            return refuse(why + " in sequence " + std::to_string(s));
        }
    }
    return true;
}

void morphkv_cache::clear_before_gaps(const llama_batch & batch) {
    std::vector<bool> is_seen(sequences.size());
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s = batch.seq_id[i][0];
        if (s < 0 || s >= (llama_seq_id) is_seen.size() || is_seen[s]) {
            continue;
        }
        is_seen[s]             = true;
        const llama_pos newest = sequences[s].text.positions.next() - 1;
        if (newest >= 0 && batch.pos[i] > newest + 1) {
            clear_sequence(s);
        }
    }
}

// Of a batch that is not words one behind the other.
std::string morphkv_cache::note_arrival(const llama_batch & batch, llama_seq_id seq_id,
                                        morphkv_batch_part & part) const {
    std::vector<morphkv_position> tokens;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.seq_id[i][0] == seq_id) {
            // words have one position, all else has blocks of times, rows and columns
            const bool has_all = n_pos > 1 && !batch.token;
            tokens.push_back({ batch.pos[i], batch.pos[has_all ? i + batch.n_tokens : i],
                               batch.pos[has_all ? i + 2 * batch.n_tokens : i] });
        }
    }
    part.n = tokens.size();
    return tokens.empty()
               ? ""
               : morphkv_note_arrival(sequences[seq_id].text.positions, tokens, n_pos > 1, attends_both_ways(), part);
}

// follows: a short batch is what another context has verified, whose logits nobody needs here, and treated as there.
static std::vector<morphkv_batch_part> parts_of(const llama_batch & batch, size_t n_seq, bool follows) {
    std::vector<morphkv_batch_part> res(n_seq);
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        auto & part = res[batch.seq_id[i][0]];
        part.pos    = part.n == 0 ? batch.pos[i] : part.pos;
        part.n++;
        part.n_logits += batch.logits[i] != 0;
    }
    for (auto & part : res) {
        if (follows && part.n <= MORPHKV_DRAFT_MAX) {
            part.n_logits = part.n;
        }
    }
    return res;
}

std::optional<morphkv_cache::batch_plan> morphkv_cache::plan_batch(llama_batch_allocr & balloc, uint32_t n_ubatch,
                                                                   bool is_careful, const split_fn & split) const {
    std::vector<morphkv_text> texts;
    for (const auto & sequence : sequences) {
        texts.push_back(sequence.text);
    }
    const llama_batch & batch = balloc.get_batch();
    auto                parts = parts_of(batch, sequences.size(), follows_target);
    batch_plan          res;
    res.sinfos.resize(groups.size());
    for (size_t s = 0; s < sequences.size(); ++s) {
        if (parts[s].n > 0 && (!batch.token || attends_both_ways())) {
            note_arrival(batch, s, parts[s]);
        }
        res.n_column.push_back(parts[s].n_column);
    }
    morphkv_plan plan(std::move(texts), std::move(parts), MORPHKV_DRAFT_MAX, rope_limit(), n_early());
    for (size_t s = 0; s < sequences.size(); ++s) {
        res.is_prompt.push_back(plan.is_prompt(s));
    }

    balloc.split_reset();
    while (balloc.get_n_used() < balloc.get_n_tokens()) {
        llama_ubatch ubatch = split(plan.n_most(n_ubatch, is_careful));
        if (ubatch.n_tokens == 0) {
            return std::nullopt;
        }
        const uint32_t             n_new = ubatch.n_tokens / ubatch.n_seqs_unq;
        const std::vector<int32_t> seqs(ubatch.seq_id_unq, ubatch.seq_id_unq + ubatch.n_seqs_unq);

        std::vector<morphkv_planned_text> planned;
        if (!plan.add(seqs, n_new, planned)) {
            return std::nullopt;
        }
        std::vector<slot_info>    sinfos(groups.size(), { LLAMA_MAX_SEQ, 0, {}, {} });
        std::vector<llama_seq_id> cut_seqs, rebased_seqs;
        for (const auto & text : planned) {
            if (!text.cuts.empty()) {
                cut_seqs.push_back(text.i_text);
            }
            if (text.rebases) {
                rebased_seqs.push_back(text.i_text);
            }
            for (size_t i = 0; i < groups.size(); ++i) {
                auto & sinfo = sinfos[i];
                sinfo.s0     = std::min<uint32_t>(sinfo.s0, text.i_text);
                sinfo.s1     = std::max<uint32_t>(sinfo.s1, text.i_text);
                sinfo.strm.push_back(text.i_text);
                sinfo.idxs.emplace_back();
                for (uint32_t j = 0; j < n_new; ++j) {
                    sinfo.idxs.back().push_back(text.first_cells[i] + j);
                }
            }
        }
        res.ubatches.push_back(std::move(ubatch));
        for (size_t i = 0; i < groups.size(); ++i) {
            res.sinfos[i].push_back(std::move(sinfos[i]));
        }
        res.cuts.push_back(std::move(cut_seqs));
        res.rebases.push_back(std::move(rebased_seqs));
    }
    return res;
}
