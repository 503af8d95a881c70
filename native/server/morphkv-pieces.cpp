#include "morphkv-pieces.h"

#include "common.h"
#include "llama.h"

#include <algorithm>
#include <cstdint>

static const char * const UNKNOWN = "\xEF\xBF\xBD";  // U+FFFD

// Most tokens before a character's last one that it lies in.
static constexpr size_t N_BEFORE = 4;

// Bytes of the character at i; 0 = it may go on behind the end, -1 = there is none.
static int n_char(const std::string & bytes, size_t i) {
    const uint8_t first = bytes[i];
    const int     n     = first < 0x80                    ? 1
                          : first >= 0xC2 && first < 0xE0 ? 2
                          : first >= 0xE0 && first < 0xF0 ? 3
                          : first >= 0xF0 && first < 0xF5 ? 4
                                                          : -1;
    for (int j = 1; j < n; ++j) {
        if (i + j >= bytes.size()) {
            return 0;
        }
        const uint8_t next = bytes[i + j];
        // no overlong forms, no halves of pairs, nothing above U+10FFFF
        const uint8_t low  = j > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        const uint8_t high = j > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (next < low || next > high) {
            return -1;
        }
    }
    return n;
}

std::string morphkv_take_utf8(std::string & bytes) {
    std::string res;
    size_t      i = 0;
    while (i < bytes.size()) {
        const int n = n_char(bytes, i);
        if (n == 0) {
            break;
        }
        res += n > 0 ? bytes.substr(i, n) : UNKNOWN;
        i += std::max(n, 1);
    }
    bytes.erase(0, i);
    return res;
}

std::vector<std::string> morphkv_pieces(const llama_vocab * vocab, const std::vector<int32_t> & tokens, size_t first,
                                        size_t n) {
    std::vector<std::string> res;
    std::string              bytes;
    for (size_t i = first - std::min(first, N_BEFORE); i < first + n; ++i) {
        bytes += tokens[i] == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, tokens[i], /*special=*/true);
        std::string piece = morphkv_take_utf8(bytes);
        if (i >= first) {
            res.push_back(std::move(piece));
        }
    }
    return res;
}
