// llguidance's C interface, bound at run time, and what the files of the shim make of it.
#pragma once

#include "bounds.h"
#include "llama_runner.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

// Our own declarations of what is used of it, as of 1.7.4. lr_llg_bind holds them to the library that is really there.

struct llg_tokenizer;
struct llg_matcher;

using llg_tokenize_fn = size_t (*)(const void * user, const uint8_t * bytes, size_t n_bytes, uint32_t * out, size_t room);

struct llg_tokenizer_init {
    size_t              struct_size;
    uint32_t            vocab_size;
    uint32_t            tok_eos;
    const uint32_t *    token_lens;
    const uint8_t *     token_bytes;
    const char *        tokenizer_json;
    bool                tokenize_assumes_string;
    llg_tokenize_fn     tokenize_fn;
    bool                use_approximate_greedy_tokenize_fn;
    const void *        tokenize_user_data;
    const char * const *slices;
    const uint32_t *    tok_eos_extra;
    uint32_t            tok_eos_extra_count;
};

struct llg_limits {
    size_t   max_items_in_row;
    uint64_t initial_lexer_fuel;
    uint64_t step_lexer_fuel;
    size_t   step_max_items;
    size_t   max_lexer_states;
    size_t   max_grammar_size;
    bool     precompute_large_lexemes;
    bool     verbose_errors;
};

struct llg_matcher_init {
    const llg_tokenizer * tokenizer;
    uint32_t              log_buffer_level;
    uint32_t              log_stderr_level;
    bool                  ff_tokens_ok;
    bool                  backtrack_ok;
    llg_limits            limits;
};

// In the order of lr_llg_symbols().
struct llg_functions {
    const char * (*get_version)();
    void (*constraint_init_set_defaults)(llg_matcher_init *, const llg_tokenizer *);
    llg_tokenizer * (*new_tokenizer_v2)(const llg_tokenizer_init *, char * error, size_t room);
    void (*free_tokenizer)(llg_tokenizer *);
    size_t (*tokenize_bytes)(const llg_tokenizer *, const uint8_t *, size_t, uint32_t *, size_t);
    llg_matcher * (*new_matcher)(const llg_matcher_init *, const char * kind, const char * data);
    llg_matcher * (*clone_matcher)(const llg_matcher *);
    void (*free_matcher)(llg_matcher *);
    int32_t (*matcher_compute_mask_into)(llg_matcher *, uint32_t *, size_t);
    size_t (*matcher_get_mask_byte_size)(const llg_matcher *);
    int32_t (*matcher_consume_tokens)(llg_matcher *, const uint32_t *, size_t);
    int32_t (*matcher_validate_tokens)(llg_matcher *, const uint32_t *, size_t);
    int32_t (*matcher_compute_ff_tokens)(llg_matcher *, uint32_t *, size_t);
    int32_t (*matcher_rollback)(llg_matcher *, size_t);
    bool (*matcher_is_accepting)(llg_matcher *);
    bool (*matcher_is_stopped)(const llg_matcher *);
    bool (*matcher_is_error)(const llg_matcher *);
    const char * (*matcher_get_error)(llg_matcher *);
};

extern llg_functions llg;  // all NULL until lr_llg_bind has succeeded

// Throws where it has not.
void llg_check_bound();

struct llg_tokenizer_deleter {
    void operator()(llg_tokenizer * tokenizer) const { llg.free_tokenizer(tokenizer); }
};
struct llg_matcher_deleter {
    void operator()(llg_matcher * matcher) const { llg.free_matcher(matcher); }
};
using llg_tokenizer_ptr = std::unique_ptr<llg_tokenizer, llg_tokenizer_deleter>;
using llg_matcher_ptr   = std::unique_ptr<llg_matcher, llg_matcher_deleter>;

constexpr size_t LLG_ERROR_ROOM = 4096;

// What llguidance says, as a line or a few: without the dump of its state and a panic's backtrace.
std::string llg_message(const char * text);
std::string llg_error_of(llg_matcher * matcher);

inline bool llg_bit(const uint32_t * mask, size_t i) {
    return (mask[i / 32] >> (i % 32)) & 1;
}
