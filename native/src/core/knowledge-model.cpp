// Tells model files apart.

#include "core/file.h"
#include "core/hash.h"
#include "core/knowledge.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

uint64_t morphkv_hash_model_file(const std::string & path) {
    constexpr int64_t N_SAMPLES = 64, N_SAMPLE = 4096;
    morphkv_file      file;
    const int64_t     n_bytes = file.open_to_read(path) < 0 ? -1 : file.size();
    if (n_bytes < 0) {
        throw std::runtime_error(path + " cannot be opened: " + strerror(errno));
    }
    morphkv_word_hash res;
    res.add(n_bytes);
    const int64_t        n_room = std::max<int64_t>(0, n_bytes - N_SAMPLE);
    std::vector<uint8_t> sample(N_SAMPLE);
    for (int64_t i = 0; i < N_SAMPLES; ++i) {
        // not n_room * i, which may be too large a number
        const int64_t at     = n_room / (N_SAMPLES - 1) * i + n_room % (N_SAMPLES - 1) * i / (N_SAMPLES - 1);
        const int64_t n_read = file.read(at, sample.data(), sample.size());
        if (n_read < 0) {
            throw std::runtime_error(path + " cannot be read: " + strerror(errno));
        }
        res.add(sample.data(), n_read);
    }
    return res.get();
}
