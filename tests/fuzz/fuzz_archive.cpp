// A fuzzer of archives' files: whatever bytes a file has, it is opened or refused, and then read, written and recalled from,
// while it changes beneath the archive or its disk fails.
//
//   input    byte 0   what the rest is, and the archive (struct recipe)
//            byte 1   what is done with it
//            rest     the file, or its header's numbers and its places

#include "fuzz_archive_context.h"
#include "fuzz_archive_file.h"
#include "fuzz_target.h"

#include "morphkv-testing.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

const size_t fuzz_n_recipe = 2;

namespace {

constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

//
// inputs
//

enum class next { READ, APPEND, TRUNCATE, COPY, GO_BACK, ALL, FAULT, CONTEXT };

struct recipe {
    fuzz_form content;
    int       i_layout;
    int       i_limit;
    bool      is_damaged;  // while it is open
    next      then;
    int32_t   n;           // 0..31, for what is done
};

recipe read_recipe(const uint8_t * data) {
    recipe res;
    res.content    = fuzz_form(data[0] & 3);
    res.i_layout   = (data[0] >> 2 & 3) % N_LAYOUTS;
    res.i_limit    = data[0] >> 4 & 3;
    res.is_damaged = data[0] >> 6 & 1;
    res.then       = next(data[1] & 7);
    res.n          = data[1] >> 3;
    return res;
}

bytes write_recipe(const recipe & r) {
    return { uint8_t(int(r.content) | r.i_layout << 2 | r.i_limit << 4 | r.is_damaged << 6),
             uint8_t(int(r.then) | r.n << 3) };
}

// of 0 (none), 1, 2 and 4 pages
uint64_t max_bytes(const recipe & r) {
    return r.i_limit == 0 ? 0 : uint64_t(fuzz_page_bytes(fuzz_layout(r.i_layout))) << (r.i_limit - 1);
}

//
// archives
//

std::unique_ptr<morphkv_archive> open_file(const recipe & r) {
    const auto & layout = fuzz_layout(r.i_layout);
    return std::make_unique<morphkv_archive>(layout, morphkv_page_store_file(fuzz_file().path, layout), max_bytes(r));
}

morphkv_archive::rows some_rows(const morphkv_page_layout & layout, int32_t n, uint32_t seed) {
    std::mt19937          rng(seed);
    morphkv_archive::rows res;
    auto                  make = [&](size_t n_bytes) {
        std::vector<uint8_t> row(n_bytes);
        for (auto & x : row) {
            x = rng() % 64;  // small values of any type
        }
        return row;
    };
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        res.k.push_back(make(n * layout.k_bytes(il)));
        res.v.push_back(make(n * layout.v_bytes(il)));
    }
    return res;
}

void append_some(morphkv_archive & archive, int32_t n, uint32_t seed) {
    archive.append(std::max(0, archive.end()), n, some_rows(archive.layout, n, seed));
}

void check_is_sound(const morphkv_archive & archive) {
    CHECK(archive.get_header().why_not().empty());
    CHECK(archive.n_dropped() >= 0 && archive.n_dropped() <= archive.n_full());
    CHECK(archive.get_tail().size() == archive.layout.page_bytes);
    for (int64_t i = archive.n_dropped(); i < archive.n_full(); ++i) {
        const auto page = archive.find_page(i);
        CHECK(page ? morphkv_hash_page(*page) == archive.hash_of(i) : archive.is_damaged(i));
    }
    std::vector<bool> has(archive.n_full() - archive.n_dropped());
    for (int64_t i = 0; i < archive.n_places(); ++i) {
        const int64_t i_page = archive.page_in(i);
        if (i_page >= 0) {
            CHECK(i_page >= archive.n_dropped() && i_page < archive.n_full() && !has[i_page - archive.n_dropped()]);
            has[i_page - archive.n_dropped()] = true;
        }
    }
    CHECK(std::find(has.begin(), has.end(), false) == has.end());
    if (archive.n_places() > 0) {
        for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
            const auto * index = (const uint8_t *) archive.index_rows(il);
            const size_t n     = archive.n_places() * archive.layout.index_bytes(il);
            // AddressSanitizer shall see all of it
            const bytes  copy(index, index + n);
            CHECK(!copy.empty());
        }
    }
}

