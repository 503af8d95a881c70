#include "morphkv-counts.h"

#include <ostream>
#include <string>

void morphkv_counts::add(const morphkv_counts & other) {
    is_on = is_on || other.is_on;
    n_evictions += other.n_evictions;
    n_evicted += other.n_evicted;
    n_rebases += other.n_rebases;
    n_kept = other.is_on ? other.n_kept : n_kept;
    evict_ms += other.evict_ms;
    has_archive = has_archive || other.has_archive;
    n_recalls += other.n_recalls;
    n_recalled += other.n_recalled;
    n_reread += other.n_reread;
    recall_ms += other.recall_ms;
    for (const auto & [path, n] : other.n_from) {
        n_from[path] += n;
    }
    n_media += other.n_media;
    n_media_tokens += other.n_media_tokens;
    n_loaded += other.n_loaded;
    n_restored += other.n_restored;
    if (!other.warning.empty()) {
        warning = other.warning;
    }
}

void morphkv_counts::write_timings(common_json & timings) const {
    if (is_on) {
        timings["evictions_n"] = n_evictions;
        timings["evicted_n"]   = n_evicted;
        timings["evict_ms"]    = evict_ms;
        timings["kept_n"]      = n_kept;
    }
    if (has_archive) {
        timings["recalls_n"]  = n_recalls;
        timings["recalled_n"] = n_recalled;
        timings["recall_ms"]  = recall_ms;
    }
    for (const auto & [path, n] : n_from) {
        timings["recalled_from"][path] = n;
    }
    if (n_reread > 0) {
        timings["reread_n"] = n_reread;
    }
    if (n_media > 0) {
        timings["media_n"]        = n_media;
        timings["media_tokens_n"] = n_media_tokens;
    }
    if (n_loaded > 0) {
        timings["loaded_n"] = n_loaded;
    }
    if (n_restored > 0) {
        timings["restored_n"] = n_restored;
    }
    if (!warning.empty()) {
        timings["warning"] = warning;
    }
}

void morphkv_metrics::write_prometheus(std::ostream & out) const {
    if (!counts.is_on) {
        return;
    }
    auto write = [&](const char * name, const char * type, const char * help, const auto & value) {
        const std::string full = std::string("llamacpp:morphkv_") + name;
        out << "# HELP " << full << " " << help << "\n# TYPE " << full << " " << type << "\n"
            << full << " " << value << "\n";
    };
    write("evictions_total", "counter", "Number of evictions", counts.n_evictions);
    write("evicted_tokens_total", "counter", "Number of tokens evicted per KV head", counts.n_evicted);
    write("eviction_seconds_total", "counter", "Total time spent in evictions", counts.evict_ms / 1e3);
    write("rebases_total", "counter", "Number of times that a slot's rotary positions were rebased", counts.n_rebases);
    write("cells", "gauge", "Number of cells allocated, all slots", n_cells);
    write("cells_used", "gauge", "Number of cells in use, all slots", n_used);
    write("kv_bytes", "gauge", "Bytes of K and V, all slots", kv_bytes);
    write("extra_bytes", "gauge", "Bytes beside K and V, all slots", extra_bytes);
    if (has_chats) {
        write("chats", "gauge", "Number of chats on disk", n_chats);
        write("chat_bytes", "gauge", "Bytes of chats on disk", chat_bytes);
        write("chats_written_total", "counter", "Number of times that a chat was written to disk", n_written);
        write("chats_failed_total", "counter", "Number of times that a chat could not be written", n_failed);
        write("loaded_tokens_total", "counter", "Number of tokens of prompts that came from disk", counts.n_loaded);
    }
    if (!counts.has_archive) {
        return;
    }
    write("archived_tokens", "gauge", "Number of tokens in archives, all slots", n_archived);
    write("archive_bytes", "gauge", "Bytes of archives, all slots", archive_bytes);
    write("restored_tokens_total", "counter", "Number of tokens of prompts that came back by the archive",
          counts.n_restored);
    write("recalls_total", "counter", "Number of recalls", counts.n_recalls);
    write("recalled_tokens_total", "counter", "Number of tokens recalled, summed over layers and KV heads",
          counts.n_recalled);
    write("recall_seconds_total", "counter", "Total time spent in recalls", counts.recall_ms / 1e3);
}
