// The calls of an archive's file, the same on each system. As POSIX has them: -1 and errno where one fails, and a read or a
// write may do a part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// Closes itself. Other processes may open, rename and remove the file meanwhile, on Windows too.
class morphkv_file {
public:
    morphkv_file() = default;
    ~morphkv_file();

    morphkv_file(const morphkv_file &)             = delete;
    morphkv_file & operator=(const morphkv_file &) = delete;

    // The file, or a new one that its owner alone may read. path: UTF-8 on Windows, as the system has it elsewhere.
    int open(const std::string & path);
    // The file, to be read alone; where it is not there, it fails.
    int open_to_read(const std::string & path);
    // EWOULDBLOCK where another has locked it; until it is closed. Who does not ask is not kept from it.
    int lock();

    int64_t size() const;
    int64_t read(int64_t at, void * out, size_t n) const;  // bytes, 0 at the end
    int64_t write(int64_t at, const void * data, size_t n);
    int     truncate(int64_t n);
    int     flush();  // to the disk

private:
    friend class morphkv_file_map;

    intptr_t handle = -1;
};

// The bytes of a file as memory, to be read alone: processes that map the same file share them. Who shortens the file ends them.
class morphkv_file_map {
public:
    morphkv_file_map() = default;
    ~morphkv_file_map();

    morphkv_file_map(const morphkv_file_map &)             = delete;
    morphkv_file_map & operator=(const morphkv_file_map &) = delete;

    // The first n bytes, at least 1, once; the file may be closed afterwards.
    int          open(const morphkv_file & file, size_t n);
    const char * data() const { return bytes; }

private:
    const char * bytes   = nullptr;
    size_t       n_bytes = 0;
};
