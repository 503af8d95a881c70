// How a batch is split into micro-batches, which cells they get, and which sequences are cut before each.

#include "llama/memory.h"

#include "llama-impl.h"

#include <algorithm>

bool morphkv_cache::needs_cut(llama_seq_id seq_id, uint32_t n_used, uint32_t n_step) const {
    if (n_used >= n_limit(params)) {
        return true;
    }
    if (n_step == 0) {
        return false;
    }
    if (n_used + n_step > n_limit(params) && n_used > (uint32_t) params.capacity) {
        // before a draft rather than inside of it: what is in the cache now stays, a draft may be taken back
        return true;
    }
    // While there are free cells the cut waits: for the first token behind a prompt, as that may be the prompt's own
    // last one, and after a long rollback until enough tokens have come to vote.
    return n_used >= (uint32_t) (params.capacity + params.interval) &&
           seq_pos_max(seq_id) > streams[seq_id].pos_prompt && vote_rows(seq_id).size() == (size_t) params.votes;
}

bool morphkv_cache::accepts(const llama_batch & batch) const {
    auto refuse = [func = __func__](const std::string & sentence) {
        LLAMA_LOG_ERROR("%s: MorphKV: %s\n", func, sentence.c_str());
        morphkv_error_set(MORPHKV_STATUS_INVALID, sentence.c_str());
        return false;
    };
    std::vector<llama_pos> newest(get_n_stream());
    for (size_t s = 0; s < newest.size(); ++s) {
        newest[s] = seq_pos_max(s);
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s   = batch.seq_id[i][0];
        const std::string  got = ", got " + std::to_string(batch.pos[i]);
        if (batch.n_seq_id[i] != 1 || s < 0 || s >= (llama_seq_id) newest.size()) {
            return refuse("a token must belong to one sequence among 0.." + std::to_string(newest.size() - 1) +
                          ", got " + (batch.n_seq_id[i] == 1 ? std::to_string(s) : "several"));
        }
        if (newest[s] >= 0 && batch.pos[i] != newest[s] + 1) {
            return refuse("positions must be consecutive" + got + " after " + std::to_string(newest[s]) +
                          " in sequence " + std::to_string(s));
        }
        if (pos_end > 0 && batch.pos[i] >= pos_end) {
            return refuse("positions of this model are learned and must be below " + std::to_string(pos_end) + got);
        }
        newest[s] = batch.pos[i];
    }
    return true;
}

std::optional<morphkv_cache::batch_plan> morphkv_cache::plan_batch(llama_batch_allocr & balloc, uint32_t n_ubatch,
                                                                   bool careful, const split_fn & split) const {
    struct sequence {
        uint32_t  n_left   = 0;      // tokens of the batch that are not in a micro-batch yet
        uint32_t  n_used   = 0;      // cells in use once those before have been decoded
        uint32_t  n_step   = 0;      // tokens of the batch, if they are no prompt and none is in a micro-batch yet
        uint32_t  n_logits = 0;      // tokens of the batch whose logits are wanted
        llama_pos newest   = -1;
        llama_pos rotary   = 0;      // rotary position of the next token
        bool      is_cut   = false;  // once or more, before or in this batch
    };
    std::vector<sequence> seqs(get_n_stream());
    for (size_t s = 0; s < seqs.size(); ++s) {
        seqs[s].n_used = n_used(s);
        seqs[s].newest = seq_pos_max(s);
        seqs[s].rotary = seqs[s].newest + 1 - streams[s].rotary_offset;
        seqs[s].is_cut = has_evicted(s);
    }

    const llama_batch & batch = balloc.get_batch();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id s = batch.seq_id[i][0];
        if (seqs[s].newest < 0) {
            seqs[s].rotary = batch.pos[i];  // a sequence may begin anywhere
        }
        seqs[s].newest = batch.pos[i];
        seqs[s].n_left++;
        seqs[s].n_logits += batch.logits[i] != 0;
    }

    batch_plan plan;

    for (auto & seq : seqs) {
        const bool is_draft = seq.n_left <= (uint32_t) N_SPARE && seq.n_logits == seq.n_left;
        seq.n_step          = seq.n_left == 1 || is_draft ? seq.n_left : 0;
        plan.is_prompt.push_back(seq.n_step == 0);
    }

    auto is_cut_before = [&](llama_seq_id s) {
        return needs_cut(s, seqs[s].n_used, seqs[s].n_step);
    };
    auto n_after_cut = [&](llama_seq_id s) {
        return is_cut_before(s) ? (uint32_t) params.capacity : seqs[s].n_used;
    };

    const llama_pos limit = rope_limit();

    // A rebase falls before the token whose rotary position is the limit, however the tokens come.
    auto rotary_after_rebase = [&](llama_seq_id s) {
        if (limit == 0 || seqs[s].rotary < limit || n_after_cut(s) == 0) {
            return seqs[s].rotary;
        }
        return (llama_pos) n_after_cut(s) + (seqs[s].is_cut || is_cut_before(s) ? n_near() : 0);
    };
    // how many tokens can come in one micro-batch
    auto n_room = [&](llama_seq_id s) {
        const uint32_t  n_cells  = n_limit(params) - n_after_cut(s);
        const llama_pos n_rotary = limit - rotary_after_rebase(s);
        return limit > 0 && n_rotary > 0 ? std::min<uint32_t>(n_cells, n_rotary) : n_cells;
    };

    balloc.split_reset();
    while (balloc.get_n_used() < balloc.get_n_tokens()) {
        // The largest micro-batch for which every sequence has cells. Which sequences join it is the splitter's choice;
        // if fewer do, they may get more tokens each than they have cells, and the careful second try is needed.
        uint64_t room     = n_limit(params);
        uint64_t n_active = 0;
        for (size_t s = 0; s < seqs.size(); ++s) {
            if (seqs[s].n_left > 0) {
                room = std::min<uint64_t>(room, n_room(s));
                n_active++;
            }
        }
        const uint32_t n_max = std::min<uint64_t>(n_ubatch, careful ? room : room * n_active);

        llama_ubatch ubatch = split(n_max);
        if (ubatch.n_tokens == 0) {
            return std::nullopt;
        }

        const uint32_t n_new = ubatch.n_tokens / ubatch.n_seqs_unq;

        slot_info                 sinfo = { LLAMA_MAX_SEQ, 0, {}, {} };
        std::vector<llama_seq_id> cut_seqs;
        for (uint32_t i = 0; i < ubatch.n_seqs_unq; ++i) {
            const llama_seq_id s = ubatch.seq_id_unq[i];

            const uint32_t first = n_after_cut(s);
            if (n_new > n_room(s)) {
                return std::nullopt;
            }
            seqs[s].rotary = rotary_after_rebase(s) + n_new;
            if (is_cut_before(s)) {
                cut_seqs.push_back(s);
                seqs[s].is_cut = true;
            }
            sinfo.s0 = std::min<uint32_t>(sinfo.s0, s);
            sinfo.s1 = std::max<uint32_t>(sinfo.s1, s);
            sinfo.strm.push_back(s);
            sinfo.idxs.emplace_back();
            for (uint32_t j = 0; j < n_new; ++j) {
                sinfo.idxs.back().push_back(first + j);
            }
            seqs[s].n_used = first + n_new;
            seqs[s].n_left -= n_new;
            seqs[s].n_step = 0;
        }

        plan.ubatches.push_back(std::move(ubatch));
        plan.sinfos.push_back(std::move(sinfo));
        plan.cuts.push_back(std::move(cut_seqs));
    }
    return plan;
}
