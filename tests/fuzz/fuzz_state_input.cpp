#include "fuzz_state_input.h"

#include "made_up_text.h"

const size_t fuzz_n_recipe = 3;

recipe read_recipe(const uint8_t * data) {
    recipe res;
    res.load      = way(data[0] & 3);
    res.seq       = data[0] >> 2 & 1;
    res.content   = form(data[0] >> 3 & 3);
    res.is_mended = data[0] >> 5 & 1;
    res.version   = MORPHKV_STATE_VERSION - (data[0] >> 6) % 3;
    res.then      = next(data[1] & 7);
    res.n         = data[1] >> 3;
    res.i_context = (data[2] & 7) % FUZZ_N_CONTEXTS;
    res.has_lost  = data[2] >> 3 & 1;
    return res;
}

bytes write_recipe(const recipe & r) {
    return { uint8_t(int(r.load) | r.seq << 2 | int(r.content) << 3 | r.is_mended << 5 |
                     (MORPHKV_STATE_VERSION - r.version) << 6),
             uint8_t(int(r.then) | r.n << 3), uint8_t(r.i_context | r.has_lost << 3) };
}

namespace {

constexpr int64_t N_PAGES_MAX = 8;  // that are made up

// What llama.cpp writes before what we write.
const bytes & prefix_of(const fuzz_context & c, const recipe & r) {
    return r.load == way::WHOLE ? c.prefix_whole : r.load == way::FILE ? c.prefix_file : c.prefix_seq;
}

// Texts as the loader takes them, or as it would. False: it does not. `texts` are their bytes, or those it has read.
bool make_texts(const fuzz_context & c, const recipe & r, bytes_reader & in, state_parts & parts, bytes & texts) {
    const auto     rules = morphkv_inside::text_rules(c.ctx);
    const uint32_t n     = parts.header.n_seq;
    if (r.is_mended) {
        while (parts.texts.size() < n) {
            parts.texts.push_back(fuzz_make_text(in, rules, r.version, N_PAGES_MAX));
        }
        texts = texts_as_bytes(parts);
        return true;
    }
    const bytes_reader    before = in;
    morphkv_hashed_reader hashed(in);
    bool                  res = true;
    try {
        while (parts.texts.size() < n) {
            parts.texts.push_back(morphkv_read_text(hashed, r.version, rules));
        }
    } catch (const std::exception &) {
        res = false;
    }
    texts = before.read_until(in);
    return res;
}

// Of the last text.
int64_t count_pages(const state_parts & parts) {
    const auto & archive = parts.texts.back().archive;
    return parts.header.archive == 0 || parts.header.has_no_pages ? 0 : archive.n_full() - archive.dropped;
}

// Whether there were bytes for all of them.
bool make_tensors(const fuzz_context & c, const recipe & r, const bytes & rest, state_parts & parts) {
    size_t i_rest = 0;
    for (const size_t size : part_sizes(c.ctx, parts.header, parts.texts, N_PAGES_MAX)) {
        state_part part;
        while (part.data.size() < size) {
            if (r.content == form::SHORT && i_rest >= rest.size()) {
                return false;
            }
            part.data.push_back(rest.empty() ? 0 : rest[i_rest++ % rest.size()]);
        }
        parts.tensors.push_back(std::move(part));
    }
    // every other page of the last text, before its tail
    for (int64_t i = 1; r.has_lost && i <= std::min(count_pages(parts), N_PAGES_MAX); i += 2) {
        auto & part  = parts.tensors[parts.tensors.size() - 1 - i];
        part.is_lost = true;
        std::fill(part.data.begin() + sizeof(uint64_t), part.data.end(), 0);
    }
    return true;
}

}  // namespace

made_state make_state(const fuzz_context & c, const recipe & r, const uint8_t * data, size_t size) {
    made_state res;
    if (r.content == form::VERBATIM) {
        res.data = prefix_of(c, r);
        append(res.data, data, size);
        return res;
    }
    auto & parts              = res.parts;
    parts.header              = c.header[r.n_seq() - 1];
    parts.header.version      = r.version;
    parts.header.has_no_pages = r.load == way::CHECKPOINT && c.has_archive();

    bytes_reader in(data, size);
    bytes        texts;
    if (!make_texts(c, r, in, parts, texts)) {
        res.data = put_together(prefix_of(c, r), parts.header, texts, {});
        append(res.data, data + in.n_read, in.n_left());
        return res;
    }
    const bool is_whole = make_tensors(c, r, bytes(data + in.n_read, data + size), parts);
    res.data            = put_together(prefix_of(c, r), parts.header, texts, parts.tensors);
    if (r.content == form::CUT) {
        res.data.resize(res.data.size() - 1 - r.n);
    }
    int64_t n_pages = 0;
    for (const auto & text : parts.texts) {
        n_pages = std::max(n_pages, c.has_archive() ? text.archive.n_full() - text.archive.dropped : 0);
    }
    const bool has_lost = r.has_lost && count_pages(parts) > 0;
    res.is_right        = is_whole && r.content != form::CUT && (r.version >= 5 || !has_lost) &&
                          (n_pages <= N_PAGES_MAX || parts.header.has_no_pages);
    return res;
}
