#include "core/archive.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

static int64_t count_pages(const morphkv_page_layout & layout, uint64_t max_bytes) {
    if (max_bytes == 0) {
        return 0;
    }
    uint64_t page_bytes = layout.page_bytes;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        page_bytes += layout.index_bytes(il);
    }
    return std::max<uint64_t>(1, max_bytes / page_bytes);
}

morphkv_archive::morphkv_archive(const morphkv_page_layout & layout, std::unique_ptr<morphkv_page_store> store,
                                 uint64_t max_bytes)
    : layout(layout),
      store(std::move(store)),
      n_max_pages(count_pages(layout, max_bytes)),
      places({ 0, n_max_pages }),
      tail(layout.page_bytes) {
    find_pages();
}

//
// what another process left
//

bool morphkv_archive::are_right(const morphkv_archive_header & header, const morphkv_page_places & places) const {
    for (int64_t i = header.dropped; i < header.n_full(); ++i) {
        const int64_t i_page = store->record_in(places.of(i)).i_page;
        // killed between a page and the header, the oldest place has a newer page
        if (i_page != i && !(places.n_ring > 0 && i == header.dropped && i_page == header.n_full())) {
            return false;
        }
    }
    return true;
}

void morphkv_archive::find_pages() {
    const auto             found  = store->found();
    morphkv_archive_header header = found.archive;
    header.n_tokens               = header.n_full() * N_PAGE;
    if (header.n_tokens == 0) {
        return;
    }
    std::vector<morphkv_page_places> possible = { found.places };
    if (found.places.i_first == 0 && found.places.n_ring == 0) {
        // older versions did not say
        possible.push_back({ header.dropped, 0 });
        possible.push_back({ 0, n_max_pages });
        possible.push_back({ 0, header.n_full() - header.dropped });
    }
    const auto right =
        std::find_if(possible.begin(), possible.end(), [&](const auto & p) { return are_right(header, p); });
    if (right == possible.end()) {
        throw std::runtime_error("the archive is truncated: pages of it are missing");
    }
    places = *right;
    if (header.dropped == header.n_full()) {
        places.i_first = header.dropped;  // no page is anywhere
    }
    if (header.dropped < header.n_full() && store->record_in(places.of(header.dropped)).i_page != header.dropped) {
        header.dropped++;
    }
    // Written with another max_bytes, pages stay where they are until a new text begins.
    const int64_t n_used = header.n_full() - places.i_first;
    if (places.n_ring == 0 || n_used <= places.n_ring) {
        places.n_ring = n_max_pages > 0 ? std::max(n_max_pages, n_used) : 0;
    }
    if (n_most() > 0) {
        header.dropped = std::max(header.dropped, header.n_full() - n_most());
    }
    for (int64_t i = header.dropped; i < header.n_full(); ++i) {
        const size_t i_place = places.of(i);
        const auto   record  = store->record_in(i_place);
        const auto   page    = record.is_lost ? nullptr : store->get(i_place, i, record.hash);
        reserve_places(i_place + 1);
        index_page(i_place, page.get());
        hashes[i_place] = record.hash;
        if (!page) {
            damaged.insert(i);
        }
    }
    held = header;
    reserve_places(n_places());
}

// Pages; 0 = no limit.
int64_t morphkv_archive::n_most() const {
    return n_max_pages > 0 && places.n_ring > 0 ? std::min(n_max_pages, places.n_ring) : places.n_ring;
}

//
// what can fail
//

std::string morphkv_archive::why_stopped() const {
    std::lock_guard lock(mutex);
    return stopped;
}

void morphkv_archive::stop(const std::string & why) noexcept {
    std::lock_guard lock(mutex);
    if (stopped.empty()) {
        stopped = why;
        news += (news.empty() ? "" : "; ") + ("it grows no more: " + why);
    }
}

std::string morphkv_archive::take_news() const {
    std::lock_guard lock(mutex);
    return std::exchange(news, {});
}

