#include "morphkv-chats.h"

#include "log.h"
#include "server-common.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <random>

namespace fs = std::filesystem;

// To evaluate fewer tokens costs less than to read a state.
static constexpr int32_t N_APART = 64;
// Tokens at a prompt's end that belong to its answer: "<|im_start|>assistant\n<think>\n".
static constexpr int32_t N_BEGIN = 16;

static constexpr const char * EXTENSION = ".chat";

struct morphkv_chats::entry {
    fs::path          path;
    morphkv_chat_head head;
    server_tokens     tokens;

    // First tokens of a prompt that need not be evaluated with state i, of the n_same that it shares with the text.
    int32_t n_saved(size_t i, int32_t n_same, int32_t n_prompt) const {
        const auto &  part = head.parts[i];
        const int32_t n    = std::min(n_same, n_prompt - 1);
        if (part.n_tokens <= n) {
            return part.n_tokens;
        }
        // its tail is taken back, as llama-server does it with a window of one token
        return n > 0 && part.pos_min < tokens.pos_next(n) - 1 ? n : 0;
    }
};

morphkv_chats::morphkv_chats() = default;

morphkv_chats::~morphkv_chats() = default;

morphkv_chats::found::found() = default;

morphkv_chats::found::found(found &&) = default;

morphkv_chats::found::~found() = default;

//
// the folder
//

static std::string prepare_folder(const fs::path & dir) {
    std::error_code ec;
    fs::create_directories(dir, ec);
    const fs::path probe = dir / "probe.tmp";
    std::ofstream(probe) << "x";
    if (!fs::is_regular_file(probe, ec)) {
        return "--morphkv-state-dir must be a folder that can be written, got " + dir.u8string();
    }
    fs::remove(probe, ec);
    for (const auto & file : morphkv_chat_files(dir, ".tmp")) {
        // of a server that was killed, unless another one is just writing it
        if (fs::file_time_type::clock::now() - file.used > std::chrono::minutes(10)) {
            fs::remove(file.path, ec);
        }
    }
    return "";
}

std::string morphkv_chats::start(const std::string & folder, uint64_t limit, const std::string & own, bool has_media) {
    wait();
    const fs::path    path = fs::u8path(folder);
    const std::string why  = prepare_folder(path);
    if (!why.empty()) {
        return why;
    }
    dir       = path;
    max_bytes = limit;
    settings  = own;
    entries.clear();
    of_slot.clear();
    pages           = {};
    counted.n_files = counted.n_bytes = 0;

    for (const auto & file : morphkv_chat_files(dir, ".pages")) {
        // of a chat that is gone, unless another server is just writing it
        std::error_code ec;
        if (!fs::exists(fs::path(file.path).replace_extension(EXTENSION), ec) &&
            fs::file_time_type::clock::now() - file.used > std::chrono::minutes(10)) {
            fs::remove(file.path, ec);
        }
    }
    int32_t n_others = 0, n_damaged = 0;
    for (const auto & file : morphkv_chat_files(dir, EXTENSION)) {
        counted.n_files++;
        counted.n_bytes += file.n_bytes + morphkv_pages_bytes(file.path);
        try {
            auto one  = std::make_unique<entry>();
            one->path = file.path;
            one->head = morphkv_chat_read_head(file.path);
            if (one->head.settings != settings) {
                n_others++;
                continue;
            }
            one->tokens = server_tokens::deserialize(one->head.tokens, has_media);
            entries.push_back(std::move(one));
        } catch (const std::exception &) {
            n_damaged++;
        }
    }
    LOG_INF("MorphKV: %d chats of %s can go on (%.1f MiB with all that is there)\n", (int) entries.size(),
            folder.c_str(), counted.n_bytes / 1048576.0);
    if (n_others + n_damaged > 0) {
        LOG_WRN("MorphKV: files of %s are ignored: %d of another model or other settings, %d damaged\n", folder.c_str(),
                n_others, n_damaged);
    }
    return "";
}

morphkv_chats::entry * morphkv_chats::find_entry(const fs::path & path) {
    const auto it = std::find_if(entries.begin(), entries.end(), [&](const auto & one) { return one->path == path; });
    return it == entries.end() ? nullptr : it->get();
}

void morphkv_chats::forget(const fs::path & path) {
    entries.erase(std::remove_if(entries.begin(), entries.end(), [&](const auto & one) { return one->path == path; }),
                  entries.end());
}

//
// writing
//

void morphkv_chats::wait() {
    if (!running.valid()) {
        return;
    }
    const written done = running.get();
    if (!done.why_no_pages.empty()) {
        pages.forget(pending->path);
    }
    if (done.why_not.empty()) {
        has_warned = false;
        counted.n_written++;
        counted.n_files = done.n_files;
        counted.n_bytes = done.n_bytes;
        forget(fs::path(pending->path));
        entries.push_back(std::move(pending));
    } else {
        counted.n_failed++;
        if (!has_warned) {
            LOG_WRN("MorphKV: a chat could not be kept in %s: %s (told once; the server goes on)\n",
                    dir.u8string().c_str(), done.why_not.c_str());
            has_warned = true;
        }
        pending.reset();
    }
    if (!done.why_no_pages.empty() && !has_warned) {
        LOG_WRN("MorphKV: an archive could not be kept in %s: %s (told once; the server goes on)\n",
                dir.u8string().c_str(), done.why_no_pages.c_str());
        has_warned = true;
    }
    for (const auto & path : done.removed) {
        forget(path);
        pages.forget(path);
    }
}

