#include "fuzz_archive_file.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace {

// The layout of core/pages-file.cpp.
constexpr size_t PADDED  = 4096;  // bytes of the header
constexpr char   MAGIC[] = "MKVARCH1";

struct file_header {
    char                   magic[8];
    uint64_t               layout;
    uint64_t               page_bytes;
    morphkv_archive_header archive;
    morphkv_page_places    places;
};

struct record {
    int64_t  i_page;
    uint64_t hash;
};

}  // namespace

const morphkv_page_layout & fuzz_layout(int i_layout) {
    static const std::vector<morphkv_page_layout> all = [] {
        std::vector<morphkv_page_layout> res = { { GGML_TYPE_F32, GGML_TYPE_F32 },
                                                 { GGML_TYPE_F16, GGML_TYPE_F16 },
                                                 { GGML_TYPE_Q8_0, GGML_TYPE_Q8_0 } };
        res[0].add_layer(1, 4, 4);
        res[1].add_layer(2, 4, 2);
        res[1].add_layer(1, 2, 4);
        res[2].add_layer(1, 32, 32);
        return res;
    }();
    return all.at(i_layout);
}

size_t fuzz_page_bytes(const morphkv_page_layout & layout) {
    size_t res = layout.page_bytes;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        res += layout.index_bytes(il);
    }
    return res;
}

bytes fuzz_make_file(fuzz_form form, const morphkv_page_layout & layout, const uint8_t * data, size_t size) {
    bytes res(data, data + size);
    if (form == fuzz_form::VERBATIM || size < sizeof(file_header)) {
        return res;
    }
    if (size > sizeof(file_header)) {
        res.insert(res.begin() + sizeof(file_header), PADDED - sizeof(file_header), 0);
    }
    file_header header;
    memcpy(&header, res.data(), sizeof(header));
    memcpy(header.magic, MAGIC, sizeof(header.magic));
    header.layout     = layout.hash();
    header.page_bytes = layout.page_bytes;
    memcpy(res.data(), &header, sizeof(header));
    fuzz_mend_file(form, layout, res);
    return res;
}

void fuzz_mend_file(fuzz_form form, const morphkv_page_layout & layout, bytes & file) {
    const size_t place_bytes = sizeof(record) + layout.page_bytes;
    const size_t n_places    = file.size() < PADDED ? 0 : (file.size() - PADDED) / place_bytes;
    if (form < fuzz_form::HASHED || n_places == 0) {
        return;
    }
    std::vector<int64_t> numbers(n_places);
    for (size_t i = 0; i < n_places; ++i) {
        memcpy(&numbers[i], &file[PADDED + i * place_bytes], sizeof(int64_t));
    }
    if (form == fuzz_form::PLACED) {
        file_header header;
        memcpy(&header, file.data(), sizeof(header));
        auto & held     = header.archive;
        held.zero       = 0;
        held.n_tokens   = std::abs(held.n_tokens % 100000);
        held.first      = held.n_tokens == 0 ? -1 : std::abs(held.first % 100000);
        held.dropped    = std::abs(held.dropped % (held.n_full() + 1));
        auto & places   = header.places;
        places.n_ring   = std::abs(places.n_ring % (2 * (int64_t) n_places));
        places.i_first  = std::abs(places.i_first % (held.dropped + 1));
        int64_t n_pages = 0;
        for (int64_t i = held.dropped; i < held.n_full() && places.of(i) < n_places; ++i) {
            numbers[places.of(i)] = i;
            n_pages++;
        }
        held.n_tokens = std::min(held.n_tokens, (held.dropped + n_pages) * morphkv_archive::N_PAGE);
        held.first    = held.n_tokens == 0 ? -1 : held.first;
        memcpy(file.data(), &header, sizeof(header));
    }
    for (size_t i = 0; i < n_places; ++i) {
        uint8_t *    at   = &file[PADDED + i * place_bytes];
        const record mark = { numbers[i], morphkv_hash_page({ at + sizeof(record), at + place_bytes }) };
        memcpy(at, &mark, sizeof(mark));
    }
}

bytes fuzz_without_padding(const bytes & file) {
    bytes res(file.begin(), file.begin() + std::min(file.size(), sizeof(file_header)));
    if (file.size() > PADDED) {
        append(res, file.data() + PADDED, file.size() - PADDED);
    }
    return res;
}

//
// a file in memory
//

fuzz_memory_file::fuzz_memory_file() : fd(memfd_create("fuzz-archive", MFD_CLOEXEC)) {
    CHECK(fd >= 0);
    path = "/proc/self/fd/" + std::to_string(fd);
}

void fuzz_memory_file::write(const bytes & data) {
    CHECK(ftruncate(fd, 0) == 0);
    CHECK(pwrite(fd, data.data(), data.size(), 0) == (ssize_t) data.size());
}

bytes fuzz_memory_file::read() const {
    struct stat info{};
    CHECK(fstat(fd, &info) == 0);
    bytes res(info.st_size);
    CHECK(pread(fd, res.data(), res.size(), 0) == (ssize_t) res.size());
    return res;
}

void fuzz_memory_file::damage(int32_t n) {
    bytes data = read();
    switch (n % 4) {
        case 0:
            data.resize(data.size() * n / 32);
            break;
        case 1:
            for (size_t i = n; i < data.size(); i += 401) {
                data[i] ^= 1 << i % 8;
            }
            break;
        case 2:
            std::fill_n(data.begin(), std::min(data.size(), sizeof(file_header)), n);
            break;
        default:
            std::fill(data.begin() + data.size() * n / 32, data.end(), 0xff);
            break;
    }
    write(data);
}

fuzz_memory_file & fuzz_file() {
    static fuzz_memory_file res;
    return res;
}
