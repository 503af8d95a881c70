#include "device/kernels.h"

#include "core/types.h"
#include "device/selftest.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

namespace {

int32_t kernels_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return MORPHKV_KERNELS_TYPE_F32;
        case GGML_TYPE_F16:
            return MORPHKV_KERNELS_TYPE_F16;
        case GGML_TYPE_BF16:
            return MORPHKV_KERNELS_TYPE_BF16;
        case GGML_TYPE_Q8_0:
            return MORPHKV_KERNELS_TYPE_Q8_0;
        case GGML_TYPE_Q5_0:
            return MORPHKV_KERNELS_TYPE_Q5_0;
        case GGML_TYPE_Q4_0:
            return MORPHKV_KERNELS_TYPE_Q4_0;
        default:
            return -1;
    }
}

// Bytes of a head's part of a row; 0 where heads begin inside of a block.
size_t head_bytes(const ggml_tensor * t, int32_t n_head_kv) {
    const int64_t n_embd = t->ne[0] / n_head_kv;
    return n_embd % ggml_blck_size(t->type) == 0 ? ggml_row_size(t->type, n_embd) : 0;
}

// Where a stream's rows begin on the device.
template <typename T> T * stream_of(const ggml_tensor * t, uint32_t i_stream) {
    return t ? (T *) ((char *) t->data + i_stream * t->nb[2]) : nullptr;
}

morphkv_kernels_layer as_layer(const morphkv_side_layer & layer, uint32_t i_stream, int32_t i_cut) {
    morphkv_kernels_layer res{};
    res.i_cut          = i_cut;
    res.type_k         = kernels_type(layer.k->type);
    res.k              = stream_of<void>(layer.k, i_stream);
    res.v              = stream_of<void>(layer.v, i_stream);
    res.ring           = stream_of<void>(layer.ring, i_stream);
    res.serial         = stream_of<int32_t>(layer.serial, i_stream);
    res.score          = stream_of<float>(layer.score, i_stream);
    res.sinks          = layer.sinks ? (const float *) layer.sinks->data : nullptr;
    res.k_row_bytes    = layer.k->nb[1];
    res.v_row_bytes    = layer.v ? layer.v->nb[1] : 0;
    res.ring_row_bytes = layer.ring->nb[1];
    res.k_head_bytes   = head_bytes(layer.k, layer.n_head_kv);
    res.v_head_bytes   = layer.v ? head_bytes(layer.v, layer.n_head_kv) : 0;
    res.n_head_kv      = layer.n_head_kv;
    res.n_group        = layer.n_head / layer.n_head_kv;
    res.n_readers      = layer.n_readers();
    res.n_embd_head    = layer.k->ne[0] / layer.n_head_kv;
    res.scale          = layer.kq_scale;
    res.softcap        = layer.softcap;
    return res;
}

morphkv_kernels_cut as_cut(const morphkv_eviction & eviction) {
    const auto & s = eviction.shape;
    const auto & p = eviction.policy;
    return { s.n_keep,
             s.n_distant,
             s.n_grad,
             s.n_window,
             s.n_votes,
             p.policy == MORPHKV_POLICY_COMMITTEES,
             p.fusion == MORPHKV_FUSION_MAX,
             p.carried,
             eviction.vote_rows.data(),
             eviction.graduates.data() };
}

// Weights may be on another device than the cache of their layer.
bool is_beside(const ggml_tensor * a, const ggml_tensor * b) {
    return a->buffer && ggml_backend_buffer_is_host(a->buffer) == ggml_backend_buffer_is_host(b->buffer) &&
           ggml_backend_buft_get_device(ggml_backend_buffer_get_type(a->buffer)) ==
               ggml_backend_buft_get_device(ggml_backend_buffer_get_type(b->buffer));
}

ggml_backend_dev_t device_of(const morphkv_side_layer & layer) {
    ggml_backend_dev_t res = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(layer.k->buffer));
    // plain memory names none
    return res ? res : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// A layer of few cells that is like this one, for the check.
