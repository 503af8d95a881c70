#include "core/knowledge.h"

#include "core/hash.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <utility>

namespace {

constexpr char     MAGIC[8] = { 'M', 'K', 'V', 'K', 'N', 'O', 'W', 'N' };
constexpr uint32_t VERSION  = 2;
constexpr int64_t  HEADER   = 4096;     // bytes
constexpr int64_t  ALIGNED  = 64;       // where a part of the index begins
constexpr int64_t  MANY     = 1 << 26;  // pages

struct knowledge_header {
    char     magic[8];
    uint64_t checksum;  // of all behind it
    uint32_t version;
    int32_t  type_k;
    int32_t  type_v;
    uint32_t zero;
    uint64_t layout;
    uint64_t page_bytes;
    uint64_t model;
    uint64_t id;
    int64_t  n_pages;
    int64_t  index_at;
    uint64_t index_hash;
    int64_t  tokens_at;
    uint64_t tokens_hash;
    int64_t  n_bytes;  // of the file
};

struct record_header {
    int64_t  i_page;
    uint64_t hash;
};

uint64_t checksum_of(const knowledge_header & header) {
    constexpr size_t  first = offsetof(knowledge_header, version);
    morphkv_word_hash res;
    res.add((const char *) &header + first, sizeof(header) - first);
    return res.get();
}

int64_t record_bytes(const morphkv_page_layout & layout) {
    return sizeof(record_header) + layout.page_bytes;
}

int64_t page_at(const morphkv_page_layout & layout, int64_t i_page) {
    return HEADER + i_page * record_bytes(layout);
}

// Where the parts of a file with so many pages begin.
struct file_places {
    file_places(const morphkv_page_layout & layout, int64_t n_pages) {
        int64_t at = GGML_PAD(page_at(layout, n_pages), HEADER);
        for (size_t il = 0; il < layout.layers.size(); ++il) {
            index.push_back(at);
            at = GGML_PAD(at + n_pages * (int64_t) layout.index_bytes(il), ALIGNED);
        }
        tokens  = at;
        n_bytes = tokens + n_pages * morphkv_page_layout::N_PAGE * (int64_t) sizeof(int32_t);
    }

    std::vector<size_t> index;
    int64_t             tokens;
    int64_t             n_bytes;
};

// Rows that can be had in this type.
bool fits(int32_t type, bool is_k, const morphkv_page_layout & own) {
    if (type < 0 || type >= GGML_TYPE_COUNT || !ggml_get_type_traits((ggml_type) type)->to_float) {
        return type == GGML_TYPE_F32;
    }
    const int64_t n_block = ggml_blck_size((ggml_type) type);
    return std::all_of(own.layers.begin(), own.layers.end(),
                       [&](const auto & layer) { return (is_k ? layer.n_embd_k : layer.n_embd_v) % n_block == 0; });
}

[[noreturn]] void fail(const std::string & path, const char * what, int error) {
    throw std::runtime_error(path + " " + what + ": " + strerror(error));
}

// A page as another layout of the same layers has it.
morphkv_page laid_out(const morphkv_page & page, const morphkv_page_layout & from, const morphkv_page_layout & to) {
    morphkv_page res(to.page_bytes);
    for (const auto & layer : to.layers) {
        const auto &  was    = from.layers[from.find(layer.il)];
        const int64_t n_rows = morphkv_page_layout::N_PAGE * layer.n_head_kv;
        morphkv_convert_rows(from.type_k, page.data() + was.k_at, to.type_k, res.data() + layer.k_at, n_rows,
                             layer.n_embd_k);
        morphkv_convert_rows(from.type_v, page.data() + was.v_at, to.type_v, res.data() + layer.v_at, n_rows,
                             layer.n_embd_v);
    }
    return res;
}

// As f(), which is a system call.
template <typename F> auto call(F && f) -> decltype(f()) {
    if (const int error = morphkv_store_fault()) {
        errno = error;
        return -1;
    }
    return f();
}

}  // namespace

//
// reading
//

void morphkv_knowledge::read(int64_t at, void * out, size_t n) const {
    while (n > 0) {
        const int64_t n_read = call([&] { return file.read(at, out, n); });
        if (n_read < 0 && errno == EINTR) {
            continue;
        }
        if (n_read < 0) {
            fail(path, "cannot be read", errno);
        }
        if (n_read == 0) {
            throw std::runtime_error(path + " is truncated: it ends at byte " + std::to_string(at));
        }
        out = (char *) out + n_read;
        at += n_read;
        n -= n_read;
    }
}

