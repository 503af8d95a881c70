#include "core/change.h"

#include <algorithm>

namespace {

constexpr int32_t N_AGAIN = 128;  // tokens before what is new that are decoded again, and then ask the archive
constexpr int32_t N_LEAST = 128;  // to save fewer is not worth that the bits are others
constexpr int32_t N_GRAM  = 32;   // tokens that tell a passage from what is like it

struct ids {
    const int32_t * begin;
    int32_t         n;

    const int32_t * at(int32_t i) const { return begin + i; }
    const int32_t * end() const { return begin + n; }
};

int32_t n_alike(const int32_t * a, const int32_t * b, int32_t n_most) {
    return std::mismatch(a, a + n_most, b).first - a;
}

// The first passage of a prompt behind its first n_common tokens that the text has elsewhere.
bool find_passage(const ids & text, const ids & prompt, int32_t n_common, morphkv_change & out) {
    for (int32_t to = n_common; to + N_GRAM <= prompt.n; to += N_GRAM / 2) {
        const int32_t * found = std::search(text.at(n_common), text.end(), prompt.at(to), prompt.at(to + N_GRAM));
        if (found == text.end()) {
            continue;
        }
        const int32_t first    = found - text.begin;
        int32_t       n_before = 0;
        while (n_before < std::min(first, to) - n_common && found[-n_before - 1] == prompt.begin[to - n_before - 1]) {
            n_before++;
        }
        out.passage_first = first - n_before;
        out.passage_to    = to - n_before;
        out.n_passage     = n_before + n_alike(found, prompt.at(to), std::min(text.n - first, prompt.n - to));
        return true;
    }
    return false;
}

}  // namespace

morphkv_change morphkv_plan_change(const int32_t * text, int32_t n_text, const int32_t * prompt, int32_t n_prompt,
                                   int32_t n_cached) {
    morphkv_change res{};
    res.size = sizeof(res);

    // of a prompt that is known to its end the last token is decoded again
    const int32_t n_last   = n_prompt - 1;
    const int32_t n_common = n_last > 0 ? n_alike(text, prompt, std::min(n_text, n_last)) : 0;
    const int32_t n_back   = n_common - N_AGAIN;
    // first tokens that need not be decoded if nothing behind a change comes along
    const int32_t n_first  = std::max(n_cached, n_back);
    if (n_common > 0 && n_last - n_first >= N_AGAIN + N_LEAST) {
        morphkv_change moved = res;
        if (find_passage({ text, n_text }, { prompt, n_last }, n_common, moved)) {
            moved.n_first = n_common;
            moved.n_passage -= N_AGAIN;
            if (n_common + moved.n_passage >= n_first + N_LEAST) {
                return moved;
            }
        }
    }
    res.n_first = n_back >= n_cached + N_LEAST ? n_back : 0;
    return res;
}