morphkv_chats::counts morphkv_chats::count_now() {
    if (running.valid() && running.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
        wait();
    }
    return counted;
}

void morphkv_chats::refuse(int32_t id_slot) {
    forget(fs::path(of_slot.at(id_slot)));
    of_slot[id_slot].clear();
}

fs::path morphkv_chats::choose_path(int32_t id_slot, const server_tokens & tokens) {
    if (of_slot.size() <= (size_t) id_slot) {
        of_slot.resize(id_slot + 1);
    }
    const entry * own = find_entry(of_slot[id_slot]);
    if (!own || (int32_t) own->tokens.get_common_prefix(tokens) < own->head.n_prompt - N_BEGIN) {
        static std::mt19937_64 random(std::random_device{}());
        of_slot[id_slot] = dir / (string_format("%016llx", (unsigned long long) random()) + EXTENSION);
    }
    return of_slot[id_slot];
}

static void remove_chat(const fs::path & path) {
    std::error_code ec;
    fs::remove(path, ec);
    fs::remove(morphkv_pages_path(path), ec);
}

// Removes the least recently used until the rest fits.
static void trim(const fs::path & dir, uint64_t max_bytes, std::vector<fs::path> & removed, int64_t & n_files,
                 int64_t & n_bytes) {
    const auto files = morphkv_chat_files(dir, EXTENSION);
    n_files          = files.size();
    for (const auto & file : files) {
        n_bytes += file.n_bytes + morphkv_pages_bytes(file.path);
    }
    for (const auto & file : files) {
        if (max_bytes == 0 || (uint64_t) n_bytes <= max_bytes) {
            return;
        }
        n_bytes -= file.n_bytes + morphkv_pages_bytes(file.path);
        remove_chat(file.path);
        removed.push_back(file.path);
        n_files--;
    }
}

void morphkv_chats::save(int32_t id_slot, const server_tokens & tokens, int32_t n_prompt,
                         std::vector<morphkv_chat_state> states, llama_context * ctx) {
    wait();
    const std::vector<char>  bytes = tokens.serialize();
    std::vector<llama_token> packed(bytes.size() / sizeof(llama_token));
    memcpy(packed.data(), bytes.data(), packed.size() * sizeof(llama_token));

    pending         = std::make_unique<entry>();
    pending->path   = choose_path(id_slot, tokens);
    pending->tokens = tokens.clone();
    pending->head   = { settings, std::move(packed), n_prompt, morphkv_chat_parts(states) };

    // chats that this one goes on from
    std::vector<fs::path> old;
    for (const auto & one : entries) {
        if (one->path != pending->path && one->tokens.get_common_prefix(tokens) == one->tokens.size()) {
            old.push_back(one->path);
        }
    }
    auto more = ctx ? pages.next(ctx, id_slot, pending->path) : morphkv_page_files::update{};
    running =
        std::async(std::launch::async, [path = pending->path, head = pending->head, dir = dir, max_bytes = max_bytes,
                                        old = std::move(old), states = std::move(states), more = std::move(more)] {
            written res;
            // first: a state without its pages is worth less than pages without their state
            res.why_no_pages = more.write();
            res.why_not      = morphkv_chat_write(path, head, states);
            if (!res.why_not.empty()) {
                return res;
            }
            for (const auto & one : old) {
                remove_chat(one);
                res.removed.push_back(one);
            }
            trim(dir, max_bytes, res.removed, res.n_files, res.n_bytes);
            if (std::find(res.removed.begin(), res.removed.end(), path) != res.removed.end()) {
                res.why_not = "it is larger than --morphkv-state-max";
            }
            return res;
        });
}

//
// reading
//

morphkv_chats::found morphkv_chats::find(int32_t id_slot, const server_tokens & prompt, int32_t n_past) {
    wait();
    for (;;) {
        found   res;
        entry * best   = nullptr;
        int32_t n_best = n_past + N_APART;
        for (const auto & one : entries) {
            const int32_t n_same = one->tokens.get_common_prefix(prompt);
            for (size_t i = 0; i < one->head.parts.size(); ++i) {
                const int32_t n = one->n_saved(i, n_same, prompt.size());
                if (n > n_best) {
                    best = one.get(), n_best = n, res.i_state = i;
                }
            }
        }
        if (!best) {
            return res;
        }
        try {
            res.states = morphkv_chat_read_states(best->path, best->head);
        } catch (const std::exception & err) {
            LOG_WRN("MorphKV: a chat cannot go on from %s: %s\n", best->path.u8string().c_str(), err.what());
            forget(fs::path(best->path));
            continue;
        }
        res.tokens = std::make_unique<server_tokens>(best->tokens.clone());
        res.n_past = n_best;
        counted.n_restored++;
        std::error_code ec;
        fs::last_write_time(best->path, fs::file_time_type::clock::now(), ec);
        of_slot.resize(std::max<size_t>(of_slot.size(), id_slot + 1));
        of_slot[id_slot] = best->path;
        return res;
    }
}

bool morphkv_chats::load_pages(int32_t id_slot, llama_context * ctx) {
    const fs::path & chat = of_slot.at(id_slot);
    const bool       has  = morphkv_pages_bytes(chat) > 0;
    if (has) {
        llama_memory_seq_rm(llama_get_memory(ctx), id_slot, -1, -1);
    }
    return pages.load(ctx, id_slot, chat) || has;
}
