// What a recall brings pages from: the text's own archive, and attached files of texts that were read before (knowledge.h).
//
// Pages have one numbering, and tokens one order: own ones as the archive has them, those of files before them, below 0, one file
// behind the other. So what is attached comes before the text, as if that had begun with it. No attached token has serial -1,
// which is that of none.
#pragma once

#include "core/archive.h"
#include "core/knowledge.h"

#include <cstdint>
#include <memory>
#include <vector>

using morphkv_attached = std::vector<std::shared_ptr<const morphkv_knowledge>>;

class morphkv_sources {
public:
    static constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;
    static constexpr int64_t NONE   = INT64_MIN;  // no page

    morphkv_sources(const morphkv_archive & own, const morphkv_attached & attached = {});
    // null: there is no archive
    morphkv_sources(const morphkv_archive * own);

    // Pages [first, end) of a file, or of the archive.
    struct source {
        int64_t                   first, end;
        const morphkv_knowledge * file;  // null: the archive
    };

    const std::vector<source> & all() const { return sources; }  // files first
    bool                        has_archive() const { return archive != nullptr; }
    const morphkv_archive &     own() const { return *archive; }
    int64_t                     n_attached() const { return n_attached_pages; }
    int64_t                     n_pages() const;

    // The source of a page, or all().size().
    size_t  source_of(int64_t page) const;
    bool    holds(int64_t page) const { return source_of(page) < sources.size(); }
    // Serial of its first token.
    int32_t serial_of(int64_t page) const;
    // Where a token is, also where that is not held; NONE where no page can have it.
    int64_t page_of(int32_t serial) const;

    bool                      is_damaged(int64_t page) const;
    morphkv_archive::page_ptr find_page(int64_t page) const;

    // Serial of the oldest attached token; 0 where there is none.
    static int32_t first_serial(int64_t n_attached_pages) {
        return n_attached_pages > 0 ? -(n_attached_pages + 1) * N_PAGE : 0;
    }

private:
    const morphkv_archive * archive;
    std::vector<source>     sources;
    int64_t                 n_attached_pages = 0;
};
