// Files of archives for fuzz_archive: how an input becomes one, and one in memory.
#pragma once

#include "fuzz_target.h"

#include "core/archive.h"

// Mutations seldom keep a checksum, and 4,000 bytes of a file are padding.
enum class fuzz_form {
    VERBATIM,
    NUMBERS,  // without the padding, and what tells archives apart is put right
    HASHED,   // the same, and each place has the right checksum
    PLACED,   // the same, and each has the page that the header expects there
};

constexpr int N_LAYOUTS = 3;

const morphkv_page_layout & fuzz_layout(int i_layout);
// bytes that count for a page in max_bytes
size_t                      fuzz_page_bytes(const morphkv_page_layout & layout);

bytes fuzz_make_file(fuzz_form form, const morphkv_page_layout & layout, const uint8_t * data, size_t size);
void  fuzz_mend_file(fuzz_form form, const morphkv_page_layout & layout, bytes & file);
bytes fuzz_without_padding(const bytes & file);

// A file in memory, which archives open by its path.
class fuzz_memory_file {
public:
    fuzz_memory_file();

    void  write(const bytes & data);
    bytes read() const;
    // In one of several ways, by n (0..31).
    void  damage(int32_t n);

    std::string path;

private:
    int fd;
};

fuzz_memory_file & fuzz_file();
