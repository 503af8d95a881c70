#include "morphkv-values.h"

#include "morphkv.h"
#include "nlohmann/json.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <regex>
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

static nlohmann::json read_profile(const std::string & path, const std::string & what) {
    std::ifstream file(path);
    if (!file) {
        throw std::invalid_argument(what);
    }
    auto res = nlohmann::json::parse(file);
    if (res.at("morphkv_profile") != 1) {
        throw std::invalid_argument(what + ": its format must be 1");
    }
    return res;
}

// The n layers with the most harm, as Profile.worst() of Python.
static std::vector<uint16_t> most_harmful(const std::vector<double> & harm, size_t n) {
    std::vector<uint16_t> res;
    for (size_t il = 0; il < harm.size(); ++il) {
        if (harm[il] > 0.0) {
            res.push_back(il);
        }
    }
    std::stable_sort(res.begin(), res.end(), [&](uint16_t a, uint16_t b) { return harm[a] > harm[b]; });
    if (n == 0 || n >= res.size()) {
        throw std::invalid_argument("layers all:N must be in 1.." + std::to_string((int) res.size() - 1) +
                                    ", fewer than are cut, got " + std::to_string(n));
    }
    res.resize(n);
    return res;
}

morphkv_large_layers morphkv_read_large_layers(const std::string & text) {
    const std::string what = "layers must be equal, the file of a profile or all:N:FILE, got '" + text + "'";
    std::smatch       all;
    std::regex_match(text, all, std::regex("all:([0-9]{1,4})(?::(.+))?"));
    if (text == "auto" || (!all.empty() && !all[2].matched)) {
        throw std::invalid_argument("layers " + text +
                                    " is for `morphkv serve`, which finds the profile of a model: here it is "
                                    "equal, the file of a profile or all:N:FILE");
    }
    morphkv_large_layers res;
    res.keeps_all = !all.empty();
    try {
        const auto profile = read_profile(res.keeps_all ? all[2].str() : text, what);
        res.layers = res.keeps_all ? most_harmful(profile.at("harm").get<std::vector<double>>(), std::stoul(all[1]))
                                   : profile.at("large").get<std::vector<uint16_t>>();
    } catch (const nlohmann::json::exception & err) {
        throw std::invalid_argument(what + ": " + err.what());
    }
    if (res.layers.size() > MORPHKV_LARGE_MAX) {
        throw std::invalid_argument(what + ": of more than " + std::to_string(MORPHKV_LARGE_MAX) + " large layers");
    }
    return res;
}
