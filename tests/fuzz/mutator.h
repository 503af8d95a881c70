// Random mutations of a corpus of inputs.
#pragma once

#include "fuzz_target.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <random>

class mutator {
public:
    mutator(uint64_t seed, const std::vector<bytes> & corpus) : rng(seed), corpus(corpus) {}

    bytes next() {
        bytes res = pick();
        for (int n = 1 + below(4); n > 0; --n) {
            mutate(res);
        }
        return res;
    }

private:
    size_t below(size_t n) { return n > 0 ? rng() % n : 0; }

    const bytes & pick() { return corpus[below(corpus.size())]; }

    void mutate(bytes & x) {
        static const int64_t integers[] = {
            0, 1, -1, 2, 255, INT32_MAX, INT32_MIN, INT32_MAX - 1, INT64_MAX, INT64_MIN
        };
        if (x.size() < 8) {
            x.resize(8);
        }
        switch (below(6)) {
            case 0:
                x[below(x.size())] ^= 1 << below(8);
                break;
            case 1:
                x[below(x.size())] = rng();
                break;
            case 2:
                x.resize(below(x.size() + 1));
                break;
            case 3: {  // the head of one, the tail of another
                const bytes & other = pick();
                x.resize(below(std::min(x.size(), other.size())) + 1);
                x.insert(x.end(), other.begin() + std::min(x.size(), other.size()), other.end());
            } break;
            case 4: {  // an integer: any, or one that is near to what is there
                const size_t size  = below(2) ? 4 : 8;
                const size_t first = fuzz_n_recipe;
                const size_t i     = x.size() < size + first ? 0 : first + below((x.size() - size - first) / 4 + 1) * 4;
                int64_t      value = integers[below(std::size(integers))];
                if (below(2)) {
                    memcpy(&value, &x[i], size);
                    value = (uint64_t) value + below(9) - 4;
                }
                memcpy(&x[i], &value, std::min(size, x.size() - i));
            } break;
            case 5:  // what is done with it
                x[below(fuzz_n_recipe)] = rng();
                break;
        }
    }

    std::mt19937_64            rng;
    const std::vector<bytes> & corpus;
};
