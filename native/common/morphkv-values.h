// What the values of MorphKV's options mean. All throw std::invalid_argument with the rule and the value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

float   morphkv_to_float(const std::string & text);
int32_t morphkv_to_fusion(const std::string & text);

int32_t     morphkv_to_policy(const std::string & text);
std::string morphkv_policy_name(int32_t policy);

// 0 = none while an answer is written, but for those of "auto".
int32_t morphkv_to_recall_interval(const std::string & text);

struct morphkv_large_layers {
    std::vector<uint16_t> layers;     // those with the most harm first
    bool                  keeps_all;  // all tokens, and do not share the others' bytes
};

// By a profile that `morphkv profile` wrote: the file's path, or all:N:PATH.
morphkv_large_layers morphkv_read_large_layers(const std::string & text);
