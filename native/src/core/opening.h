// The opening of a text's free slots for what is attached (sources.h): before its first eviction a short text has recent tokens
// alone, and nothing to bring pages into. An opening is an eviction ahead of time: the text's first tokens keep their slots, the
// newest become recent, and the slots between, which no token of the text has had, get attached ones.
#pragma once

#include "core/moves.h"
#include "core/text.h"

#include <cstdint>
#include <optional>
#include <vector>

// The text once its slots are open. Of its tokens at most n_recent are recent: these go on in cells n_distant, n_distant + 1, ...,
// at rotary positions behind all slots. Nothing where it has been cut, is longer than a capacity, or has no token behind those
// that it keeps.
std::optional<morphkv_text> morphkv_opened(const morphkv_text & text, int32_t n_recent);

// Most tokens of a head that come into slots of a text that is open.
int32_t morphkv_n_opened(const morphkv_text & opened);

// Of a group of it: a head's own tokens, then those of pages, best first, as many as there is room for. Empty where these are too
// few.
std::vector<int32_t> morphkv_open_slots(const morphkv_text & opened, size_t i_group, const morphkv_sources & sources,
                                        const morphkv_pages & pages);

// Adds other pages of files that can be read until they have n tokens, if there are as many; the first of a file last.
void morphkv_fill_up(const morphkv_sources & sources, int32_t n, morphkv_pages & pages);