void work(morphkv_archive & archive, const recipe & r) {
    const auto    before = archive.get_header();
    const auto    tail   = archive.get_tail();
    const int32_t middle = archive.end() - archive.n_held() * r.n / 31;
    auto          copy   = [&] {
        morphkv_archive other(archive.layout, morphkv_page_store_ram(), max_bytes(r));
        other.copy(archive);
        check_is_sound(other);
        append_some(other, r.n, 7);
        archive.copy(other);
    };
    switch (r.then) {
        case next::APPEND:
            append_some(archive, 1 + 3 * r.n, 1);
            break;
        case next::TRUNCATE:
            archive.truncate(middle);
            append_some(archive, 1 + r.n, 2);
            break;
        case next::COPY:
            copy();
            break;
        case next::GO_BACK:
            append_some(archive, 1 + 2 * r.n, 3);
            CHECK(archive.go_back(before, tail) ? archive.end() == before.end() : archive.end() == -1);
            break;
        case next::FAULT:
        case next::ALL:
            append_some(archive, 1 + r.n, 4);
            check_is_sound(archive);
            archive.truncate(middle);
            archive.go_back(before, tail);
            copy();
            archive.truncate(middle);
            append_some(archive, 40, 5);
            check_is_sound(archive);
            archive.clear();
            append_some(archive, 20, 6);
            break;
        default:
            break;
    }
    check_is_sound(archive);
}

// Opened once more, a file that nobody has damaged holds the same.
void check_reopens(const recipe & r, const morphkv_archive_header & held, const std::vector<uint64_t> & hashes) {
    const auto again = open_file(r);
    check_is_sound(*again);
    CHECK(again->n_full() == held.n_full() && again->n_dropped() == (held.n_full() > 0 ? held.dropped : 0));
    for (int64_t i = again->n_dropped(); i < again->n_full(); ++i) {
        CHECK(again->hash_of(i) == hashes[i - held.dropped]);
        CHECK(again->serial_of(i) == held.first + i * N_PAGE);
    }
}

void run(const recipe & r) {
    std::unique_ptr<morphkv_archive> archive;
    const bytes                      content = fuzz_file().read();
    try {
        archive = open_file(r);
    } catch (const std::exception & err) {
        CHECK(err.what()[0] != 0);
        CHECK(fuzz_file().read() == content);
        g_fuzz_counts["refused"]++;
        return;
    }
    g_fuzz_counts["loaded"]++;
    g_fuzz_counts["pages found"] += archive->n_full() - archive->n_dropped();
    check_is_sound(*archive);
    if (r.is_damaged) {
        fuzz_file().damage(r.n);
        g_fuzz_counts["damaged while open"]++;
    }
    if (r.then == next::FAULT) {
        static const int32_t errors[] = { EIO, ENOSPC, EINTR, ENOMEM };
        morphkv_testing_fail_store(1 + r.n, errors[r.n % 4]);
    }
    work(*archive, r);
    morphkv_testing_fail_store(0, 0);

    const bool            has_stopped = !archive->why_stopped().empty();
    const auto            held        = archive->get_header();
    std::vector<uint64_t> hashes;
    for (int64_t i = held.dropped; i < held.n_full(); ++i) {
        hashes.push_back(archive->hash_of(i));
    }
    const bool is_sure = !has_stopped && !r.is_damaged && archive->n_damaged() == 0;
    g_fuzz_counts["stopped"] += has_stopped;
    archive.reset();
    if (is_sure) {
        check_reopens(r, held, hashes);
        return;
    }
    try {
        check_is_sound(*open_file(r));
    } catch (const std::exception &) {
        g_fuzz_counts["refused afterwards"]++;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_report_at_exit();
    if (size < 2) {
        return 0;
    }
    const recipe r = read_recipe(data);
    if (r.then == next::CONTEXT) {
        // several hundred times as slow: seldom, but for seeds, which no mutation is as short as
        if (size < 8 || data[2] % 64 == 0) {
            fuzz_run_context(r.content, r.i_limit, r.is_damaged, data[0] >> 7 | (size & 15) << 1, data + 2, size - 2);
        }
        return 0;
    }
    fuzz_file().write(fuzz_make_file(r.content, fuzz_layout(r.i_layout), data + 2, size - 2));
    run(r);
    return 0;
}

void fuzz_write_corpus(const std::string & folder) {
    int n_seeds = 0;
    for (int i_limit = 0; i_limit < 4; ++i_limit) {
        for (int i_layout = 0; i_layout < N_LAYOUTS; ++i_layout) {
            const recipe r = { fuzz_form(n_seeds % 4), i_layout, i_limit, i_layout == 0, next(n_seeds % 7), 20 };
            fuzz_file().write({});
            append_some(*open_file(r), 16 * 3 + 5 * i_limit, 1);
            bytes       out  = write_recipe(r);
            const bytes file = fuzz_file().read();
            const bytes rest = r.content == fuzz_form::VERBATIM ? file : fuzz_without_padding(file);
            append(out, rest.data(), rest.size());
            fuzz_write_seed(folder, n_seeds++, out);
        }
        // no change; see fuzz_archive_context.cpp
        bytes         out    = write_recipe({ fuzz_form(i_limit), 0, i_limit, i_limit % 2 > 0, next::CONTEXT, 0 });
        const uint8_t edit[] = { 0xf1, 0x02, 0x7c, 0x07 };
        append(out, edit, sizeof(edit));
        fuzz_write_seed(folder, n_seeds++, out);
    }
}
