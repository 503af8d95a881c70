#include "core/plan.h"

#include <algorithm>

morphkv_plan::morphkv_plan(std::vector<morphkv_text> texts_in, std::vector<morphkv_batch_part> parts_in,
                           int32_t n_draft, int32_t limit, int32_t n_early)
    : texts(std::move(texts_in)),
      parts(std::move(parts_in)),
      limit(limit),
      n_early(n_early) {
    for (const auto & part : parts) {
        // a single token whose logits nobody wants is a piece of a prompt, in a batch that had no room for more of it
        const bool is_draft = part.n <= std::max(n_draft, 1) && part.n_logits == part.n;
        n_steps.push_back(is_draft && !part.is_embedded ? part.n : 0);
        prompts.push_back(n_steps.back() == 0);
    }
}

bool morphkv_plan::is_due(int32_t i_text, int32_t n_early) const {
    for (size_t i = 0; i < texts[i_text].groups.size(); ++i) {
        if (is_due(i_text, i, n_early)) {
            return true;
        }
    }
    return false;
}

bool morphkv_plan::is_due(int32_t i_text, size_t i_group, int32_t n_early) const {
    const auto &  text   = texts[i_text];
    const auto &  shape  = text.groups[i_group].shape;
    const int32_t n_used = text.n_used(i_group);
    const int32_t n_step = n_steps[i_text];
    if (n_used >= shape.n_limit || (parts[i_text].is_whole && n_used + parts[i_text].n > shape.n_limit)) {
        return n_used > shape.capacity;
    }
    if (n_step == 0) {
        return false;
    }
    if (n_used + n_step > shape.n_limit && n_used > shape.capacity) {
        // before a draft rather than inside of it: what is in the cache now stays, a draft may be taken back
        return true;
    }
    // While there are free cells the cut waits: for the first token behind a prompt, as that may be the prompt's own
    // last one, and after a long rollback until enough tokens have come to vote.
    return n_used > shape.capacity && n_used + n_early >= shape.capacity + shape.interval &&
           text.n_tokens() - 1 > text.newest_of_prompt && (int32_t) text.voters().size() == text.votes;
}

// A rebase falls before the token whose rotary position is the limit, however the tokens come, and before an image that would
// reach it.
morphkv_text morphkv_plan::made_ready(int32_t i_text, std::vector<size_t> * cuts, int32_t n_early) const {
    morphkv_text res  = texts[i_text];
    const auto   over = is_due(i_text, n_early) ? res.groups_over_capacity() : std::vector<size_t>();
    for (const size_t i : over) {
        res.note_cut(i);
    }
    if (cuts) {
        *cuts = over;
    }
    const auto &  part   = parts[i_text];
    const int32_t newest = part.n_column > 0 || part.is_whole ? part.end - 1 : res.positions.next();
    if (limit > 0 && !res.is_empty() && newest - res.rotary_offset >= limit) {
        // an image that is longer than what a rebase leaves goes beyond the limit
        res.rotary_offset = std::max(res.rotary_offset, res.rebase_offset(limit));
    }
    return res;
}

int32_t morphkv_plan::n_room(int32_t i_text) const {
    const morphkv_text text = made_ready(i_text, nullptr);

    int32_t n_cells = INT32_MAX;
    for (size_t i = 0; i < text.groups.size(); ++i) {
        n_cells = std::min(n_cells, text.groups[i].shape.n_limit - text.n_used(i));
    }
    const auto & part = parts[i_text];
    if (part.n_column > 0 || part.is_whole) {
        return n_cells;
    }
    const int32_t next     = text.is_empty() ? part.pos : text.positions.next();
    const int32_t n_rotary = limit - (next - text.rotary_offset);
    return limit > 0 && n_rotary > 0 ? std::min(n_cells, n_rotary) : n_cells;
}

int32_t morphkv_plan::n_most(int32_t n_ubatch, bool is_careful) const {
    int64_t room     = INT32_MAX;
    int64_t n_active = 0;
    int64_t n_drafts = 0;  // tokens of drafts that have room
    for (size_t i = 0; i < texts.size(); ++i) {
        if (parts[i].n > 0) {
            const int32_t n_free = n_room(i);
            room                 = std::min<int64_t>(room, n_free);
            n_drafts += n_steps[i] > 0 && n_steps[i] <= n_free ? n_steps[i] : 0;
            n_active++;
        }
    }
    // no draft is parted because another text has less room: recurrent layers take back what is in one micro-batch
    return std::min<int64_t>(n_ubatch, is_careful ? room : std::max(room * n_active, n_drafts));
}

bool morphkv_plan::add(const std::vector<int32_t> & i_texts, int32_t n, std::vector<morphkv_planned_text> & planned) {
    planned.clear();
    // what one has to wait for others wait for as well, and then all go on together
    const bool cuts = std::any_of(i_texts.begin(), i_texts.end(), [&](int32_t i_text) { return is_due(i_text, 0); });
    for (const int32_t i_text : i_texts) {
        if (n > n_room(i_text)) {
            return false;
        }
        morphkv_planned_text cur{ i_text, {}, {}, false };
        auto &               text = texts[i_text];
        auto &               part = parts[i_text];
        const int32_t        was  = text.rotary_offset;

        text        = made_ready(i_text, &cur.cuts, cuts ? n_early : 0);
        cur.rebases = text.rotary_offset != was;
        for (size_t i = 0; i < text.groups.size(); ++i) {
            cur.first_cells.push_back(text.n_used(i));
        }
        text.append(text.is_empty() || part.n_column > 0 ? part.pos : text.positions.next(), n, prompts[i_text],
                    part.n_column);
        part.n -= n;
        n_steps[i_text] = 0;
        planned.push_back(std::move(cur));
    }
    return true;
}

morphkv_text morphkv_text_behind_prompt(morphkv_text text, int32_t n) {
    while (n > 0) {
        const bool is_full = std::any_of(text.groups.begin(), text.groups.end(), [&](const auto & group) {
            return text.n_tokens() - group.n_evicted >= group.shape.n_limit;
        });
        for (const size_t i : is_full ? text.groups_over_capacity() : std::vector<size_t>()) {
            text.note_cut(i);
        }
        int32_t n_room = n;
        for (size_t i = 0; i < text.groups.size(); ++i) {
            n_room = std::min(n_room, text.groups[i].shape.n_limit - text.n_used(i));
        }
        text.append(text.is_empty() ? 0 : text.positions.next(), n_room, /*is_prompt =*/true);
        n -= n_room;
    }
    return text;
}
