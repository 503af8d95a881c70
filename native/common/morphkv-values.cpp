#include "morphkv-values.h"

#include "morphkv.h"
#include "nlohmann/json.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>

float morphkv_to_float(const std::string & text) {
    char *      end   = nullptr;
    const float value = std::strtof(text.c_str(), &end);
    if (text.empty() || *end) {
        throw std::invalid_argument("expected a number, got '" + text + "'");
    }
    return value;
}

int32_t morphkv_to_fusion(const std::string & text) {
    if (text == "sum") {
        return MORPHKV_FUSION_SUM;
    }
    if (text == "max") {
        return MORPHKV_FUSION_MAX;
    }
    throw std::invalid_argument("fusion must be sum or max, got '" + text + "'");
}

static const char * const POLICIES[] = { "morphkv", "recency", "random", "committees", "h2o" };  // by morphkv_policy

int32_t morphkv_to_policy(const std::string & text) {
    const auto it = std::find(std::begin(POLICIES), std::end(POLICIES), text);
    if (it == std::end(POLICIES)) {
        throw std::invalid_argument("policy must be morphkv, committees, h2o, recency or random, got '" + text + "'");
    }
    return it - std::begin(POLICIES);
}

std::string morphkv_policy_name(int32_t policy) {
    return POLICIES[policy];
}

int32_t morphkv_to_recall_interval(const std::string & text) {
    if (text == "off" || text == "prompt" || text == "auto") {
        return 0;
    }
    char *     end   = nullptr;
    const long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || value < 1 || value > std::numeric_limits<int32_t>::max()) {
        throw std::invalid_argument("recall must be auto, prompt, off or a number above 0, got '" + text + "'");
    }
    return value;
}

// The layers that keep more, by a profile that `morphkv profile` wrote.
std::vector<uint16_t> morphkv_read_large_layers(const std::string & path) {
    const std::string what = "layers must be equal or the file of a profile, got '" + path + "'";
    if (path == "auto") {
        throw std::invalid_argument(
            "layers auto is for `morphkv serve`, which finds the profile of a model: here it is "
            "equal or the file of a profile");
    }
    std::ifstream file(path);
    if (!file) {
        throw std::invalid_argument(what);
    }
    try {
        const auto profile = nlohmann::json::parse(file);
        if (profile.at("morphkv_profile") != 1) {
            throw std::invalid_argument(what + ": its format must be 1");
        }
        const auto res = profile.at("large").get<std::vector<uint16_t>>();
        if (res.size() > MORPHKV_LARGE_MAX) {
            throw std::invalid_argument(what + ": of more than " + std::to_string(MORPHKV_LARGE_MAX) + " large layers");
        }
        return res;
    } catch (const nlohmann::json::exception & err) {
        throw std::invalid_argument(what + ": " + err.what());
    }
}
