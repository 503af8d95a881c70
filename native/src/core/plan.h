// Which micro-batches a batch becomes, in which cells they come to lie, and what is cut before each. Runs ahead on copies of
// the texts.
#pragma once

#include "core/text.h"

#include <cstdint>
#include <vector>

// What a batch brings for one text.
struct morphkv_batch_part {
    int32_t n           = 0;
    int32_t n_logits    = 0;      // of these, tokens whose logits are wanted
    int32_t pos         = 0;      // of the first, where a text begins, and of an image; the others follow
    int32_t n_column    = 0;      // as in a run
    int32_t end         = 0;      // behind all positions of an image, or of tokens that come together
    bool    is_whole    = false;  // they come in one micro-batch
    bool    is_embedded = false;  // no words: never a draft
};

// What a micro-batch is for one of its texts.
struct morphkv_planned_text {
    int32_t              i_text;
    std::vector<int32_t> first_cells;      // by group, of its tokens
    std::vector<size_t>  cuts;             // groups that are cut before
    bool                 rebases = false;  // before, and behind the cuts
};

class morphkv_plan {
public:
    // parts: by text, n = 0 where the batch has none. n_draft: a batch of up to so many tokens that all want logits is a draft
    // to verify, and treated as one token whose logits are wanted; all else is a prompt. limit: of rotary positions, 0 = none. n_early: a text that lacks at most so many
    // tokens to its own cut is cut with another of its micro-batch; a text that is alone there never is.
    morphkv_plan(std::vector<morphkv_text> texts, std::vector<morphkv_batch_part> parts, int32_t n_draft, int32_t limit,
                 int32_t n_early = 0);

    bool is_prompt(int32_t i_text) const { return prompts[i_text]; }

    // Most tokens of the next micro-batch. Which texts join it is the splitter's choice; if fewer do, they may get more tokens
    // each than they have cells: then a careful second try is needed.
    int32_t n_most(int32_t n_ubatch, bool is_careful) const;

    // A micro-batch of n tokens of each of these. False: there are no cells for it.
    bool add(const std::vector<int32_t> & i_texts, int32_t n, std::vector<morphkv_planned_text> & planned);

private:
    // n_early: so many tokens before it has to be
    bool         is_due(int32_t i_text, int32_t n_early) const;
    bool         is_due(int32_t i_text, size_t i_group, int32_t n_early) const;
    // as the text is once it has been cut and rebased
    morphkv_text made_ready(int32_t i_text, std::vector<size_t> * cuts, int32_t n_early = 0) const;
    int32_t      n_room(int32_t i_text) const;

    std::vector<morphkv_text>       texts;
    std::vector<morphkv_batch_part> parts;    // n: what is left of them
    std::vector<bool>               prompts;
    std::vector<int32_t>            n_steps;  // tokens of the batch, if they are no prompt and in no micro-batch yet
    int32_t                         limit;
    int32_t                         n_early;
};

// As the text is once n more tokens of a prompt have been decoded.
morphkv_text morphkv_text_behind_prompt(morphkv_text text, int32_t n);