template <typename F> void morphkv_archive::try_to(F && f) noexcept {
    try {
        f();
    } catch (const std::bad_alloc &) {
        stop("out of memory");
    } catch (const std::exception & err) {
        stop(err.what());
    }
}

morphkv_archive::page_ptr morphkv_archive::find_page(int64_t i_page) const noexcept {
    if (is_damaged(i_page)) {
        return nullptr;
    }
    try {
        return store->get(places.of(i_page), i_page, hash_of(i_page));
    } catch (const std::bad_alloc &) {
        note_damage(i_page, "out of memory");
    } catch (const std::exception & err) {
        note_damage(i_page, err.what());
    }
    return nullptr;
}

void morphkv_archive::note_damage(int64_t i_page, const char * why) const noexcept {
    const bool is_first = damaged.empty();
    damaged.insert(i_page);
    if (is_first) {
        std::lock_guard lock(mutex);
        news +=
            (news.empty() ? "" : "; ") +
            ("tokens " + std::to_string(serial_of(i_page)) + " to " + std::to_string(serial_of(i_page) + N_PAGE - 1) +
             " cannot be read and are not recalled (of more like them the statistics tell): " + why);
    }
}

// The store must know what is held before anything is put over what it held.
void morphkv_archive::commit() {
    is_committed = false;
    store->commit(held, places);
    is_committed = true;
}

void morphkv_archive::set_held(const morphkv_archive_header & header) {
    held        = header;
    held.newest = held.n_full() > held.dropped ? hash_of(held.n_full() - 1) : 0;
    damaged.erase(damaged.begin(), damaged.lower_bound(held.dropped));
    damaged.erase(damaged.lower_bound(held.n_full()), damaged.end());
}

//
// what is appended
//

void morphkv_archive::append(int32_t first, int32_t n, const rows & rows) noexcept {
    if (!why_stopped().empty()) {
        return;
    }
    if (held.first < 0) {
        held.first = first;
    }
    GGML_ASSERT(first == end());

    auto append_token = [&](int32_t i) {
        const size_t i_row = held.n_tokens % N_PAGE;
        for (size_t il = 0; il < layout.layers.size(); ++il) {
            const auto & layer = layout.layers[il];
            const size_t nk = layout.k_bytes(il), nv = layout.v_bytes(il);
            memcpy(tail.data() + layer.k_at + i_row * nk, rows.k[il].data() + i * nk, nk);
            if (nv > 0) {
                memcpy(tail.data() + layer.v_at + i_row * nv, rows.v[il].data() + i * nv, nv);
            }
        }
        if (i_row + 1 < N_PAGE) {
            held.n_tokens++;
            return;
        }
        store_page({ std::make_shared<const morphkv_page>(tail), 0 });
        clear_tail_behind(0);
        commit();
    };
    try_to([&] {
        for (int32_t i = 0; i < n; ++i) {
            append_token(i);
        }
    });
    // an archive without a token begins nowhere
    if (held.n_tokens == 0) {
        held.first = -1;
    }
}

void morphkv_archive::store_page(const saved_page & page, const morphkv_archive * same) {
    const int64_t i_page  = n_full();
    const size_t  i_place = places.of(i_page);
    auto          header  = held;
    reserve_places(i_place + 1);
    if (n_most() > 0 && i_page - header.dropped >= n_most()) {
        header.dropped = i_page + 1 - n_most();
        set_held(header);
    }
    const uint64_t hash = page.page && page.hash == 0 ? morphkv_hash_page(*page.page) : page.hash;
    store->put(i_place, i_page, hash, page.page);
    if (page.page && same) {
        for (size_t il = 0; il < layout.layers.size(); ++il) {
            const size_t n = layout.index_bytes(il);
            memcpy((char *) index_rows(il) + i_place * n,
                   (const char *) same->index_rows(il) + same->places.of(i_page) * n, n);
        }
    } else {
        index_page(i_place, page.page.get());
    }
    hashes[i_place] = hash;
    header.n_tokens = (i_page + 1) * N_PAGE;
    set_held(header);
    if (!page.page) {
        damaged.insert(i_page);
    }
}

