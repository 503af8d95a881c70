#ifndef _WIN32

#include "core/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

morphkv_file::~morphkv_file() {
    if (handle >= 0) {
        close(handle);
    }
}

int morphkv_file::open(const std::string & path) {
    handle = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return handle < 0 ? -1 : 0;
}

int morphkv_file::open_to_read(const std::string & path) {
    handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    return handle < 0 ? -1 : 0;
}

int morphkv_file::lock() {
    return flock(handle, LOCK_EX | LOCK_NB);
}

int64_t morphkv_file::size() const {
    struct stat info{};
    return fstat(handle, &info) == 0 ? (int64_t) info.st_size : -1;
}

int64_t morphkv_file::read(int64_t at, void * out, size_t n) const {
    return pread(handle, out, n, at);
}

int64_t morphkv_file::write(int64_t at, const void * data, size_t n) {
    return pwrite(handle, data, n, at);
}

int morphkv_file::truncate(int64_t n) {
    return ftruncate(handle, n);
}

int morphkv_file::flush() {
    return fsync(handle);
}

morphkv_file_map::~morphkv_file_map() {
    if (bytes) {
        munmap((void *) bytes, n_bytes);
    }
}

int morphkv_file_map::open(const morphkv_file & file, size_t n) {
    void * res = mmap(nullptr, n, PROT_READ, MAP_SHARED, file.handle, 0);
    if (res == MAP_FAILED) {
        return -1;
    }
    bytes   = (const char *) res;
    n_bytes = n;
    return 0;
}

#endif