morphkv_selftest_case case_like(const morphkv_side_layer & layer, const morphkv_eviction & eviction) {
    morphkv_selftest_case res{};
    res.type        = layer.k->type;
    res.n_embd_head = layer.k->ne[0] / layer.n_head_kv;
    res.n_head_kv   = std::min(layer.n_head_kv, 2);
    res.n_group     = layer.n_head / layer.n_head_kv;
    res.n_readers   = layer.n_readers();
    res.softcap     = layer.softcap;
    res.shape       = { 4, 500, 200, 32, std::min(eviction.shape.n_votes, 32) };
    res.policy      = eviction.policy;
    return res;
}

// What is known of libraries on devices. Asked by any context.
struct {
    std::mutex            mutex;
    std::set<std::string> off;      // by path and device
    std::set<std::string> checked;  // and by kind of layer
} known;

std::string name_of(const morphkv_kernels_library & library, ggml_backend_dev_t dev) {
    return library.path + " on " + ggml_backend_dev_name(dev);
}

void switch_off(const morphkv_kernels_library & library, ggml_backend_dev_t dev, const std::string & why) {
    const std::string name = name_of(library, dev);
    if (known.off.insert(name).second) {
        morphkv_kernels_log(GGML_LOG_LEVEL_WARN,
                            name + " is switched off, evictions are ggml's operations there: " + why);
    }
}

// Why it is not right, or "".
std::string compare(const morphkv_kernels_library & library, ggml_backend_dev_t dev, const morphkv_selftest_case & c) {
    try {
        const ggml_backend_ptr backend(morphkv_selftest_start(dev));
        const auto             by_graph = morphkv_selftest_compute(c, backend.get());
        if (!by_graph.unsupported.empty()) {
            return "the graph to compare with cannot run: " + by_graph.unsupported;
        }
        return morphkv_selftest_compare(c, by_graph, morphkv_selftest_compute(c, backend.get(), &library)).reason;
    } catch (const std::exception & err) {
        return err.what();
    }
}

// Whether a device cuts like the graph, which is asked once for each kind of layer.
bool is_right(const morphkv_kernels_library & library, ggml_backend_dev_t dev, const morphkv_selftest_case & c) {
    const std::lock_guard<std::mutex> lock(known.mutex);
    const std::string                 name = name_of(library, dev);
    if (library.is_unchecked) {
        return !known.off.count(name);
    }
    const std::string kind = std::string(ggml_type_name(c.type)) + ", " + c.describe();
    if (known.off.count(name) || !known.checked.insert(name + " " + kind).second) {
        return !known.off.count(name);
    }
    const std::string why = compare(library, dev, c);
    if (!why.empty()) {
        switch_off(library, dev, kind + ": " + why);
    } else {
        morphkv_kernels_log(GGML_LOG_LEVEL_INFO, "evictions by " + name + " (" + kind + ")");
    }
    return why.empty();
}

// Null where the graph has to do it.
const morphkv_kernels_library * library_for(const morphkv_side_layer & layer, const morphkv_eviction & eviction) {
    ggml_backend_dev_t dev     = device_of(layer);
    const auto *       library = morphkv_kernels_library_for(dev);
    if (!library || !morphkv_kernels_support(layer, eviction) ||
        ggml_backend_buffer_is_host(layer.k->buffer) != (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU)) {
        return nullptr;
    }
    return is_right(*library, dev, case_like(layer, eviction)) ? library : nullptr;
}

}  // namespace

bool morphkv_kernels_support(const morphkv_side_layer & layer, const morphkv_eviction & eviction) {
    const auto policy = eviction.policy.policy;
    const bool votes =
        policy == MORPHKV_POLICY_MORPHKV || policy == MORPHKV_POLICY_H2O || policy == MORPHKV_POLICY_COMMITTEES;
    return votes && eviction.shape.n_votes > 0 && kernels_type(layer.k->type) >= 0 &&
           head_bytes(layer.k, layer.n_head_kv) > 0 && (!layer.v || head_bytes(layer.v, layer.n_head_kv) > 0) &&
           (!layer.sinks || (layer.n_readers() == 1 && is_beside(layer.sinks, layer.k)));
}

