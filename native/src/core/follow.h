// Recall while a text is written: when it is looked whether an archive is to be asked, and what follows the pages in use.
//
// Who repeats a passage reads it from one end to the other: where the newest queries attend to a page in the slots, the next
// pages come before they are asked for. Where they attend to none, all of the archive is searched, and more seldom the longer
// nothing has come of it and the larger the archive is. All that follows from the text alone, so that it does not matter how
// the text came to be, nor who writes it.
#pragma once

#include "core/sources.h"
#include "core/text.h"
#include "morphkv.h"

#include <cstdint>
#include <vector>

// Newest queries that are asked: those before were there at the last look.
constexpr int32_t MORPHKV_FOLLOW_VOTES = 8;

struct morphkv_follow_due {
    bool looks;     // at the votes on the slots
    bool searches;  // all of the archive, where these are no help
};

morphkv_follow_due morphkv_follow_when(const morphkv_text & text, size_t i_group);

// Of the pages that are there, source by source: third powers of their share of the votes on the slots, summed over layers and
// heads, as search.h has them.
using morphkv_page_uses = std::vector<float>;

// Adds those of a layer; empty ones get their size. Tokens that are in no page, the text's first n_keep, and the first page of a
// file do not count.
//   serials, votes: (n_head_kv, n_distant); n_votes: that the votes are the sum of
void morphkv_add_page_uses(const morphkv_sources & sources, const std::vector<int32_t> & serials,
                           const std::vector<float> & votes, int32_t n_head_kv, int32_t n_votes, int32_t n_keep,
                           morphkv_page_uses & uses);

// Up to n_wanted pages, best first: those in use, and those that follow them in their source. None where no page gets `need`.
std::vector<int64_t> morphkv_following_pages(const morphkv_sources & sources, const morphkv_page_uses & uses,
                                             float need, size_t n_wanted);
