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
    // EWOULDBLOCK where another has locked it; until it is closed. Who does not ask is not kept from it.
    int lock();

    int64_t size() const;
    int64_t read(int64_t at, void * out, size_t n) const;  // bytes, 0 at the end
    int64_t write(int64_t at, const void * data, size_t n);
    int     truncate(int64_t n);

private:
    intptr_t handle = -1;
};