morphkv_knowledge::morphkv_knowledge(const std::string & path, const morphkv_page_layout & own, uint64_t model)
    : path(path),
      own(own),
      stored(own) {
    if (call([&] { return file.open_to_read(path); }) < 0) {
        fail(path, "cannot be opened", errno);
    }
    const int64_t n_held = call([&] { return file.size(); });
    if (n_held < 0) {
        fail(path, "cannot be read", errno);
    }
    knowledge_header header{};
    const bool       has_header = n_held >= HEADER;
    if (n_held >= (int64_t) sizeof(header)) {
        read(0, &header, sizeof(header));
    }
    if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
        throw std::runtime_error(path + " is no archive that a text was read into (read)");
    }
    if (header.version != VERSION) {
        throw std::runtime_error(path + " must have version " + std::to_string(VERSION) + ", got " +
                                 std::to_string(header.version) + ": read the text again");
    }
    if (!has_header || header.checksum != checksum_of(header)) {
        throw std::runtime_error(path + " is damaged: the checksum of its header is wrong");
    }
    if (header.model != model || !fits(header.type_k, true, own) || !fits(header.type_v, false, own)) {
        throw std::runtime_error(path + " was read with another model");
    }
    stored = own.in_model_order((ggml_type) header.type_k, (ggml_type) header.type_v);
    if (header.layout != stored.hash() || header.page_bytes != stored.page_bytes) {
        throw std::runtime_error(path + " was read with another model");
    }
    const bool        has_pages = header.n_pages > 0 && header.n_pages <= MANY;
    const file_places places(stored, has_pages ? header.n_pages : 0);
    if (!has_pages || header.n_bytes != places.n_bytes || header.tokens_at != places.tokens ||
        header.index_at != (int64_t) places.index[0]) {
        throw std::runtime_error(path + " is damaged: its parts are nowhere");
    }
    if (n_held != header.n_bytes) {
        throw std::runtime_error(path + (n_held < header.n_bytes ? " is truncated" : " is damaged") +
                                 ": it must have " + std::to_string(header.n_bytes) + " bytes, got " +
                                 std::to_string(n_held));
    }
    if (call([&] { return map.open(file, header.tokens_at); }) < 0) {
        fail(path, "cannot be mapped", errno);
    }
    n_all_pages = header.n_pages;
    n_bytes     = header.n_bytes;
    tokens_at   = header.tokens_at;
    id          = header.id;
    index_hash  = header.index_hash;
    tokens_hash = header.tokens_hash;
    for (const auto & layer : own.layers) {
        index_at.push_back(places.index[stored.find(layer.il)]);
    }
}

void morphkv_knowledge::note(const std::string & why) const {
    if (!was_told) {
        news     = why;
        was_told = true;
    }
}

std::string morphkv_knowledge::take_news() const {
    return std::exchange(news, {});
}

morphkv_archive::page_ptr morphkv_knowledge::find_page(int64_t i_page) const noexcept {
    if (is_damaged(i_page)) {
        return nullptr;
    }
    try {
        record_header header{};
        auto          page = std::make_shared<morphkv_page>(stored.page_bytes);
        read(page_at(stored, i_page), &header, sizeof(header));
        read(page_at(stored, i_page) + sizeof(header), page->data(), page->size());
        if (header.i_page != i_page || morphkv_hash_page(*page) != header.hash) {
            throw std::runtime_error(path + " is damaged: the checksum of page " + std::to_string(i_page) +
                                     " is wrong");
        }
        if (stored.hash() == own.hash()) {
            return page;
        }
        return std::make_shared<morphkv_page>(laid_out(*page, stored, own));
    } catch (const std::exception & err) {
        try {
            damaged.insert(i_page);
            note("tokens " + std::to_string(i_page * N_PAGE) + " to " + std::to_string(i_page * N_PAGE + N_PAGE - 1) +
                 " cannot be read and are not recalled: " + err.what());
        } catch (const std::bad_alloc &) {
            // it will be tried again
        }
    }
    return nullptr;
}

static uint64_t hash_index(const morphkv_page_layout & layout, int64_t n_pages,
                           const std::vector<const void *> & rows) {
    morphkv_word_hash res;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        res.add(rows[il], n_pages * layout.index_bytes(il));
    }
    return res.get();
}

bool morphkv_knowledge::is_index_right() const {
    if (index_state == 0) {
        std::vector<const void *> rows;
        for (const auto & layer : stored.layers) {
            rows.push_back(index_rows(own.find(layer.il)));
        }
        index_state = hash_index(stored, n_all_pages, rows) == index_hash ? 1 : -1;
        if (index_state < 0) {
            note("nothing is recalled from it: " + path + " is damaged: the checksum of its index is wrong");
        }
    }
    return index_state > 0;
}

