// An archive's file below a context: it is opened, a checkpoint of its text is loaded, tokens are recalled from it.
#pragma once

#include "fuzz_archive_file.h"

// data: how a valid file is changed. n: 0..31, for what else is done.
void fuzz_run_context(fuzz_form form, int i_limit, bool is_damaged, int32_t n, const uint8_t * data, size_t size);