//
// what is taken back
//

void morphkv_archive::truncate(int32_t serial) noexcept {
    if (serial >= end()) {
        return;
    }
    const int64_t n      = serial - held.first;
    const int64_t i_page = n / N_PAGE;
    if (n <= 0 || i_page < held.dropped) {
        clear();
        return;
    }
    auto header     = held;
    header.n_tokens = n;
    if (i_page < n_full() && n % N_PAGE != 0) {
        if (const auto page = find_page(i_page)) {
            tail = *page;
        } else {
            header.n_tokens = i_page * N_PAGE;
            stop("the page that would have to be appended to cannot be read");
        }
    }
    if (header.n_tokens == 0) {
        header = {};
    }
    set_held(header);
    clear_tail_behind(held.n_tokens % N_PAGE);
    try_to([&] { commit(); });
}

void morphkv_archive::clear_tail_behind(size_t n_rows) {
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        const auto & layer = layout.layers[il];
        const size_t nk = layout.k_bytes(il), nv = layout.v_bytes(il);
        memset(tail.data() + layer.k_at + n_rows * nk, 0, (N_PAGE - n_rows) * nk);
        memset(tail.data() + layer.v_at + n_rows * nv, 0, (N_PAGE - n_rows) * nv);
    }
}

void morphkv_archive::clear() noexcept {
    {
        std::lock_guard lock(mutex);
        stopped.clear();
    }
    if (held.first < 0 && is_committed) {
        return;
    }
    held   = {};
    places = { 0, n_max_pages };
    clear_tail_behind(0);
    hashes.clear();
    damaged.clear();
    try_to([&] { commit(); });
}

bool morphkv_archive::go_back(const morphkv_archive_header & header, const morphkv_page & old_tail) noexcept {
    const int64_t n_full_then = header.n_full();
    const bool    is_same     = header.first == held.first && n_full_then >= held.dropped && n_full_then <= n_full() &&
                                (n_full_then == held.dropped || hash_of(n_full_then - 1) == header.newest);
    if (!is_same) {
        clear();
        return false;
    }
    auto then    = header;
    then.dropped = held.dropped;
    set_held(then);
    std::copy(old_tail.begin(), old_tail.end(), tail.begin());
    try_to([&] { commit(); });
    return true;
}

size_t morphkv_archive::n_bytes() const {
    return n_places() * layout.page_bytes + index_bytes;
}

//
// copies and states
//

// Anew, with pages from header.dropped on to come. Throws.
void morphkv_archive::begin(const morphkv_archive_header & header) {
    clear();
    if (!is_committed) {
        throw std::runtime_error(why_stopped());
    }
    held.first     = header.first;
    held.dropped   = header.dropped;
    held.n_tokens  = header.dropped * N_PAGE;
    places.i_first = header.dropped;
}

void morphkv_archive::set_tail(const morphkv_archive_header & header, morphkv_page page) {
    tail          = std::move(page);
    held.first    = header.first;
    held.n_tokens = header.n_tokens;
    commit();
}

void morphkv_archive::copy(const morphkv_archive & other) noexcept {
    try_to([&] {
        begin(other.held);
        for (int64_t i = other.n_dropped(); i < other.n_full(); ++i) {
            // pages never change: nothing of one is looked at
            store_page({ other.find_page(i), other.hash_of(i) }, &other);
        }
        set_tail(other.held, other.tail);
        if (const std::string why = other.why_stopped(); !why.empty()) {
            stop(why);
        }
    });
    if (held.n_tokens == 0) {
        held = {};
    }
}

void morphkv_archive::load(const morphkv_archive_header & header, std::vector<saved_page> pages,
                           morphkv_page page) noexcept {
    try_to([&] {
        begin(header);
        for (const auto & saved : pages) {
            store_page(saved);
        }
        set_tail(header, std::move(page));
    });
    if (held.n_tokens == 0) {
        held = {};
    }
}
