#include "llguidance.h"

#include "shared.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

llg_functions llg{};

namespace {

constexpr const char * SYMBOLS[] = {
    "llg_get_version",
    "llg_constraint_init_set_defaults",
    "llg_new_tokenizer_v2",
    "llg_free_tokenizer",
    "llg_tokenize_bytes",
    "llg_new_matcher",
    "llg_clone_matcher",
    "llg_free_matcher",
    "llg_matcher_compute_mask_into",
    "llg_matcher_get_mask_byte_size",
    "llg_matcher_consume_tokens",
    "llg_matcher_validate_tokens",
    "llg_matcher_compute_ff_tokens",
    "llg_matcher_rollback",
    "llg_matcher_is_accepting",
    "llg_matcher_is_stopped",
    "llg_matcher_is_error",
    "llg_matcher_get_error",
};
constexpr size_t N_SYMBOLS = sizeof(SYMBOLS) / sizeof(SYMBOLS[0]);
static_assert(sizeof(llg_functions) == N_SYMBOLS * sizeof(void *), "a name for each function");

std::mutex        binding;
std::atomic<bool> bound{false};

// Grammar and tokenizer of a few bytes, through every function and struct that is used: what comes of it is known.
void try_out() {
    constexpr uint32_t N = 258;  // the bytes, an end, and "ab"
    std::vector<uint8_t>  bytes;
    std::vector<uint32_t> lens;
    for (uint32_t i = 0; i < 256; ++i) {
        bytes.push_back((uint8_t) i);
        lens.push_back(1);
    }
    for (const char * text : {"\xff<end>", "ab"}) {
        bytes.insert(bytes.end(), text, text + strlen(text));
        lens.push_back((uint32_t) strlen(text));
    }
    llg_tokenizer_init init{};
    init.struct_size                        = sizeof(init);
    init.vocab_size                         = N;
    init.tok_eos                            = 256;
    init.token_lens                         = lens.data();
    init.token_bytes                        = bytes.data();
    init.use_approximate_greedy_tokenize_fn = true;
    char error[LLG_ERROR_ROOM] = "";
    const llg_tokenizer_ptr tokenizer(llg.new_tokenizer_v2(&init, error, sizeof(error)));
    if (!tokenizer) {
        throw std::runtime_error(std::string("it makes no tokenizer: ") + error);
    }
    uint32_t tokens[4] = {};
    if (llg.tokenize_bytes(tokenizer.get(), (const uint8_t *) "abc", 3, tokens, 4) != 2 || tokens[0] != 257 || tokens[1] != 'c') {
        throw std::runtime_error("it tokenizes otherwise");
    }
    // set_defaults fills exactly the struct that we know, with the numbers that we know
    struct {
        llg_matcher_init init;
        uint8_t          after[256];
    } room;
    memset((void *) &room, 0xa5, sizeof(room));
    llg.constraint_init_set_defaults(&room.init, tokenizer.get());
    const auto & limits = room.init.limits;
    const bool   known  = room.init.tokenizer == tokenizer.get() && limits.max_items_in_row == 2000 &&
                       limits.initial_lexer_fuel == 1'000'000 && limits.step_lexer_fuel == 200'000 &&
                       limits.step_max_items == 50'000 && limits.max_lexer_states == 250'000 &&
                       limits.max_grammar_size == 500'000 && (uint8_t) limits.precompute_large_lexemes == 1 &&
                       (uint8_t) limits.verbose_errors == 1;
    if (!known || std::any_of(room.after, room.after + sizeof(room.after), [](uint8_t x) { return x != 0xa5; })) {
        throw std::runtime_error("its limits are laid out otherwise");
    }
    room.init.log_stderr_level = 0;
    const llg_matcher_ptr matcher(llg.new_matcher(&room.init, "regex", "abx?"));
    uint32_t mask[(N + 31) / 32] = {};
    if (!matcher || llg.matcher_is_error(matcher.get()) || llg.matcher_get_mask_byte_size(matcher.get()) != sizeof(mask) ||
        llg.matcher_compute_mask_into(matcher.get(), mask, sizeof(mask)) != 0 || !llg_bit(mask, 'a') || !llg_bit(mask, 257) ||
        llg_bit(mask, 'b') || llg_bit(mask, 256)) {
        throw std::runtime_error("it allows other tokens");
    }
    const uint32_t ab = 257;
    if (llg.matcher_validate_tokens(matcher.get(), &ab, 1) != 1 || llg.matcher_consume_tokens(matcher.get(), &ab, 1) != 0 ||
        !llg.matcher_is_accepting(matcher.get()) || llg.matcher_is_stopped(matcher.get())) {
        throw std::runtime_error("it does not take what it allows");
    }
}

}  // namespace

std::string llg_message(const char * text) {
    std::string message = text ? text : "llguidance does not say why";
    for (const char * end : {"<state>", "<backtrace>", "<grammar>", "<non-verbose"}) {
        message.resize(std::min(message.size(), message.find(end)));
    }
    message.resize(message.find_last_not_of(" \r\n") + 1);
    if (message == "NoExtensionBias") {
        return "the grammar allows no token here";
    }
    if (message.size() > 600) {
        message.resize(600);
        while (!message.empty() && (message.back() & 0xc0) == 0x80) {
            message.pop_back();  // no half character
        }
        message += "...";
    }
    return message;
}

std::string llg_error_of(llg_matcher * matcher) {
    return llg_message(llg.matcher_get_error(matcher));
}

void llg_check_bound() {
    if (!bound.load(std::memory_order_acquire)) {
        throw std::runtime_error("llguidance is not bound");
    }
}

size_t lr_llg_symbols(const char * const ** names) {
    *names = SYMBOLS;
    return N_SYMBOLS;
}

int lr_llg_bind(void * const * addresses, char ** error) {
    std::lock_guard<std::mutex> lock(binding);
    if (bound.load(std::memory_order_relaxed)) {
        return 0;
    }
    try {
        memcpy((void *) &llg, addresses, sizeof(llg));
        try_out();
        bound.store(true, std::memory_order_release);
        return 0;
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return -1;
    }
}

const char * lr_llg_version(void) {
    return bound.load(std::memory_order_acquire) ? llg.get_version() : "";
}
