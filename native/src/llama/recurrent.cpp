#include "llama/recurrent.h"

#include "llama/state.h"

#include <stdexcept>
#include <string>

// Behind llama.cpp's part, which has no checksum: its file reader gives less than was asked for without a word.
static constexpr uint64_t END_MARK = 0x444e45524b56484d;

static void require(bool ok, const char * rule, int64_t value) {
    if (!ok) {
        throw std::runtime_error("the state is damaged: " + std::string(rule) + ", got " + std::to_string(value));
    }
}

// Keeps what it reads.
class morphkv_recurrent_state::reader {
public:
    reader(llama_io_read_i & io, std::vector<uint8_t> & bytes) : io(io), bytes(bytes) {}

    template <typename T> T read() {
        T value{};
        io.read(&value, sizeof(value));
        const auto * data = (const uint8_t *) &value;
        bytes.insert(bytes.end(), data, data + sizeof(value));
        return value;
    }

    // Positions and sequences of the cells.
    uint32_t read_cells(uint32_t n_max, bool is_whole, const std::vector<llama_pos> & newest) {
        const auto n_cells = read<uint32_t>();
        require(n_cells <= (is_whole ? n_max : 1), "a sequence has one recurrent state", n_cells);
        std::vector<bool> has_cell(newest.size());
        for (uint32_t i = 0; i < n_cells; ++i) {
            const auto pos   = read<llama_pos>();
            const auto n_ids = read<uint32_t>();
            require(is_whole ? n_ids > 0 && n_ids <= newest.size() : n_ids == 0,
                    "a recurrent state is of some sequences", n_ids);
            llama_seq_id before = -1;
            for (uint32_t j = 0; j < (is_whole ? n_ids : 1); ++j) {
                const llama_seq_id id = is_whole ? read<llama_seq_id>() : 0;
                require(id > before && (size_t) id < newest.size() && !has_cell[id],
                        "a recurrent state names each sequence once, in order", id);
                require(pos >= 0 && pos == newest[id], "recurrent layers have the same newest token", pos);
                has_cell[id] = true;
                before       = id;
            }
        }
        for (size_t i = 0; i < newest.size(); ++i) {
            require(has_cell[i] == (newest[i] >= 0), "a sequence that is not empty has a recurrent state", newest[i]);
        }
        return n_cells;
    }

    // has_type: as llama.cpp writes it
    void read_rows(const ggml_tensor * t, bool has_type, uint32_t n_cells, bool on_device) {
        if (!t) {
            return;
        }
        const auto type = has_type ? read<int32_t>() : (int32_t) t->type;
        require(type == t->type, "recurrent states have this context's type", type);
        const auto row_bytes = read<uint64_t>();
        require(row_bytes == t->nb[1], "recurrent states have this model's size", row_bytes);
        const size_t n_bytes = on_device ? 0 : n_cells * t->nb[1];
        if (n_bytes > 0) {
            bytes.resize(bytes.size() + n_bytes);
            io.read(&bytes[bytes.size() - n_bytes], n_bytes);
        }
    }

private:
    llama_io_read_i &      io;
    std::vector<uint8_t> & bytes;
};

class morphkv_recurrent_state::replay : public morphkv_buffer_reader {
public:
    explicit replay(const morphkv_recurrent_state & state)
        : morphkv_buffer_reader(state.bytes.data(), state.bytes.size()),
          device(state.device) {}

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        if (device) {
            device->read_tensor(tensor, offset, size);
        } else {
            morphkv_buffer_reader::read_tensor(tensor, offset, size);
        }
    }

private:
    llama_io_read_i * device;
};

void morphkv_recurrent_state::write(llama_io_write_i & io, const llama_memory_recurrent & memory, llama_seq_id seq_id,
                                    llama_state_seq_flags flags) {
    memory.state_write(io, seq_id, flags);
    io.write(&END_MARK, sizeof(END_MARK));
}

morphkv_recurrent_state::morphkv_recurrent_state(llama_io_read_i & io, const llama_memory_recurrent & memory,
                                                 llama_seq_id seq_id, llama_state_seq_flags flags,
                                                 const std::vector<llama_pos> & newest, bool has_end)
    : seq_id(seq_id),
      flags(flags) {
    const bool on_device = flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
    device               = on_device ? &io : nullptr;

    reader     in(io, bytes);
    const auto n_cells       = in.read_cells(memory.size, seq_id < 0, newest);
    const auto is_transposed = in.read<uint32_t>();
    require(is_transposed == 0, "recurrent states are not transposed", is_transposed);
    const auto n_layer = in.read<uint32_t>();
    require(n_layer == memory.r_l.size(), "recurrent states are of this model's layers", n_layer);
    for (uint32_t il = 0; il < n_layer; ++il) {
        in.read_rows(memory.r_l[il], /*has_type =*/true, n_cells, on_device);
        if (memory.r_l[il]) {
            in.read_rows(memory.p_l[il], /*has_type =*/false, n_cells, on_device);
        }
    }
    for (const ggml_tensor * t : memory.s_l) {
        in.read_rows(t, /*has_type =*/true, n_cells, on_device);
    }

    uint64_t mark = 0;
    if (has_end) {
        io.read(&mark, sizeof(mark));
    }
    if (has_end && mark != END_MARK) {
        throw std::runtime_error("the state is damaged or truncated: its recurrent part has no end");
    }
}

void morphkv_recurrent_state::apply(llama_memory_recurrent & memory) const noexcept {
    replay io(*this);
    memory.state_read(io, seq_id, flags);
    io.apply();
}
