#ifdef _WIN32

#include "core/file.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

static HANDLE to_handle(intptr_t handle) {
    return (HANDLE) handle;
}

// Of GetLastError() the errno that means the same; EIO where there is none.
static int fail() {
    const auto condition = std::system_category().default_error_condition(GetLastError());
    errno                = condition.category() == std::generic_category() ? condition.value() : EIO;
    return -1;
}

static OVERLAPPED place(int64_t at) {
    OVERLAPPED res{};
    res.Offset     = (DWORD) at;
    res.OffsetHigh = (DWORD) (at >> 32);
    return res;
}

// A call moves 2^32 - 1 bytes at most.
static DWORD part(size_t n) {
    return (DWORD) std::min<size_t>(n, 1u << 30);
}

morphkv_file::~morphkv_file() {
    if (handle != -1) {
        CloseHandle(to_handle(handle));
    }
}

// INVALID_HANDLE_VALUE and errno where it cannot be opened.
static HANDLE open_file(const std::string & path, DWORD access, DWORD how) {
    const int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.c_str(), -1, nullptr, 0);
    if (n == 0) {
        errno = EINVAL;  // no UTF-8
        return INVALID_HANDLE_VALUE;
    }
    std::vector<wchar_t> wide(n);
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.c_str(), -1, wide.data(), n);
    const HANDLE res = CreateFileW(wide.data(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                                   how, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (res == INVALID_HANDLE_VALUE) {
        fail();
    }
    return res;
}

int morphkv_file::open(const std::string & path) {
    handle = (intptr_t) open_file(path, GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS);
    return handle == -1 ? -1 : 0;
}

int morphkv_file::open_to_read(const std::string & path) {
    handle = (intptr_t) open_file(path, GENERIC_READ, OPEN_EXISTING);
    return handle == -1 ? -1 : 0;
}

// Of a byte beyond all files: what is locked here nobody else can read, and a copy of the file shall be had.
int morphkv_file::lock() {
    OVERLAPPED at = place(INT64_MAX - 1);
    if (LockFileEx(to_handle(handle), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)) {
        return 0;
    }
    if (GetLastError() == ERROR_LOCK_VIOLATION || GetLastError() == ERROR_IO_PENDING) {
        errno = EWOULDBLOCK;
        return -1;
    }
    return fail();
}

int64_t morphkv_file::size() const {
    LARGE_INTEGER res{};
    return GetFileSizeEx(to_handle(handle), &res) ? res.QuadPart : fail();
}

int64_t morphkv_file::read(int64_t at, void * out, size_t n) const {
    OVERLAPPED from   = place(at);
    DWORD      n_read = 0;
    if (!ReadFile(to_handle(handle), out, part(n), &n_read, &from) && GetLastError() != ERROR_HANDLE_EOF) {
        return fail();
    }
    return n_read;
}

int64_t morphkv_file::write(int64_t at, const void * data, size_t n) {
    OVERLAPPED to        = place(at);
    DWORD      n_written = 0;
    return WriteFile(to_handle(handle), data, part(n), &n_written, &to) ? (int64_t) n_written : fail();
}

int morphkv_file::truncate(int64_t n) {
    FILE_END_OF_FILE_INFO info{};
    info.EndOfFile.QuadPart = n;
    return SetFileInformationByHandle(to_handle(handle), FileEndOfFileInfo, &info, sizeof(info)) ? 0 : fail();
}

int morphkv_file::flush() {
    return FlushFileBuffers(to_handle(handle)) ? 0 : fail();
}

morphkv_file_map::~morphkv_file_map() {
    if (bytes) {
        UnmapViewOfFile(bytes);
    }
}

int morphkv_file_map::open(const morphkv_file & file, size_t n) {
    const HANDLE map = CreateFileMappingW(to_handle(file.handle), nullptr, PAGE_READONLY, 0, 0, nullptr);
    if (!map) {
        return fail();
    }
    bytes         = (const char *) MapViewOfFile(map, FILE_MAP_READ, 0, 0, n);
    n_bytes       = n;
    const int res = bytes ? 0 : fail();
    CloseHandle(map);  // the view keeps it
    return res;
}

#endif
