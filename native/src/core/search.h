// Which pages of an archive, and of attached files, the newest queries ask for, and which slots these come into.
//
// A page gets the third power of its share of each vote, summed over voters, heads and layers: few heads look for what a
// question is about, but those look at one page, and the others at many. All pages are judged by their mean keys, the best of
// them by their rows.
#pragma once

#include "core/moves.h"
#include "core/sources.h"

#include <cstdint>
#include <vector>

// Who computes what pages get of the queries, summed over layers and heads.
class morphkv_page_scorer {
public:
    virtual ~morphkv_page_scorer() = default;

    // By place of a source's index, for an archive (page_in()) or a file (its pages); what an empty one gets does not matter.
    virtual std::vector<float> by_index(size_t i_source)                                   = 0;
    // By page, of their rows; the first n_skip rows give their page nothing. Empty where a page turns out to be damaged.
    virtual std::vector<float> by_rows(const std::vector<int64_t> & pages, int32_t n_skip) = 0;
};

// As many pages, of `share` of the slots that can be had.
size_t morphkv_n_wanted_pages(float share, size_t n_slots);

// Of how many the rows are looked at: `look` for each that is wanted, and one in 20 at least, as of more pages more look like
// it by their mean.
size_t morphkv_n_pages_to_look_at(size_t n_wanted, int32_t look, int64_t n_pages);

// Up to n_wanted pages, best first: of the n_look best by the index, those with the best rows, and their neighbours. Rows of
// the text's first n_keep tokens do not count, nor does the first page of a file: all tokens attend to the first one of a text.
// None where no page's rows get `need`.
std::vector<int64_t> morphkv_choose_pages(const morphkv_sources & sources, size_t n_wanted, size_t n_look,
                                          int32_t n_keep, morphkv_page_scorer & scorer, float need = 0.0f);

// Of one layer: the tokens of pages that are not there yet take slots from those with the fewest votes.
//   before, votes: (n_head_kv, n_distant)
morphkv_slots morphkv_choose_slots(const morphkv_sources & sources, const morphkv_pages & pages,
                                   const std::vector<int32_t> & before, const std::vector<float> & votes,
                                   int32_t n_head_kv, int32_t n_keep);