size_t morphkv_kernels_bytes_beside(const std::vector<const std::vector<morphkv_side_layer> *> & layers) {
    size_t                       res = 0;
    std::set<ggml_backend_dev_t> seen;
    for (const auto * of_group : layers) {
        for (const auto & layer : *of_group) {
            ggml_backend_dev_t dev     = device_of(layer);
            const auto *       library = seen.insert(dev).second ? morphkv_kernels_library_for(dev) : nullptr;
            res += library ? library->n_bytes(layer.k->data) : 0;
        }
    }
    return res;
}

std::string morphkv_cut_by_kernels(const morphkv_kernels_library &          library,
                                   const std::vector<morphkv_kernels_job> & jobs, bool * has_changed) {
    std::vector<morphkv_kernels_cut>   cuts;
    std::vector<morphkv_kernels_layer> layers;
    for (const auto & job : jobs) {
        for (const auto & layer : *job.layers) {
            layers.push_back(as_layer(layer, job.i_stream, cuts.size()));
        }
        cuts.push_back(as_cut(*job.eviction));
    }
    if (layers.empty()) {
        return "";
    }
    int32_t      changed = false;
    const char * why     = library.run(cuts.data(), layers.data(), layers.size(), &changed);
    *has_changed         = changed != 0;
    return why ? why : "";
}

std::string morphkv_run_kernels(morphkv_runner & runner, const std::vector<morphkv_kernels_job> & jobs,
                                std::vector<std::vector<morphkv_side_layer>> & left) {
    // by device, and its library
    struct part {
        const morphkv_kernels_library *              library;
        std::vector<std::vector<morphkv_side_layer>> layers;  // by job
    };
    std::map<ggml_backend_dev_t, part> parts;
    left.assign(jobs.size(), {});
    for (size_t i = 0; i < jobs.size(); ++i) {
        for (const auto & layer : *jobs[i].layers) {
            const auto * library = runner.check_only ? nullptr : library_for(layer, *jobs[i].eviction);
            if (!library) {
                left[i].push_back(layer);
                continue;
            }
            part & cur  = parts[device_of(layer)];
            cur.library = library;
            cur.layers.resize(jobs.size());
            cur.layers[i].push_back(layer);
        }
    }
    if (parts.empty()) {
        return "";
    }
    // decodes, and cuts by the graph, run on streams of ggml's
    runner.synchronize();
    for (const auto & [dev, cur] : parts) {
        if (runner.inject_failure && runner.inject_failure(morphkv_runner::step::ALLOC)) {
            return ggml_status_to_string(GGML_STATUS_ALLOC_FAILED);
        }
        std::vector<morphkv_kernels_job> of_device;
        for (size_t i = 0; i < jobs.size(); ++i) {
            of_device.push_back({ &cur.layers[i], jobs[i].i_stream, jobs[i].eviction });
        }
        bool        has_changed = false;
        std::string why         = morphkv_cut_by_kernels(*cur.library, of_device, &has_changed);
        runner.has_changed |= has_changed;
        if (!why.empty() && !has_changed) {
            // too little memory, say
            const std::lock_guard<std::mutex> lock(known.mutex);
            switch_off(*cur.library, dev, why);
            for (size_t i = 0; i < jobs.size(); ++i) {
                left[i].insert(left[i].end(), cur.layers[i].begin(), cur.layers[i].end());
            }
            continue;
        }
        if (why.empty() && runner.inject_failure && runner.inject_failure(morphkv_runner::step::COMPUTE)) {
            why = ggml_status_to_string(GGML_STATUS_FAILED);
        }
        if (!why.empty()) {
            return std::string(ggml_backend_dev_name(dev)) + ": " + why;
        }
    }
    return "";
}
