#include "morphkv-held.h"

#include <algorithm>
#include <charconv>

static void append(std::string & to, int32_t n) {
    char digits[12];
    to.append(digits, std::to_chars(digits, digits + sizeof(digits), n).ptr);
}

static void append_pair(std::string & to, int32_t a, int32_t b) {
    append(to, a);
    to += ',';
    append(to, b);
}

// Each number less the one before.
static void append_steps(std::string & to, const std::vector<int32_t> & ascending) {
    to += '[';
    int32_t last = 0;
    for (const int32_t x : ascending) {
        append(to, x - last);
        to += ',';
        last = x;
    }
    to.resize(to.size() - !ascending.empty());
    to += ']';
}

static bool has_all(const morphkv_held_layer & layer) {
    // the first eviction fills all slots
    return std::all_of(layer.pos.begin(), layer.pos.end(), [](int32_t pos) { return pos == -1; });
}

int32_t morphkv_held::token_at(int32_t pos) const {
    const auto behind = std::upper_bound(media.begin(), media.end(), pos,
                                         [](int32_t p, const morphkv_medium & m) { return p < m.pos; });
    if (pos < 0 || behind == media.begin()) {
        return pos;
    }
    const morphkv_medium & m = *(behind - 1);
    if (pos < m.pos + m.n_pos) {
        // tokens that share a position are the first of them here
        return m.n_pos == m.n_tokens ? m.first + pos - m.pos : m.first;
    }
    return m.first + m.n_tokens + pos - m.pos - m.n_pos;
}

std::vector<int32_t> morphkv_held::tokens_of(const morphkv_held_layer & layer, int32_t i_head) const {
    std::vector<int32_t> res;
    const size_t         n_distant = layer.pos.size() / layer.n_head_kv;
    for (size_t i = 0; i < n_distant; ++i) {
        const int32_t token = token_at(layer.pos[i_head * n_distant + i]);
        if (token >= 0 && token < first_recent) {
            res.push_back(token);
        }
    }
    std::sort(res.begin(), res.end());
    res.erase(std::unique(res.begin(), res.end()), res.end());
    return res;
}

const morphkv_held::sums & morphkv_held::get_sums(bool & is_first) const {
    std::call_once(has_sums, [&] {
        is_first = true;
        std::vector<int32_t> n_heads_of(first_recent);
        for (const auto & layer : layers) {
            counted.n_heads += layer.n_head_kv;
            counted.n_heads_with_all += has_all(layer) ? layer.n_head_kv : 0;
            for (int32_t head = 0; head < layer.n_head_kv; ++head) {
                heads.push_back(tokens_of(layer, head));
                for (const int32_t token : heads.back()) {
                    n_heads_of[token]++;
                }
            }
        }
        std::vector<int32_t> kept;
        std::string          by = "[";
        for (int32_t i = 0; i < first_recent; ++i) {
            if (n_heads_of[i] > 0) {
                kept.push_back(i);
                append(by, n_heads_of[i]);
                by += ',';
            }
        }
        by.resize(by.size() - !kept.empty());
        counted.n_kept = counted.n_heads_with_all > 0 ? first_recent : (int32_t) kept.size();
        counted.kept   = "{\"tokens\":";
        append_steps(counted.kept, kept);
        counted.kept += ",\"heads\":" + by + "]}";

        counted.recalled = "[";
        for (size_t i = 0; i < recalled_pos.size(); ++i) {
            const int32_t token = token_at(recalled_pos[i]);
            if (token >= 0) {
                counted.recalled += counted.recalled.size() > 1 ? ",[" : "[";
                append_pair(counted.recalled, token, recalled_by[i]);
                counted.recalled += ']';
            }
        }
        counted.recalled += ']';

        counted.media = "[";
        for (const auto & m : media) {
            counted.media += counted.media.size() > 1 ? ",[" : "[";
            append_pair(counted.media, m.first, m.n_tokens);
            counted.media += m.is_sound ? ",\"sound\"]" : ",\"image\"]";
        }
        counted.media += ']';
    });
    return counted;
}

const std::string & morphkv_held::get_layers(bool & is_first) const {
    get_sums(is_first);
    std::call_once(has_layers, [&] {
        is_first      = true;
        size_t i_head = 0;
        written       = "[";
        for (const auto & layer : layers) {
            const bool all = has_all(layer);
            written += written.size() > 1 ? ",{\"layer\":" : "{\"layer\":";
            append(written, layer.il);
            written += ",\"n_heads\":";
            append(written, layer.n_head_kv);
            written += all ? ",\"has_all\":true" : ",\"has_all\":false,\"heads\":[";
            for (int32_t head = 0; head < layer.n_head_kv && !all; ++head) {
                written += head > 0 ? "," : "";
                append_steps(written, heads[i_head + head]);
            }
            i_head += layer.n_head_kv;
            written += all ? "}" : "]}";
        }
        written += ']';
    });
    return written;
}
