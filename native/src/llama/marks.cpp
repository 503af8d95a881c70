#include "llama/marks.h"

bool morphkv_marks::set(llama_seq_id seq_id, int32_t n) {
    drop(seq_id);
    if (n == 0 || memory.rs_idx.at(seq_id) != 0) {
        return false;
    }
    memory.seq_cp(seq_id, id_of(seq_id), -1, -1);
    n_tokens[seq_id] = n;
    return true;
}

void morphkv_marks::drop(llama_seq_id seq_id) {
    memory.seq_rm(id_of(seq_id), -1, -1);
    n_tokens.at(seq_id) = 0;
}

void morphkv_marks::go_back(llama_seq_id seq_id) {
    memory.seq_rm(seq_id, -1, -1);
    memory.seq_cp(id_of(seq_id), seq_id, -1, -1);
}

void morphkv_marks::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst) {
    drop(seq_id_dst);
    if (at(seq_id_src) > 0) {
        memory.seq_cp(id_of(seq_id_src), id_of(seq_id_dst), -1, -1);
        n_tokens[seq_id_dst] = n_tokens[seq_id_src];
    }
}

size_t morphkv_marks::n_bytes() const {
    size_t res = 0;
    for (const auto & [_, n] : memory.memory_breakdown()) {
        res += n;
    }
    return res * n_tokens.size() / memory.size;
}

morphkv_marks::hidden::hidden(const morphkv_marks & marks) : memory(marks.memory), cells(marks.memory.cells) {
    const llama_seq_id n_seq = marks.n_tokens.size();
    for (auto & cell : memory.cells) {
        cell.seq_id.erase(cell.seq_id.lower_bound(n_seq), cell.seq_id.end());
    }
}

morphkv_marks::hidden::~hidden() {
    memory.cells = cells;
}
