// Pages in a file. Not mapped into memory: where a disk is full, a write says so, while a mapping ends the process.
//
//   header   one block: magic, version, layout, which tokens
//   places   number of the page, its hash, its bytes
//
// A page is written before the header that counts it, so a process that is killed leaves the pages before.

#include "morphkv-pages.h"

#include <cerrno>
#include <cstring>
#include <stdexcept>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

constexpr char    MAGIC[8] = { 'M', 'K', 'V', 'A', 'R', 'C', 'H', '1' };
constexpr int64_t HEADER   = 4096;  // bytes

struct file_header {
    char                   magic[8];
    uint64_t               layout;
    uint64_t               page_bytes;
    morphkv_archive_header archive;
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
          layout(layout.hash()),
          fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
        if (fd < 0) {
            fail("cannot be opened", errno);
        }
        try {
            begin();
        } catch (...) {
            close(fd);
            throw;
        }
    }

    ~file_store() override { close(fd); }

    void put(size_t i_place, int64_t i_page, uint64_t hash, std::shared_ptr<const morphkv_page> page) override {
        const record_header record = { i_page, hash };
        write(at(i_place), &record, sizeof(record));
        write(at(i_place) + sizeof(record), page->data(), page->size());
    }

    void get(size_t i_place, size_t offset, size_t n_bytes, void * out) const override {
        read(at(i_place) + sizeof(record_header) + offset, out, n_bytes);
    }

    std::shared_ptr<const morphkv_page> get(size_t i_place) const override {
        record_header record{};
        auto          page = std::make_shared<morphkv_page>(page_bytes);
        read(at(i_place), &record, sizeof(record));
        get(i_place, 0, page->size(), page->data());
        if (record.hash != morphkv_hash_page(*page)) {
            throw std::runtime_error(path + " is damaged: the checksum of page " + std::to_string(record.i_page) +
                                     " is wrong");
        }
        return page;
    }

    void commit(const morphkv_archive_header & header) override {
        file_header res{};
        memcpy(res.magic, MAGIC, sizeof(MAGIC));
        res.layout     = layout;
        res.page_bytes = page_bytes;
        res.archive    = header;
        write(0, &res, sizeof(res));
    }

    morphkv_archive_header found() const override { return from_before; }

    bool holds(size_t i_place, int64_t i_page) const override {
        record_header record{};
        const bool    is_there = pread(fd, &record, sizeof(record), at(i_place)) == sizeof(record);
        return is_there && record.i_page == i_page;
    }

private:
    void begin() {
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            throw std::runtime_error(path + " is in use by another process");
        }
        struct stat info{};
        if (fstat(fd, &info) != 0) {
            fail("cannot be read", errno);
        }
        if (info.st_size == 0) {
            commit({});
            return;
        }
        file_header header{};
        if (info.st_size < (int64_t) sizeof(header)) {
            throw std::runtime_error(path + " is no archive, or truncated, and is left as it is");
        }
        read(0, &header, sizeof(header));
        if (memcmp(header.magic, MAGIC, sizeof(MAGIC)) != 0) {
            throw std::runtime_error(path + " is no archive and is left as it is");
        }
        if (header.layout != layout || header.page_bytes != page_bytes) {
            throw std::runtime_error(path + " is the archive of another model or another archive_type");
        }
        const std::string why = header.archive.why_not();
        if (!why.empty()) {
            throw std::runtime_error(path + " is damaged: " + why);
        }
        from_before = header.archive;
    }

    int64_t at(size_t i_place) const { return HEADER + i_place * (sizeof(record_header) + page_bytes); }

    void read(int64_t at, void * out, size_t n) const {
        while (n > 0) {
            const ssize_t n_read = pread(fd, out, n, at);
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
            const ssize_t n_written = pwrite(fd, data, n, at);
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

    const std::string      path;
    const size_t           page_bytes;
    const uint64_t         layout;
    const int              fd;
    morphkv_archive_header from_before;
};

}  // namespace

std::unique_ptr<morphkv_page_store> morphkv_page_store_file(const std::string &         path,
                                                            const morphkv_page_layout & layout) {
    return std::make_unique<file_store>(path, layout);
}

#else

std::unique_ptr<morphkv_page_store> morphkv_page_store_file(const std::string & path, const morphkv_page_layout &) {
    throw std::runtime_error(path + ": archives in files are not supported on Windows yet");
}

#endif
