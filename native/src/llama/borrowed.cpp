#include "llama/borrowed.h"

#include "llama-batch.h"
#include "llama-io.h"
#include "llama-model.h"
#include "llama/batch-context.h"

#include <algorithm>

namespace {

constexpr uint32_t STATE_MARK = 0x4d4b4248;  // "MKBH"

// What graphs take the two caches from; rotary positions are those of the target.
class borrowed_context : public llama_kv_cache_iswa_context, public morphkv_context {
public:
    borrowed_context(morphkv_cache * target, std::vector<llama_ubatch> ubatches, llama_memory_context_ptr full,
                     llama_memory_context_ptr windowed)
        : llama_kv_cache_iswa_context(std::move(ubatches), std::move(full), std::move(windowed)),
          target(target) {}

    morphkv_cache *                     get_cache() const override { return target; }
    const llama_kv_cache_iswa_context * get_group(size_t) const override { return nullptr; }

private:
    morphkv_cache * target;
};

void require(bool is_right, const std::string & what) {
    if (!is_right) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED,
                            "MorphKV cannot serve a draft head that reads the target's K and V: " + what);
    }
}

}  // namespace

morphkv_borrowed::morphkv_borrowed(const llama_model & model, ggml_type type_k, ggml_type type_v, uint32_t n_seq_max,
                                   const llama_model & target_model, morphkv_cache & target)
    : target(target) {
    const auto &  hparams = model.hparams;
    const int32_t n_layer = target_model.hparams.n_layer();

    // as llama.cpp pairs them
    const int32_t il_windowed = n_layer - 2, il_full = n_layer - 1;
    require(target.n_groups() == 1,
            "the target's layers must have one capacity (layers: equal), got " + std::to_string(target.n_groups()));
    require(target.window && n_layer >= 2 && target_model.hparams.is_swa(il_windowed) &&
                !target_model.hparams.is_swa(il_full),
            "the target's last two layers must be one with a sliding window and one without, got " +
                std::to_string(n_layer) + " layers of '" + target_model.arch_name() + "'");
    require(target.get_n_stream() == n_seq_max, "both contexts must have as many sequences, got " +
                                                    std::to_string(n_seq_max) + " and " +
                                                    std::to_string(target.get_n_stream()));
    for (uint32_t s = 0; s < n_seq_max; ++s) {
        // llama.cpp empties the cells when they are shared
        require(target.seq_pos_max(s) < 0, "the target must be empty, got a text in sequence " + std::to_string(s));
    }

    auto view_of = [&](llama_kv_cache & other, bool is_swa, int32_t il_target) {
        return std::make_unique<llama_kv_cache>(
            model, hparams, type_k, type_v, /*v_trans =*/false, /*offload =*/true, /*unified =*/false, other.get_size(),
            n_seq_max, /*n_pad =*/1, is_swa ? hparams.n_swa : 0, is_swa ? hparams.swa_type : LLAMA_SWA_TYPE_NONE,
            &other, [&hparams, is_swa](int32_t il) { return hparams.is_swa(il) == is_swa; }, nullptr,
            [il_target](int32_t) { return il_target; });
    };
    full     = view_of(target, false, il_full);
    windowed = view_of(*target.window, true, il_windowed);
}

llama_memory_context_ptr morphkv_borrowed::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);
    balloc.split_reset();

    std::vector<llama_ubatch>       ubatches;
    llama_kv_cache::slot_info_vec_t sinfos;
    while (balloc.get_n_used() < balloc.get_n_tokens()) {
        auto ubatch = balloc.split_equal(n_ubatch, target.get_n_stream() > 1, 0);
        if (ubatch.n_tokens == 0) {
            return std::make_unique<llama_kv_cache_iswa_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
        }
        // which streams are read; the cells are never written
        llama_kv_cache::slot_info sinfo = { LLAMA_MAX_SEQ, 0, {}, {} };
        for (uint32_t i = 0; i < ubatch.n_seqs_unq; ++i) {
            const llama_seq_id s = ubatch.seq_id_unq[i];

            sinfo.s0 = std::min<uint32_t>(sinfo.s0, s);
            sinfo.s1 = std::max<uint32_t>(sinfo.s1, s);
            sinfo.strm.push_back(s);
            sinfo.idxs.emplace_back(ubatch.n_tokens / ubatch.n_seqs_unq, 0);
        }
        sinfos.push_back(std::move(sinfo));
        ubatches.push_back(std::move(ubatch));
    }
    auto part = [&](llama_kv_cache & cache) {
        return std::make_unique<llama_kv_cache_context>(&cache, sinfos, ubatches);
    };
    return std::make_unique<borrowed_context>(&target, ubatches, part(*full), part(*windowed));
}

llama_memory_context_ptr morphkv_borrowed::init_full() {
    auto part = [](llama_kv_cache & cache) {
        return std::make_unique<llama_kv_cache_context>(&cache);
    };
    return std::make_unique<borrowed_context>(&target, std::vector<llama_ubatch>(), part(*full), part(*windowed));
}

llama_memory_context_ptr morphkv_borrowed::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);
    return std::make_unique<llama_kv_cache_iswa_context>(LLAMA_MEMORY_STATUS_NO_UPDATE);
}

void morphkv_borrowed::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    GGML_UNUSED(seq_id);
    GGML_UNUSED(flags);
    io.write(&STATE_MARK, sizeof(STATE_MARK));
}

void morphkv_borrowed::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    GGML_UNUSED(seq_id);
    GGML_UNUSED(flags);
    uint32_t mark = 0;
    io.read(&mark, sizeof(mark));
    if (mark != STATE_MARK) {
        throw std::runtime_error("the state is of another context than draft heads that read the target's K and V");
    }
}
