// Hashes of what is written to files and states: against flipped bits, not against an attacker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

// FNV-1a, 64 bits, byte by byte.
class morphkv_byte_hash {
public:
    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            value = (value ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
        }
    }

    uint64_t value = 0xcbf29ce484222325;
};

// By words, for what is large. 0 stands for "none", and is no value.
class morphkv_word_hash {
public:
    void add(uint64_t word) {
        value = (value ^ word) * 0x9e3779b97f4a7c15;
        value ^= value >> 32;
    }

    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
            uint64_t word = 0;
            memcpy(&word, (const uint8_t *) data + i, std::min(sizeof(word), size - i));
            add(word);
        }
    }

    uint64_t get() const { return value | 1; }

private:
    uint64_t value = 0xcbf29ce484222325;
};
