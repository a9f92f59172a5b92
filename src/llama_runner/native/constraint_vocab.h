// A vocabulary as llguidance wants it.
#pragma once

#include "llguidance.h"

#include <array>
#include <atomic>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct lr_constraint_vocab {
    explicit lr_constraint_vocab(const llama_vocab * vocab);
    ~lr_constraint_vocab() { lr_live_add(LR_CONSTRAINT, -1); }

    void keep() { references.fetch_add(1, std::memory_order_relaxed); }
    void drop() {
        if (references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            delete this;
        }
    }

    const llama_vocab *          vocab;  // whoever uses this keeps its model open
    const int32_t                n_vocab;
    bool                         canonical = false;  // text is tokenized as the model's own tokenizer does it
    bool                         anchored  = false;  // that puts a space before text, unless something precedes it
    std::vector<llama_token>     ends;               // of generation; that of the file comes first
    std::vector<uint8_t>         bytes;              // of all tokens, one after another
    std::vector<uint32_t>        lens;
    std::vector<size_t>          starts;
    std::array<llama_token, 256> single;  // tokens of one byte
    llg_tokenizer_ptr            tokenizer;

    std::pair<const uint8_t *, size_t> piece(llama_token token) const { return {bytes.data() + starts[token], lens[token]}; }

    // A new matcher; compiled once for the same text.
    llg_matcher_ptr compile(const char * kind, const char * data, const lr_constraint_limits & limits);

    // As the model's own tokenizer does it, and never other bytes than those: byte by byte where that is not to be had.
    void tokenize(const uint8_t * text, size_t size, std::vector<llama_token> & out) const;

private:
    using place = std::list<std::string>::iterator;

    std::atomic<int>       references{1};
    std::mutex             mutex;  // of what follows
    std::list<std::string> order;  // keys of the compiled ones, the last used first
    size_t                 cached_bytes = 0;
    std::unordered_map<std::string, std::pair<llg_matcher_ptr, place>> compiled;

    void read_pieces();
    void find_ends();
    bool same_bytes(const llama_token * tokens, size_t n, const uint8_t * text, size_t size) const;
    bool tokenize_part(const uint8_t * text, size_t size, std::vector<llama_token> & out) const;
    // Whether text can be tokenized as the model does it, without a loss.
    bool tokenizes();

    // A token for every byte that text has, control characters and planes without characters aside.
    bool fills_bytes() const;
    bool probe();
    static size_t tokenize_for_llg(const void * user, const uint8_t * text, size_t size, uint32_t * out, size_t room);
    void make_tokenizer();
};
