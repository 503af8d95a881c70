// Points that recurrent layers can be gone back to. Their state is one row a sequence that each token overwrites, so a tail
// cannot be taken from it: what it shall come back to is kept in another row.
//
// The memory has cells for twice as many sequences as the context, and the mark of sequence s is sequence n_seq + s in it. To
// mark copies nothing: both share a cell, and llama_memory_recurrent gives the sequence another one when it goes on
// (find_slot). One mark a sequence; it can be gone back to as often as one likes.
#pragma once

#include "llama-memory-recurrent.h"

#include <cstdint>
#include <vector>

class morphkv_marks {
public:
    // Cells of the memory, for the marks too.
    static uint32_t n_cells(uint32_t n_seq) { return 2 * n_seq; }

    morphkv_marks(llama_memory_recurrent & memory, uint32_t n_seq) : memory(memory), n_tokens(n_seq, 0) {}

    // How many tokens the sequence had at its mark; 0 = it has none.
    int32_t at(llama_seq_id seq_id) const { return n_tokens.at(seq_id); }

    // The sequence has n tokens. False, and no mark, where nothing can be marked: it is empty, or a draft has been taken back
    // and nothing decoded since.
    bool set(llama_seq_id seq_id, int32_t n);
    void drop(llama_seq_id seq_id);
    void clear() { n_tokens.assign(n_tokens.size(), 0); }

    // Recurrent layers are as they were at the mark, which stays.
    void go_back(llama_seq_id seq_id);

    void copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst);

    // Bytes of the cells that are there for marks.
    size_t n_bytes() const;

    // While it lives the memory has no marks, as states have none.
    class hidden {
    public:
        explicit hidden(const morphkv_marks & marks);
        ~hidden();

        hidden(const hidden &)             = delete;
        hidden & operator=(const hidden &) = delete;

    private:
        llama_memory_recurrent &                            memory;
        const std::vector<llama_memory_recurrent::mem_cell> cells;
    };

private:
    llama_seq_id id_of(llama_seq_id seq_id) const { return n_tokens.size() + seq_id; }

    llama_memory_recurrent & memory;
    std::vector<int32_t>     n_tokens;  // (n_seq)
};
