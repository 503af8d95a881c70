// Full pages of an archive, for hosts that keep them: each as a record of its hash and its bytes.

#include "core/params.h"
#include "llama/memory.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

static constexpr size_t N_HASH = sizeof(uint64_t);

static void require_pages(bool ok, const std::string & rule) {
    if (!ok) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, rule);
    }
}

morphkv_page_range morphkv_cache::pages_of(llama_seq_id seq_id) const {
    if (!archives) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "pages are those of an archive, and there is none");
    }
    const auto &       archive = archives->of(seq_id);
    morphkv_page_range res{};
    res.size         = sizeof(res);
    res.first        = archive.n_dropped();
    res.end          = archive.n_full();
    res.first_token  = archive.get_header().first;
    res.record_bytes = N_HASH + archive.layout.page_bytes;
    return res;
}

void morphkv_cache::get_pages(llama_seq_id seq_id, int64_t first, int64_t n, char * records) const {
    const morphkv_page_range all = pages_of(seq_id);
    require_pages(first >= all.first && n >= 0 && n <= all.end - first,
                  "pages must be in " + std::to_string(all.first) + ".." + std::to_string(all.end) + ", got " +
                      std::to_string(n) + " from " + std::to_string(first));
    const auto & archive = archives->of(seq_id);
    for (int64_t i = first; i < first + n; ++i, records += all.record_bytes) {
        const uint64_t hash = archive.hash_of(i);
        const auto     page = archive.find_page(i);
        memcpy(records, &hash, N_HASH);
        if (page) {
            memcpy(records + N_HASH, page->data(), page->size());
        } else {
            memset(records + N_HASH, 0, all.record_bytes - N_HASH);
        }
    }
}

void morphkv_cache::set_pages(llama_seq_id seq_id, const morphkv_page_range & pages, const char * records) {
    const morphkv_page_range own = pages_of(seq_id);
    require_pages(pages.record_bytes == own.record_bytes, "record_bytes must be " + std::to_string(own.record_bytes) +
                                                              ", got " + std::to_string(pages.record_bytes));
    require_pages(sequences[seq_id].text.n_tokens() == 0, "pages are given to a sequence without tokens");
    require_pages(pages.first >= 0 && pages.first < pages.end, "there must be a page");

    std::vector<morphkv_archive::saved_page> saved;
    morphkv_archive_header                   header;
    for (int64_t i = pages.first; i < pages.end; ++i, records += own.record_bytes) {
        uint64_t hash = 0;
        memcpy(&hash, records, N_HASH);
        auto page = std::make_shared<morphkv_page>(records + N_HASH, records + own.record_bytes);
        if (morphkv_hash_page(*page) != hash) {
            page.reset();
        }
        saved.push_back({ std::move(page), hash });
        header.newest = hash;
    }
    header.first          = pages.first_token;
    header.dropped        = pages.first;
    header.n_tokens       = pages.end * morphkv_archive::N_PAGE;
    const std::string why = header.why_not();
    require_pages(why.empty(), why);

    auto & archive = archives->of(seq_id);
    archive.load(header, std::move(saved), morphkv_page(archive.layout.page_bytes));
}
