// Texts out of any bytes.
#pragma once

#include "core/state-format.h"
#include "support/text_io.h"

// A text that is right, whatever the bytes: each number is brought to the next one that can be. They are read as a text of the
// present version has them, so that a right one is as it was; where they end zeros follow. version: one that it could have had.
// Of an archive at most so many pages are left.
morphkv_saved_text fuzz_make_text(bytes_reader & in, const morphkv_text_rules & rules, uint32_t version,
                                  int64_t n_pages_max);
