// Pieces of tokens as JSON can hold them.
#pragma once

#include <string>
#include <vector>

struct llama_vocab;

// Text of n tokens from `first` on, valid UTF-8 whatever their bytes: a character that lies in several tokens is in the last of
// them, and what is no character is U+FFFD. In an image "".
std::vector<std::string> morphkv_pieces(const llama_vocab * vocab, const std::vector<int32_t> & tokens, size_t first,
                                        size_t n);

// Takes the whole characters from the front of `bytes`, what is no character as U+FFFD; one that may go on stays there.
std::string morphkv_take_utf8(std::string & bytes);
