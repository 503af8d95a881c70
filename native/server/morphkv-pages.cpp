#include "morphkv-pages.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace fs = std::filesystem;

static constexpr char MAGIC[8] = { 'M', 'K', 'V', 'P', 'A', 'G', 'E', '1' };

struct first_bytes {
    char     magic[8];
    uint64_t record_bytes;
    int64_t  first;
    int32_t  first_token;
    uint32_t zero;
};

fs::path morphkv_pages_path(const fs::path & chat) {
    return fs::path(chat).replace_extension(".pages");
}

uint64_t morphkv_pages_bytes(const fs::path & chat) {
    std::error_code ec;
    const auto      n = fs::file_size(morphkv_pages_path(chat), ec);
    return ec ? 0 : n;
}

static morphkv_page_range empty_pages() {
    morphkv_page_range res{};
    res.size = sizeof(res);
    return res;
}

static uint64_t hash_in(const char * record) {
    uint64_t res;
    memcpy(&res, record, sizeof(res));
    return res;
}

morphkv_page_files::state & morphkv_page_files::of(int32_t id_slot) {
    states.resize(std::max<size_t>(states.size(), id_slot + 1));
    return states[id_slot];
}

void morphkv_page_files::forget(const fs::path & chat) {
    for (auto & one : states) {
        if (one.chat == chat) {
            one = {};
        }
    }
}

//
// writing
//

// Pages of a file, from its first, that the archive has too.
static int64_t n_same_pages(llama_context * ctx, int32_t id_slot, const morphkv_page_range & now,
                            const morphkv_page_range & file, const std::vector<uint64_t> & hashes) {
    if (file.record_bytes != now.record_bytes || file.first_token != now.first_token || file.first > now.first) {
        return 0;
    }
    std::vector<char> record(now.record_bytes);
    // a hash depends on all text before its page
    for (int64_t end = std::min(file.end, now.end); end > now.first; --end) {
        if (morphkv_pages_get(ctx, id_slot, end - 1, 1, record.data(), nullptr) != MORPHKV_STATUS_OK) {
            return 0;
        }
        if (hash_in(record.data()) == hashes.at(end - 1 - file.first)) {
            return end - file.first;
        }
    }
    return 0;
}

morphkv_page_files::update morphkv_page_files::next(llama_context * ctx, int32_t id_slot, const fs::path & chat) {
    state &            file = of(id_slot);
    morphkv_page_range now  = empty_pages();
    if (morphkv_pages_get(ctx, id_slot, 0, 0, nullptr, &now) != MORPHKV_STATUS_OK || now.end == now.first) {
        return {};
    }
    int64_t n_same = n_same_pages(ctx, id_slot, now, file.pages, file.hashes);
    // those that had to leave the archive are half of the file
    if (now.first - file.pages.first > now.end - now.first) {
        n_same = 0;
    }
    update res;
    res.path = morphkv_pages_path(chat);
    if (n_same == 0) {
        file                    = { chat, now, {} };
        const first_bytes first = { {}, now.record_bytes, now.first, now.first_token, 0 };
        res.bytes.resize(sizeof(first));
        memcpy(res.bytes.data(), &first, sizeof(first));
        memcpy(res.bytes.data(), MAGIC, sizeof(MAGIC));
    } else {
        res.n_kept     = sizeof(first_bytes) + n_same * now.record_bytes;
        res.copied     = file.chat == chat ? fs::path() : morphkv_pages_path(file.chat);
        file.chat      = chat;
        file.pages.end = now.end;
        file.hashes.resize(n_same);
    }
    const int64_t from = file.pages.first + n_same;
    const size_t  at   = res.bytes.size();
    res.bytes.resize(at + (now.end - from) * now.record_bytes);
    if (morphkv_pages_get(ctx, id_slot, from, now.end - from, res.bytes.data() + at, nullptr) != MORPHKV_STATUS_OK) {
        file = {};
        return {};
    }
    for (size_t i = at; i < res.bytes.size(); i += now.record_bytes) {
        file.hashes.push_back(hash_in(res.bytes.data() + i));
    }
    return res;
}

std::string morphkv_page_files::update::write() const {
    if (path.empty()) {
        return "";
    }
    const bool      is_new = n_kept == 0 || !copied.empty();
    const fs::path  to     = is_new ? fs::path(path).concat(".tmp") : path;
    std::error_code ec;
    if (!copied.empty()) {
        fs::copy_file(copied, to, fs::copy_options::overwrite_existing, ec);
    }
    if (!ec && n_kept > 0) {
        fs::resize_file(to, n_kept, ec);
    }
    std::string why = ec ? ec.message() : "";
    if (why.empty()) {
        errno = 0;
        std::ofstream out(to, std::ios::binary | (n_kept > 0 ? std::ios::app : std::ios::trunc));
        out.write(bytes.data(), bytes.size());
        out.close();
        why = out ? "" : errno != 0 ? std::strerror(errno) : "the file cannot be written";
    }
    if (why.empty() && is_new) {
        fs::rename(to, path, ec);
        why = ec ? ec.message() : "";
    }
    if (!why.empty()) {
        fs::remove(to, ec);
    }
    return why;
}

//
// reading
//

bool morphkv_page_files::load(llama_context * ctx, int32_t id_slot, const fs::path & chat) {
    of(id_slot) = {};
    std::ifstream      in(morphkv_pages_path(chat), std::ios::binary);
    const uint64_t     n_file = morphkv_pages_bytes(chat);
    morphkv_page_range own    = empty_pages();
    first_bytes        first{};
    in.read((char *) &first, sizeof(first));
    if (!in || memcmp(first.magic, MAGIC, sizeof(MAGIC)) != 0 ||
        morphkv_pages_get(ctx, id_slot, 0, 0, nullptr, &own) != MORPHKV_STATUS_OK ||
        own.record_bytes != first.record_bytes) {
        return false;
    }
    // a killed server may have left half a record
    const int64_t     n = (n_file - sizeof(first)) / first.record_bytes;
    std::vector<char> records(n * first.record_bytes);
    in.read(records.data(), records.size());
    own.first       = first.first;
    own.end         = first.first + n;
    own.first_token = first.first_token;
    if (!in || morphkv_pages_set(ctx, id_slot, &own, records.data()) != MORPHKV_STATUS_OK) {
        return false;
    }
    state & file = of(id_slot);
    file         = { chat, own, {} };
    for (int64_t i = 0; i < n; ++i) {
        file.hashes.push_back(hash_in(records.data() + i * own.record_bytes));
    }
    return true;
}
