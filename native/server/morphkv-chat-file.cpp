#include "morphkv-chat-file.h"

#include "core/hash.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace fs = std::filesystem;

static constexpr char MAGIC[8] = { 'M', 'K', 'V', 'C', 'H', 'A', 'T', '1' };

struct first_bytes {
    char     magic[8];
    uint64_t n_bytes;     // of the file
    uint32_t n_settings;  // bytes
    uint32_t n_tokens;
    int32_t  n_prompt;
    uint32_t n_states;
};

static uint64_t hash_of(const void * data, size_t n) {
    morphkv_word_hash hash;
    hash.add(data, n);
    return hash.get();
}

std::vector<morphkv_chat_part> morphkv_chat_parts(const std::vector<morphkv_chat_state> & states) {
    std::vector<morphkv_chat_part> res;
    for (const auto & s : states) {
        res.push_back({ s.n_tokens, s.pos_min, s.pos_max, 0, s.data.size(), hash_of(s.data.data(), s.data.size()) });
    }
    return res;
}

//
// bytes before the states
//

template <typename T> static void append(std::vector<char> & to, const T * data, size_t n) {
    to.insert(to.end(), (const char *) data, (const char *) (data + n));
}

static std::vector<char> to_bytes(const morphkv_chat_head & head) {
    first_bytes first{};
    memcpy(first.magic, MAGIC, sizeof(MAGIC));
    first.n_settings = head.settings.size();
    first.n_tokens   = head.tokens.size();
    first.n_prompt   = head.n_prompt;
    first.n_states   = head.parts.size();
    first.n_bytes    = sizeof(first) + first.n_settings + head.tokens.size() * sizeof(llama_token) +
                       head.parts.size() * sizeof(morphkv_chat_part) + sizeof(uint64_t);
    for (const auto & part : head.parts) {
        first.n_bytes += part.n_bytes;
    }
    std::vector<char> res;
    append(res, &first, 1);
    append(res, head.settings.data(), head.settings.size());
    append(res, head.tokens.data(), head.tokens.size());
    append(res, head.parts.data(), head.parts.size());
    const uint64_t hash = hash_of(res.data(), res.size());
    append(res, &hash, 1);
    return res;
}

template <typename T> static void read_into(std::ifstream & in, T & out, uint64_t n, uint64_t n_file) {
    if (n > n_file / sizeof(*out.data())) {
        throw std::runtime_error("it is damaged");
    }
    out.resize(n);
    in.read((char *) out.data(), n * sizeof(*out.data()));
}

morphkv_chat_head morphkv_chat_read_head(const fs::path & path) {
    std::ifstream  in(path, std::ios::binary);
    const uint64_t n_file = fs::file_size(path);
    first_bytes    first{};
    in.read((char *) &first, sizeof(first));
    if (!in || memcmp(first.magic, MAGIC, sizeof(MAGIC)) != 0 || first.n_bytes != n_file) {
        throw std::runtime_error("it is damaged");
    }
    morphkv_chat_head res;
    res.n_prompt = first.n_prompt;
    read_into(in, res.settings, first.n_settings, n_file);
    read_into(in, res.tokens, first.n_tokens, n_file);
    read_into(in, res.parts, first.n_states, n_file);
    uint64_t hash = 0;
    in.read((char *) &hash, sizeof(hash));
    const auto bytes = to_bytes(res);
    if (!in || memcmp(&first, bytes.data(), sizeof(first)) != 0 ||
        memcmp(&hash, bytes.data() + bytes.size() - sizeof(hash), sizeof(hash)) != 0) {
        throw std::runtime_error("it is damaged");
    }
    return res;
}

std::vector<morphkv_chat_state> morphkv_chat_read_states(const fs::path & path, const morphkv_chat_head & head) {
    std::ifstream in(path, std::ios::binary);
    in.seekg(to_bytes(head).size());
    std::vector<morphkv_chat_state> res;
    for (const auto & part : head.parts) {
        res.push_back({ part.n_tokens, part.pos_min, part.pos_max, {} });
        read_into(in, res.back().data, part.n_bytes, part.n_bytes);
        if (!in || hash_of(res.back().data.data(), part.n_bytes) != part.hash) {
            throw std::runtime_error("it is damaged, or has gone");
        }
    }
    return res;
}

//
// files
//

std::string morphkv_chat_write(const fs::path & path, const morphkv_chat_head & head,
                               const std::vector<morphkv_chat_state> & states) {
    const auto      bytes  = to_bytes(head);
    const fs::path  beside = fs::path(path).concat(".tmp");
    std::error_code ec;

    errno = 0;
    std::ofstream out(beside, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), bytes.size());
    for (const auto & state : states) {
        out.write((const char *) state.data.data(), state.data.size());
    }
    out.close();
    std::string why = out ? "" : errno != 0 ? std::strerror(errno) : "the file cannot be written";
    if (why.empty()) {
        fs::rename(beside, path, ec);
        why = ec ? ec.message() : "";
    }
    if (!why.empty()) {
        fs::remove(beside, ec);
    }
    return why;
}

std::vector<morphkv_chat_file> morphkv_chat_files(const fs::path & dir, const char * extension) {
    std::vector<morphkv_chat_file> res;
    std::error_code                ec;
    for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec)) {
        std::error_code   gone;  // by another server
        morphkv_chat_file file{ it->path(), it->file_size(gone), it->last_write_time(gone) };
        if (!gone && it->path().extension() == extension) {
            res.push_back(std::move(file));
        }
    }
    std::sort(res.begin(), res.end(), [](const auto & a, const auto & b) { return a.used < b.used; });
    return res;
}
