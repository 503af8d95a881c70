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

// The layers that keep more, by a profile that `morphkv profile` wrote.
std::vector<uint16_t> morphkv_read_large_layers(const std::string & path);
