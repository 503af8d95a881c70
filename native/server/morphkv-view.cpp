#include "morphkv-view.h"

#include "morphkv-values.h"
#include "server-context.h"

#include <functional>
#include <sstream>

void morphkv_view::start(const morphkv_common_params & given, llama_context * ctx, int32_t n_slots) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        this->given       = given;
        this->ctx         = ctx;
        total.is_on       = true;
        total.has_archive = !given.archive.empty();
        stats.assign(n_slots, {});
        stopped.assign(n_slots, "");
    }
    look_at_all();
}

void morphkv_view::look_at(int32_t id_slot) {
    morphkv_stats seen{};
    seen.size = sizeof(seen);
    morphkv_stats_get(ctx, id_slot, &seen);
    const std::string why = given.archive.empty() ? "" : morphkv_archive_why_stopped(ctx, id_slot);

    std::lock_guard<std::mutex> lock(mutex);
    stats[id_slot]   = seen;
    stopped[id_slot] = why;
}

void morphkv_view::look_at_all() {
    for (size_t i = 0; i < stats.size(); ++i) {
        look_at(i);
    }
}

void morphkv_view::count(const morphkv_counts & cost) {
    std::lock_guard<std::mutex> lock(mutex);
    total.add(cost);
}

void morphkv_view::tell(const morphkv_chosen & now) {
    std::lock_guard<std::mutex> lock(mutex);
    chosen = now;
}

void morphkv_view::tell(const morphkv_chats::counts & now) {
    std::lock_guard<std::mutex> lock(mutex);
    chats = now;
}

//
// the routes
//

using handler = server_http_context::handler_t;

static void extend(handler & route, const std::function<void(std::string &)> & add) {
    route = [inner = std::move(route), add](const server_http_req & req) {
        server_http_res_ptr res = inner(req);
        // none where the client has gone
        if (res->status == 200 && !res->data.empty()) {
            add(res->data);
        }
        return res;
    };
}

static std::function<void(std::string &)> edit(const std::function<void(json &)> & add) {
    return [add](std::string & data) {
        json content = json::parse(data);
        add(content);
        data = safe_json_to_str(content);
    };
}

void morphkv_view::join(server_routes & routes) {
    extend(routes.get_props, edit([this](json & props) { add_to_props(props); }));
    extend(routes.get_slots, edit([this](json & slots) {
               for (size_t i = 0; i < slots.size(); ++i) {
                   add_to_slot(slots[i]);
               }
           }));
    extend(routes.get_metrics, [this](std::string & data) {
        std::ostringstream more;
        write_metrics(more);
        data += more.str();
    });
}

void morphkv_view::add_to_props(json & props) const {
    std::lock_guard<std::mutex> lock(mutex);
    const morphkv_params &      params = given.params;
    props["morphkv"]                   = {
        { "capacity", params.capacity },
        { "min_capacity", stats.at(0).min_capacity },
        { "max_capacity", stats.at(0).max_capacity },
        { "window", params.window },
        { "protect", stats.at(0).min_capacity - stats.at(0).n_distant - params.window },
        { "votes", params.votes > 0 ? params.votes : params.window },
        { "prompt_room", params.prompt_room },
        { "interval", params.interval },
        { "fusion", params.fusion == MORPHKV_FUSION_MAX ? "max" : "sum" },
        { "policy", morphkv_policy_name(params.policy) },
        { "decay", params.decay },
        { "keep", params.keep },
        { "keep_system", given.keep_system },
        { "rope_limit", stats.at(0).rope_limit },
        { "n_cells", stats.at(0).n_cells },
        { "kv_bytes", stats.at(0).kv_bytes },
        { "extra_bytes", stats.at(0).extra_bytes },
        { "ctx_checkpoints", chosen.n_checkpoints },
        { "checkpoint_min_step", chosen.checkpoint_min_step },
        { "cache_ram_mib", chosen.cache_ram_mib },
    };
    if (!given.archive.empty()) {
        json & to             = props["morphkv"];
        to["archive"]         = given.archive;
        to["archive_type"]    = chosen.archive_type;
        to["archive_max_mib"] = given.archive_max_mib;
        to["recall"]          = given.recalls;
        to["recall_share"]    = given.recall_share;
        to["restore"]         = given.restores;
        to["attached"]        = given.attached;
    }
    if (!g_morphkv_states.dir.empty()) {
        json & to           = props["morphkv"];
        to["state_dir"]     = g_morphkv_states.dir;
        to["state_max_mib"] = g_morphkv_states.max_mib;
        to["chats"]         = chats.n_files;
        to["chat_bytes"]    = chats.n_bytes;
    }
}

void morphkv_view::add_to_slot(json & slot) const {
    std::lock_guard<std::mutex> lock(mutex);
    const int32_t               id_slot = slot.at("id").get<int32_t>();
    const morphkv_stats &       s       = stats.at(id_slot);

    slot["morphkv"] = {
        { "capacity", s.capacity },         { "keep", s.keep },
        { "n_cells", s.n_cells },           { "n_used", s.n_used },
        { "n_evictions", s.n_evictions },   { "n_evicted", s.n_evicted },
        { "evict_ms", s.seq_evict_ms },     { "logical_pos", s.logical_pos },
        { "complete_pos", s.complete_pos }, { "exact_pos", s.exact_pos },
        { "mark_pos", s.mark_pos },         { "rotary_offset", s.rotary_offset },
        { "n_rebases", s.n_rebases },
    };
    if (!given.archive.empty()) {
        json & to               = slot["morphkv"];
        to["n_archived"]        = s.n_archived;
        to["n_archive_lost"]    = s.n_archive_lost;
        to["n_archive_damaged"] = s.n_archive_damaged;
        to["archive_stopped"]   = stopped.at(id_slot);  // why, or empty
        to["n_recalls"]         = s.n_recalls;
        to["n_recalled"]        = s.n_recalled;
        to["recall_ms"]         = s.recall_ms;
    }
}

void morphkv_view::write_metrics(std::ostream & out) const {
    std::lock_guard<std::mutex> lock(mutex);
    morphkv_metrics             res;
    res.counts     = total;
    res.has_chats  = !g_morphkv_states.dir.empty();
    res.n_chats    = chats.n_files;
    res.chat_bytes = chats.n_bytes;
    res.n_written  = chats.n_written;
    res.n_failed   = chats.n_failed;
    for (const morphkv_stats & s : stats) {
        res.n_cells += s.n_cells;
        res.n_used += s.n_used;
        res.n_archived += s.n_archived;
        // each tells these of all slots
        res.kv_bytes      = s.kv_bytes;
        res.extra_bytes   = s.extra_bytes;
        res.archive_bytes = s.archive_bytes;
    }
    res.write_prometheus(out);
}
