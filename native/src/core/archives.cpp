#include "core/archives.h"

#include <chrono>
#include <stdexcept>

morphkv_staging::morphkv_staging(const morphkv_page_layout & layout, int32_t n_tokens, ggml_type type_k,
                                 ggml_type type_v)
    : n_tokens(n_tokens),
      type_k(type_k),
      type_v(type_v) {
    auto room_for = [&](ggml_type type, int64_t n_row) {
        const size_t at = n_bytes;
        n_bytes += GGML_PAD(n_tokens * ggml_row_size(type, n_row), 64);
        return at;
    };
    for (const auto & layer : layout.layers) {
        const size_t k_at = room_for(type_k, layer.n_head_kv * layer.n_embd_k);
        layers.push_back({ k_at, room_for(type_v, layer.n_head_kv * layer.n_embd_v) });
    }
}

morphkv_archives::morphkv_archives(std::vector<std::unique_ptr<morphkv_archive>> all, const morphkv_staging & staging,
                                   alloc_fn alloc, tell_fn tell, bool has_thread)
    : staging(staging),
      all(std::move(all)),
      alloc(std::move(alloc)),
      tell_user(std::move(tell)),
      has_thread(has_thread) {}

morphkv_archives::~morphkv_archives() {
    wait();
}

morphkv_archive & morphkv_archives::of(int32_t i_text) const {
    wait();
    return *all.at(i_text);
}

void morphkv_archives::wait() const {
    if (running.valid()) {
        running.get();
    }
    tell();
}

void morphkv_archives::tell() const {
    for (size_t s = 0; s < all.size(); ++s) {
        const std::string news = all[s]->take_news();
        if (!news.empty()) {
            tell_user(s, news);
        }
    }
}

void morphkv_archives::stop(int32_t i_text, const std::string & why) {
    of(i_text).stop(why);
    tell();
}

char * morphkv_archives::free_rows() {
    auto & free = rows[i_free];
    if (!free) {
        free = alloc(staging.n_bytes);
        if (!free) {
            throw std::runtime_error("no memory for " + std::to_string(staging.n_bytes) + " bytes on their way");
        }
    }
    return free.get();
}

// Into an archive that has not stopped.
static void append_rows(morphkv_archive & archive, const morphkv_staging & staging, const char * data, int32_t first,
                        int32_t n) {
    const auto &          layout = archive.layout;
    morphkv_archive::rows rows;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        const auto & layer = layout.layers[il];
        rows.k.emplace_back(n * layout.k_bytes(il));
        rows.v.emplace_back(n * layout.v_bytes(il));
        morphkv_convert_rows(staging.type_k, data + staging.layers[il].k_at, layout.type_k, rows.k[il].data(),
                             n * layer.n_head_kv, layer.n_embd_k);
        morphkv_convert_rows(staging.type_v, data + staging.layers[il].v_at, layout.type_v, rows.v[il].data(),
                             n * layer.n_head_kv, layer.n_embd_v);
    }
    archive.append(first, n, rows);
}

static morphkv_archives::counts counts_of(const morphkv_archive & archive) {
    return { archive.n_held(), archive.n_dropped() * morphkv_archive::N_PAGE, archive.n_damaged(), archive.n_bytes() };
}

void morphkv_archives::append(int32_t i_text, int32_t first, int32_t n) noexcept {
    auto & archive = of(i_text);
    if (!archive.why_stopped().empty()) {
        return;
    }
    const char * data = free_rows();
    auto         work = [this, &archive, data, first, n] {
        try {
            append_rows(archive, staging, data, first, n);
        } catch (const std::exception & err) {
            archive.stop(err.what());
        }
    };
    if (has_thread) {
        try {
            before.clear();
            for (const auto & one : all) {
                before.push_back(counts_of(*one));
            }
            running = std::async(std::launch::async, work);
            i_free  = 1 - i_free;
            return;
        } catch (const std::exception &) {
            // no thread to be had
        }
    }
    work();
    tell();
}

morphkv_archives::counts morphkv_archives::count(int32_t i_text) const {
    if (running.valid()) {
        if (running.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
            return before[i_text];
        }
        wait();
    }
    tell();
    return counts_of(*all.at(i_text));
}

size_t morphkv_archives::n_bytes() const {
    size_t res = 0;
    for (size_t s = 0; s < all.size(); ++s) {
        res += count(s).n_bytes;
    }
    return res;
}

size_t morphkv_archives::n_staged_bytes() const {
    size_t res = 0;
    for (const auto & buffer : rows) {
        res += buffer ? staging.n_bytes : 0;
    }
    return res;
}
