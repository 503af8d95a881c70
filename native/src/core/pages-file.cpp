// Pages in a file. Not mapped into memory: where a disk is full, a write says so, while a mapping ends the process.
//
//   header   one block: magic, version, layout, which tokens, and in which places
//   places   number of the page, or ~number where its bytes are lost; its hash, its bytes
//
// A page is written before the header that counts it, so a process that is killed leaves the pages before.

#include "core/file.h"
#include "core/pages.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <stdexcept>

namespace {

constexpr char    MAGIC[8] = { 'M', 'K', 'V', 'A', 'R', 'C', 'H', '1' };
constexpr int64_t HEADER   = 4096;  // bytes

struct file_header {
    char                   magic[8];
    uint64_t               layout;
    uint64_t               page_bytes;
    morphkv_archive_header archive;
    morphkv_page_places    places;  // zeros in files of older versions, whose header ends here
};

struct record_header {
    int64_t  i_page;
    uint64_t hash;
};

class file_store : public morphkv_page_store {
public:
    file_store(const std::string & path, const morphkv_page_layout & layout)
        : path(path),
          page_bytes(layout.page_bytes),
          layout(layout.hash()) {
        if (call([&] { return file.open(path); }) < 0) {
            fail("cannot be opened", errno);
        }
        begin();
    }

    void put(size_t i_place, int64_t i_page, uint64_t hash, std::shared_ptr<const morphkv_page> page) override {
        const record_header header = { page ? i_page : ~i_page, hash };
        write(at(i_place), &header, sizeof(header));
        if (page) {
            write(at(i_place) + sizeof(header), page->data(), page->size());
        }
    }

    std::shared_ptr<const morphkv_page> get(size_t i_place, int64_t i_page, uint64_t hash) const override {
        record_header header{};
        auto          page = std::make_shared<morphkv_page>(page_bytes);
        read(at(i_place), &header, sizeof(header));
        if (header.i_page == i_page && header.hash == hash) {
            read(at(i_place) + sizeof(header), page->data(), page->size());
            if (morphkv_hash_page(*page) == hash) {
                return page;
            }
        }
        throw std::runtime_error(path + " is damaged: the checksum of page " + std::to_string(i_page) + " is wrong");
    }

    void commit(const morphkv_archive_header & header, const morphkv_page_places & places) override {
        file_header res{};
        memcpy(res.magic, MAGIC, sizeof(MAGIC));
        res.layout     = layout;
        res.page_bytes = page_bytes;
        res.archive    = header;
        res.places     = places;
        write(0, &res, sizeof(res));
        if (header.first < 0 && call([&] { return file.truncate(HEADER); }) != 0) {
            fail("cannot be shortened", errno);
        }
    }

    content found() const override { return from_before; }

    record record_in(size_t i_place) const override {
        record_header header{};
        const int64_t n = call([&] { return file.read(at(i_place), &header, sizeof(header)); });
        if (n < 0) {
            fail("cannot be read", errno);
        }
        if (n != sizeof(header)) {
            return {};
        }
        return { header.i_page < 0 ? ~header.i_page : header.i_page, header.hash, header.i_page < 0 };
    }

private:
    void begin() {
        if (call([&] { return file.lock(); }) != 0) {
            if (errno != EWOULDBLOCK) {
                fail("cannot be locked", errno);
            }
            throw std::runtime_error(path + " is in use by another process");
        }
        const int64_t n_bytes = call([&] { return file.size(); });
        if (n_bytes < 0) {
            fail("cannot be read", errno);
        }
        if (n_bytes == 0) {
            commit({}, {});
            return;
        }
        file_header header{};
        if (n_bytes < (int64_t) offsetof(file_header, places)) {
            throw std::runtime_error(path + " is no archive, or truncated, and is left as it is");
        }
        read(0, &header, std::min<int64_t>(n_bytes, sizeof(header)));
        if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
            throw std::runtime_error(path + " is no archive and is left as it is");
        }
        if (header.layout != layout || header.page_bytes != page_bytes) {
            throw std::runtime_error(path + " is the archive of another model or another archive_type");
        }
        std::string why = header.archive.why_not();
        if (why.empty() &&
            (header.places.i_first < 0 || header.places.n_ring < 0 || header.places.i_first > header.archive.dropped)) {
            why = "its pages are nowhere";
        }
        if (!why.empty()) {
            throw std::runtime_error(path + " is damaged: " + why);
        }
        from_before = { header.archive, header.places };
    }

    // As f(), which is a system call.
    template <typename F> static auto call(F && f) -> decltype(f()) {
        if (const int error = morphkv_store_fault()) {
            errno = error;
            return -1;
        }
        return f();
    }

    int64_t at(size_t i_place) const { return HEADER + i_place * (sizeof(record_header) + page_bytes); }

    void read(int64_t at, void * out, size_t n) const {
        while (n > 0) {
            const int64_t n_read = call([&] { return file.read(at, out, n); });
            if (n_read < 0 && errno == EINTR) {
                continue;
            }
            if (n_read < 0) {
                fail("cannot be read", errno);
            }
            if (n_read == 0) {
                throw std::runtime_error(path + " is truncated: it ends at byte " + std::to_string(at));
            }
            out = (char *) out + n_read;
            at += n_read;
            n -= n_read;
        }
    }

    void write(int64_t at, const void * data, size_t n) {
        while (n > 0) {
            const int64_t n_written = call([&] { return file.write(at, data, n); });
            if (n_written < 0 && errno == EINTR) {
                continue;
            }
            if (n_written <= 0) {
                fail("cannot be written", errno);
            }
            data = (const char *) data + n_written;
            at += n_written;
            n -= n_written;
        }
    }

    [[noreturn]] void fail(const char * what, int error) const {
        throw std::runtime_error(path + " " + what + ": " + strerror(error));
    }

    const std::string path;
    const size_t      page_bytes;
    const uint64_t    layout;
    morphkv_file      file;
    content           from_before;
};

}  // namespace

std::unique_ptr<morphkv_page_store> morphkv_page_store_file(const std::string &         path,
                                                            const morphkv_page_layout & layout) {
    return std::make_unique<file_store>(path, layout);
}
