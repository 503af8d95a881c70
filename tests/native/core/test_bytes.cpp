// Hashes, aligned memory, and the names of types: what the rest of core takes for granted.

#include "case.h"

#include "core/aligned.h"
#include "core/hash.h"
#include "core/types.h"

#include <memory>
#include <set>
#include <vector>

template <typename T> static uint64_t hash_of(const std::string & text) {
    T res;
    res.add(text.data(), text.size());
    if constexpr (std::is_same_v<T, morphkv_byte_hash>) {
        return res.value;
    } else {
        return res.get();
    }
}

TEST_CASE(the_hash_of_bytes_is_fnv_1a) {
    // test vectors of its authors
    CHECK(hash_of<morphkv_byte_hash>("") == 0xcbf29ce484222325);
    CHECK(hash_of<morphkv_byte_hash>("a") == 0xaf63dc4c8601ec8c);
    CHECK(hash_of<morphkv_byte_hash>("foobar") == 0x85944171f73967e8);
}

TEST_CASE(a_hash_of_bytes_goes_on_where_it_was) {
    morphkv_byte_hash hash;
    hash.add("foo", 3);
    hash.add("bar", 3);
    CHECK(hash.value == hash_of<morphkv_byte_hash>("foobar"));
}

TEST_CASE(the_hash_of_words_sees_every_bit_and_byte) {
    std::string        text = "eleven byte";
    std::set<uint64_t> seen = { hash_of<morphkv_word_hash>(text) };
    for (size_t bit = 0; bit < 8 * text.size(); ++bit) {
        text[bit / 8] ^= 1 << bit % 8;
        CHECK(seen.insert(hash_of<morphkv_word_hash>(text)).second);
        text[bit / 8] ^= 1 << bit % 8;
    }
}

TEST_CASE(the_hash_of_words_depends_on_their_order) {
    CHECK(hash_of<morphkv_word_hash>("01234567abcdefgh") != hash_of<morphkv_word_hash>("abcdefgh01234567"));
}

TEST_CASE(the_hash_of_words_is_never_0) {
    for (uint64_t word = 0; word < 1000; ++word) {
        morphkv_word_hash hash;
        hash.add(word);
        CHECK(hash.get() != 0);
    }
}

TEST_CASE(memory_is_aligned_as_tensors_want_it) {
    for (size_t n = 0; n < 200; n += 7) {
        const std::unique_ptr<char[], morphkv_free_aligned> memory((char *) morphkv_malloc_aligned(n));
        CHECK(memory && (uintptr_t) memory.get() % 64 == 0);
        std::fill_n(memory.get(), n, 'x');
    }
}

TEST_CASE(no_memory_is_freed_as_none) {
    morphkv_free_aligned()(nullptr);
}

TEST_CASE(six_types_are_those_of_rows) {
    CHECK(morphkv_row_type_names() == "f32, f16, bf16, q8_0, q5_0, q4_0");
    CHECK(morphkv_is_row_type(GGML_TYPE_F32) && morphkv_is_row_type(GGML_TYPE_Q4_0));
    CHECK(!morphkv_is_row_type(GGML_TYPE_Q4_K) && !morphkv_is_row_type(GGML_TYPE_I32));
}
