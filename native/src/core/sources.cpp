#include "core/sources.h"

morphkv_sources::morphkv_sources(const morphkv_archive * own) : archive(own) {
    if (own) {
        sources.push_back({ own->n_dropped(), own->n_full(), nullptr });
    }
}

morphkv_sources::morphkv_sources(const morphkv_archive & own, const morphkv_attached & attached) : archive(&own) {
    for (const auto & file : attached) {
        n_attached_pages += file->n_pages();
    }
    int64_t first = -n_attached_pages;
    for (const auto & file : attached) {
        sources.push_back({ first, first + file->n_pages(), file.get() });
        first += file->n_pages();
    }
    sources.push_back({ own.n_dropped(), own.n_full(), nullptr });
}

int64_t morphkv_sources::n_pages() const {
    int64_t res = 0;
    for (const auto & source : sources) {
        res += source.end - source.first;
    }
    return res;
}

size_t morphkv_sources::source_of(int64_t page) const {
    size_t i = 0;
    while (i < sources.size() && !(page >= sources[i].first && page < sources[i].end)) {
        i++;
    }
    return i;
}

int32_t morphkv_sources::serial_of(int64_t page) const {
    return page < 0 ? (page - 1) * N_PAGE : archive->serial_of(page);
}

int64_t morphkv_sources::page_of(int32_t serial) const {
    if (serial < 0) {
        // rounded down
        const int64_t page = ((int64_t) serial + 1) / N_PAGE;
        return page < 0 && page >= -n_attached_pages ? page : NONE;
    }
    if (!archive || archive->end() < 0 || serial < archive->serial_of(0)) {
        return NONE;
    }
    return (serial - archive->serial_of(0)) / N_PAGE;
}

bool morphkv_sources::is_damaged(int64_t page) const {
    const size_t i = source_of(page);
    return i < sources.size() &&
           (sources[i].file ? sources[i].file->is_damaged(page - sources[i].first) : archive->is_damaged(page));
}

morphkv_archive::page_ptr morphkv_sources::find_page(int64_t page) const {
    const size_t i = source_of(page);
    if (i == sources.size()) {
        return nullptr;
    }
    return sources[i].file ? sources[i].file->find_page(page - sources[i].first) : archive->find_page(page);
}