static uint64_t hash_tokens(const std::vector<int32_t> & tokens) {
    morphkv_word_hash res;
    res.add(tokens.data(), tokens.size() * sizeof(int32_t));
    return res.get();
}

std::vector<int32_t> morphkv_knowledge::get_tokens(int64_t first, int64_t n) const {
    if (tokens.empty()) {
        std::vector<int32_t> all(n_tokens());
        read(tokens_at, all.data(), all.size() * sizeof(int32_t));
        if (hash_tokens(all) != tokens_hash) {
            throw std::runtime_error(path + " is damaged: the checksum of its tokens is wrong");
        }
        tokens = std::move(all);
    }
    GGML_ASSERT(first >= 0 && n >= 0 && first + n <= n_tokens());
    return { tokens.begin() + first, tokens.begin() + first + n };
}

//
// writing
//

namespace {

class writer {
public:
    explicit writer(const std::string & path) : path(path) {
        if (call([&] { return file.open(path); }) < 0 || call([&] { return file.truncate(0); }) < 0) {
            fail(path, "cannot be opened", errno);
        }
    }

    void write(int64_t at, const void * data, size_t n) {
        while (n > 0) {
            const int64_t n_written = call([&] { return file.write(at, data, n); });
            if (n_written < 0 && errno == EINTR) {
                continue;
            }
            if (n_written <= 0) {
                fail(path, "cannot be written", errno);
            }
            data = (const char *) data + n_written;
            at += n_written;
            n -= n_written;
        }
    }

    void flush() {
        if (call([&] { return file.flush(); }) != 0) {
            fail(path, "cannot be written", errno);
        }
    }

private:
    const std::string path;
    morphkv_file      file;
};

void write_all(const std::string & path, const morphkv_archive & archive, uint64_t model,
               const std::vector<int32_t> & tokens) {
    const auto &      own     = archive.layout;
    const auto        layout  = own.in_model_order(own.type_k, own.type_v);
    const int64_t     n_pages = archive.n_full();
    const file_places places(layout, n_pages);
    writer            out(path);

    knowledge_header header{};
    memcpy(header.magic, MAGIC, sizeof(MAGIC));
    header.version    = VERSION;
    header.type_k     = layout.type_k;
    header.type_v     = layout.type_v;
    header.layout     = layout.hash();
    header.page_bytes = layout.page_bytes;
    header.model      = model;
    header.n_pages    = n_pages;
    header.index_at   = places.index[0];
    header.tokens_at  = places.tokens;
    header.n_bytes    = places.n_bytes;

    morphkv_word_hash id;
    id.add(model);
    id.add(header.layout);
    for (int64_t i = 0; i < n_pages; ++i) {
        const auto found = archive.find_page(i);
        if (!found) {
            throw std::runtime_error("page " + std::to_string(i) + " of the archive cannot be read");
        }
        const auto          page   = laid_out(*found, own, layout);
        const record_header record = { i, morphkv_hash_page(page) };
        id.add(record.hash);
        out.write(page_at(layout, i), &record, sizeof(record));
        out.write(page_at(layout, i) + sizeof(record), page.data(), page.size());
    }
    std::vector<const void *> rows;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        rows.push_back(archive.index_rows(own.find(layout.layers[il].il)));
        out.write(places.index[il], rows[il], n_pages * layout.index_bytes(il));
    }
    header.index_hash  = hash_index(layout, n_pages, rows);
    header.tokens_hash = hash_tokens(tokens);
    id.add(header.tokens_hash);
    header.id       = id.get();
    header.checksum = checksum_of(header);
    out.write(places.tokens, tokens.data(), tokens.size() * sizeof(int32_t));
    out.write(0, &header, sizeof(header));
    out.flush();
}

}  // namespace

void morphkv_write_knowledge(const std::string & path, const morphkv_archive & archive, uint64_t model,
                             const std::vector<int32_t> & tokens) {
    if (archive.n_dropped() > 0) {
        throw std::runtime_error("the archive has dropped the text's first tokens (max_bytes): it is not written");
    }
    if (archive.n_full() == 0 || archive.n_held() != archive.n_full() * morphkv_knowledge::N_PAGE ||
        (int64_t) tokens.size() != archive.n_held()) {
        throw std::runtime_error("an archive is written in whole pages of 16 tokens, got " +
                                 std::to_string(archive.n_held()) + " tokens");
    }
    const std::string part = path + ".part";
    try {
        write_all(part, archive, model, tokens);
        std::filesystem::rename(std::filesystem::u8path(part), std::filesystem::u8path(path));
    } catch (...) {
        std::error_code ignored;
        std::filesystem::remove(std::filesystem::u8path(part), ignored);
        throw;
    }
}
