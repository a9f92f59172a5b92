#include "constraint.h"

#include "bounds.h"

#include "llama-vocab.h"
#include "shared.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

// --- llguidance's C interface, as of 1.7.4: our own declarations of what is used of it. lr_llg_bind holds them to the
// library that is really there.

namespace {

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

constexpr uint32_t NO_TOKEN     = UINT32_MAX;
constexpr uint8_t  SPECIAL      = 0xff;  // before the text of a token that no text is tokenized to
constexpr size_t   ERROR_ROOM   = 4096;
constexpr size_t   MOST_CACHED  = 32;       // compiled grammars of a vocabulary
constexpr size_t   CACHED_BYTES = 4 << 20;  // of their sources
constexpr size_t   DEEP_STACK   = 128 << 20;
constexpr size_t   PART         = 384;  // bytes that are tokenized at once: llama.cpp's splitter may recurse for each character

std::mutex        binding;
llg_functions     llg{};
std::atomic<bool> bound{false};

struct tokenizer_deleter {
    void operator()(llg_tokenizer * tokenizer) const { llg.free_tokenizer(tokenizer); }
};
struct matcher_deleter {
    void operator()(llg_matcher * matcher) const { llg.free_matcher(matcher); }
};
using tokenizer_ptr = std::unique_ptr<llg_tokenizer, tokenizer_deleter>;
using matcher_ptr   = std::unique_ptr<llg_matcher, matcher_deleter>;

// What llguidance says, as a line or a few: without the dump of its state and a panic's backtrace.
std::string message_of(const char * text) {
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

std::string error_of(llg_matcher * matcher) {
    return message_of(llg.matcher_get_error(matcher));
}

bool bit(const uint32_t * mask, size_t i) {
    return (mask[i / 32] >> (i % 32)) & 1;
}

// llguidance follows references and rules by recursion. What calls this bounds how many there are.
template <class Make> matcher_ptr on_deep_stack(Make make) {
    lr_limits limits;
    limits.stack   = DEEP_STACK;
    limits.reserve = 1 << 20;
    limits.memory  = INT64_MAX / 2;  // of this library's own allocations, which are few
    limits.time_us = INT64_MAX / 2;
    matcher_ptr made;
    std::string error;
    if (lr_run_bounded(limits, [&] { made = make(); }, error) != LR_WHY_OK) {
        throw std::runtime_error(error);
    }
    return made;
}

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
    char error[ERROR_ROOM] = "";
    const tokenizer_ptr tokenizer(llg.new_tokenizer_v2(&init, error, sizeof(error)));
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
    const matcher_ptr matcher(llg.new_matcher(&room.init, "regex", "abx?"));
    uint32_t mask[(N + 31) / 32] = {};
    if (!matcher || llg.matcher_is_error(matcher.get()) || llg.matcher_get_mask_byte_size(matcher.get()) != sizeof(mask) ||
        llg.matcher_compute_mask_into(matcher.get(), mask, sizeof(mask)) != 0 || !bit(mask, 'a') || !bit(mask, 257) ||
        bit(mask, 'b') || bit(mask, 256)) {
        throw std::runtime_error("it allows other tokens");
    }
    const uint32_t ab = 257;
    if (llg.matcher_validate_tokens(matcher.get(), &ab, 1) != 1 || llg.matcher_consume_tokens(matcher.get(), &ab, 1) != 0 ||
        !llg.matcher_is_accepting(matcher.get()) || llg.matcher_is_stopped(matcher.get())) {
        throw std::runtime_error("it does not take what it allows");
    }
}

}  // namespace

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

// --- the vocabulary, as llguidance knows it

struct lr_constraint_vocab {
    explicit lr_constraint_vocab(const llama_vocab * vocab) : vocab(vocab), n_vocab(llama_vocab_n_tokens(vocab)) {
        read_pieces();
        find_ends();
        single.fill(LLAMA_TOKEN_NULL);
        for (int32_t i = 0; i < n_vocab; ++i) {
            const auto piece = this->piece(i);
            if (piece.second == 1 && single[*piece.first] == LLAMA_TOKEN_NULL) {
                single[*piece.first] = i;
            }
        }
        canonical = tokenizes();
        make_tokenizer();
        lr_live_add(LR_CONSTRAINT, 1);
    }
    ~lr_constraint_vocab() { lr_live_add(LR_CONSTRAINT, -1); }

    void keep() { references.fetch_add(1, std::memory_order_relaxed); }
    void drop() {
        if (references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            delete this;
        }
    }

    const llama_vocab * vocab;  // whoever uses this keeps its model open
    const int32_t       n_vocab;
    bool                canonical = false;  // text is tokenized as the model's own tokenizer does it
    bool                anchored  = false;  // that puts a space before text, unless something precedes it
    std::vector<llama_token>   ends;        // of generation; that of the file comes first
    std::vector<uint8_t>       bytes;
    std::vector<uint32_t>      lens;
    std::vector<size_t>        starts;
    std::array<llama_token, 256> single;  // tokens of one byte
    tokenizer_ptr              tokenizer;

    std::pair<const uint8_t *, size_t> piece(llama_token token) const { return {bytes.data() + starts[token], lens[token]}; }

    // A new matcher; compiled once for the same text.
    matcher_ptr compile(const char * kind, const char * data, const lr_constraint_limits & limits) {
        std::string key = std::string(kind) + '\0' + data + '\0';
        key.append((const char *) &limits, sizeof(limits));
        {
            std::lock_guard<std::mutex> lock(mutex);
            const auto found = compiled.find(key);
            if (found != compiled.end()) {
                order.splice(order.begin(), order, found->second.second);
                return matcher_ptr(llg.clone_matcher(found->second.first.get()));
            }
        }
        llg_matcher_init init;
        llg.constraint_init_set_defaults(&init, tokenizer.get());
        init.log_buffer_level = init.log_stderr_level = 0;
        init.limits.verbose_errors = false;
        const auto lay = [](auto & at, auto value) {
            if (value > 0) {
                at = (std::remove_reference_t<decltype(at)>) value;
            }
        };
        lay(init.limits.max_items_in_row, limits.max_items_in_row);
        lay(init.limits.initial_lexer_fuel, limits.initial_lexer_fuel);
        lay(init.limits.step_lexer_fuel, limits.step_lexer_fuel);
        lay(init.limits.step_max_items, limits.step_max_items);
        lay(init.limits.max_lexer_states, limits.max_lexer_states);
        lay(init.limits.max_grammar_size, limits.max_grammar_size);
        matcher_ptr made = on_deep_stack([&] { return matcher_ptr(llg.new_matcher(&init, kind, data)); });
        if (!made || llg.matcher_is_error(made.get())) {
            throw std::runtime_error(made ? error_of(made.get()) : "llguidance made nothing of it");
        }
        // a grammar without an end in sight is found out now; what it takes to follow the beginning is kept for the copies
        std::vector<uint32_t> mask(((size_t) n_vocab + 31) / 32);
        if (llg.matcher_compute_mask_into(made.get(), mask.data(), mask.size() * sizeof(uint32_t)) != 0) {
            throw std::runtime_error("no text fits it: " + error_of(made.get()));
        }
        matcher_ptr result(llg.clone_matcher(made.get()));
        std::lock_guard<std::mutex> lock(mutex);
        if (key.size() <= CACHED_BYTES / 4 && compiled.find(key) == compiled.end()) {
            cached_bytes += key.size();
            order.push_front(key);
            compiled.emplace(std::move(key), std::make_pair(std::move(made), order.begin()));
            while (order.size() > MOST_CACHED || cached_bytes > CACHED_BYTES) {
                cached_bytes -= order.back().size();
                compiled.erase(order.back());
                order.pop_back();
            }
        }
        return result;
    }

    // As the model's own tokenizer does it, and never other bytes than those: byte by byte where that is not to be had.
    void tokenize(const uint8_t * text, size_t size, std::vector<llama_token> & out) const {
        for (size_t at = 0; at < size;) {
            size_t part = std::min(PART, size - at);
            while (at + part < size && part > PART / 2 && (text[at + part] & 0xc0) == 0x80) {
                --part;  // between two characters
            }
            if (!tokenize_part(text + at, part, out)) {
                for (size_t i = 0; i < part; ++i) {
                    if (single[text[at + i]] == LLAMA_TOKEN_NULL) {
                        return;  // no tokens say this, and llguidance says so when it comes to it
                    }
                    out.push_back(single[text[at + i]]);
                }
            }
            at += part;
        }
    }

private:
    std::atomic<int> references{1};
    std::mutex       mutex;
    std::list<std::string> order;  // of the compiled ones, the last used first
    std::unordered_map<std::string, std::pair<matcher_ptr, std::list<std::string>::iterator>> compiled;
    size_t           cached_bytes = 0;

    void read_pieces() {
        std::vector<char> piece(64);
        const auto read = [&](llama_token token, bool special) {
            int32_t size = llama_token_to_piece(vocab, token, piece.data(), (int32_t) piece.size(), 0, special);
            if (size < 0) {
                piece.resize(-size);
                size = llama_token_to_piece(vocab, token, piece.data(), (int32_t) piece.size(), 0, special);
            }
            return (size_t) std::max(size, 0);
        };
        for (int32_t i = 0; i < n_vocab; ++i) {
            starts.push_back(bytes.size());
            // what ends a generation is no text, whatever the file calls it
            size_t     size = llama_vocab_is_eog(vocab, i) ? 0 : read(i, false);
            if (size == 0) {
                size = read(i, true);
                if (size > 0) {
                    bytes.push_back(SPECIAL);
                }
            }
            bytes.insert(bytes.end(), piece.data(), piece.data() + size);
            lens.push_back((uint32_t) (bytes.size() - starts.back()));
        }
    }

    void find_ends() {
        for (const llama_token token : {llama_vocab_eos(vocab), llama_vocab_eot(vocab)}) {
            if (token >= 0 && token < n_vocab && llama_vocab_is_eog(vocab, token) &&
                std::find(ends.begin(), ends.end(), token) == ends.end()) {
                ends.push_back(token);
            }
        }
        for (int32_t i = 0; i < n_vocab; ++i) {
            if (llama_vocab_is_eog(vocab, i) && std::find(ends.begin(), ends.end(), i) == ends.end()) {
                ends.push_back(i);
            }
        }
    }

    bool same_bytes(const llama_token * tokens, size_t n, const uint8_t * text, size_t size) const {
        size_t at = 0;
        for (size_t i = 0; i < n; ++i) {
            const auto [piece, length] = this->piece(tokens[i]);
            if (length == 0 || at + length > size || memcmp(piece, text + at, length) != 0) {
                return false;
            }
            at += length;
        }
        return at == size;
    }

    bool tokenize_part(const uint8_t * text, size_t size, std::vector<llama_token> & out) const {
        constexpr char ANCHOR = '\x02';  // a byte that is merged with nothing
        try {
            std::string whole(anchored ? 1 : 0, ANCHOR);
            whole.append((const char *) text, size);
            std::vector<llama_token> found(whole.size() + 8);
            const int32_t n = llama_tokenize(vocab, whole.data(), (int32_t) whole.size(), found.data(), (int32_t) found.size(),
                                             /* add_special= */ false, /* parse_special= */ false);
            if (n < 0) {
                return false;
            }
            found.resize((size_t) n);
            size_t first = 0;
            if (anchored) {
                const auto at = std::find(found.begin(), found.end(), single[(uint8_t) ANCHOR]);
                if (at == found.end()) {
                    return false;
                }
                first = (size_t) (at - found.begin()) + 1;
            }
            if (!same_bytes(found.data() + first, found.size() - first, text, size)) {
                return false;
            }
            out.insert(out.end(), found.begin() + (long) first, found.end());
            return true;
        } catch (const std::exception &) {
            return false;
        }
    }

    // Whether text can be tokenized as the model does it, without a loss.
    bool tokenizes() {
        return fills_bytes() && probe();
    }

    // A token for every byte that text has, control characters and planes without characters aside.
    bool fills_bytes() const {
        for (int byte = 0x20; byte <= 0xf0; ++byte) {
            if (byte != 0x7f && (byte < 0xc0 || byte > 0xc2) && single[(size_t) byte] == LLAMA_TOKEN_NULL) {
                return false;
            }
        }
        return single['\t'] != LLAMA_TOKEN_NULL && single['\n'] != LLAMA_TOKEN_NULL;
    }

    bool probe() {
        const std::string probes[] = {"{\"name\": \"", "\": [1, 2.5e3, null, true]}", "a", "  two spaces", "<tag attr='x'>\n\t",
                                      "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80", "The quick brown fox.", ",\n    \"id\": 12345678"};
        for (const bool anchor : {false, true}) {
            anchored = anchor;
            std::vector<llama_token> tokens;
            if (std::all_of(std::begin(probes), std::end(probes), [&](const std::string & text) {
                    return tokenize_part((const uint8_t *) text.data(), text.size(), tokens);
                })) {
                return true;
            }
        }
        anchored = false;
        return false;
    }

    static size_t tokenize_for_llg(const void * user, const uint8_t * text, size_t size, uint32_t * out, size_t room) {
        try {
            std::vector<llama_token> tokens;
            static_cast<const lr_constraint_vocab *>(user)->tokenize(text, size, tokens);
            for (size_t i = 0; i < std::min(tokens.size(), room); ++i) {
                out[i] = (uint32_t) tokens[i];
            }
            return tokens.size();
        } catch (const std::exception &) {
            return 0;
        }
    }

    void make_tokenizer() {
        const std::vector<uint32_t> others(ends.size() > 1 ? ends.begin() + 1 : ends.end(), ends.end());
        llg_tokenizer_init init{};
        init.struct_size                        = sizeof(init);
        init.vocab_size                         = (uint32_t) n_vocab;
        init.tok_eos                            = ends.empty() ? NO_TOKEN : (uint32_t) ends[0];
        init.token_lens                         = lens.data();
        init.token_bytes                        = bytes.data();
        init.tokenize_assumes_string            = canonical;
        init.tokenize_fn                        = canonical ? tokenize_for_llg : nullptr;
        init.use_approximate_greedy_tokenize_fn = !canonical;
        init.tokenize_user_data                 = this;
        init.tok_eos_extra                      = others.empty() ? nullptr : others.data();
        init.tok_eos_extra_count                = (uint32_t) others.size();
        char error[ERROR_ROOM] = "";
        tokenizer.reset(llg.new_tokenizer_v2(&init, error, sizeof(error)));
        if (!tokenizer) {
            throw std::runtime_error(message_of(error));
        }
    }
};

lr_constraint_vocab * lr_constraint_vocab_new(const llama_vocab * vocab, char ** error) {
    try {
        if (!bound.load(std::memory_order_acquire)) {
            throw std::runtime_error("llguidance is not bound");
        }
        return new lr_constraint_vocab(vocab);
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return nullptr;
    }
}

void lr_constraint_vocab_free(lr_constraint_vocab * vocab) {
    if (vocab) {
        vocab->drop();
    }
}

bool lr_constraint_vocab_canonical(const lr_constraint_vocab * vocab) {
    return vocab->canonical;
}

const llama_token * lr_constraint_vocab_ends(const lr_constraint_vocab * vocab, size_t * n) {
    *n = vocab->ends.size();
    return vocab->ends.data();
}

const uint8_t * lr_constraint_vocab_piece(const lr_constraint_vocab * vocab, llama_token token, size_t * size) {
    const auto [piece, length] = vocab->piece(token);
    *size = length;
    return piece;
}

int32_t lr_constraint_vocab_tokenize(const lr_constraint_vocab * vocab, const uint8_t * text, size_t size, llama_token * out,
                                     size_t room) {
    try {
        if (!vocab->canonical) {
            return -1;
        }
        std::vector<llama_token> tokens;
        vocab->tokenize(text, size, tokens);
        std::copy_n(tokens.begin(), std::min(tokens.size(), room), out);
        return (int32_t) tokens.size();
    } catch (const std::exception &) {
        return -1;
    }
}

// --- a grammar and how far it has got

struct lr_constraint {
    lr_constraint_vocab * vocab;  // a reference of its own
    matcher_ptr           start;  // llguidance cannot reset a matcher that failed
    matcher_ptr           now;
    std::vector<uint32_t> mask;
    bool                  masked  = false;  // `mask` is of the present state
    size_t                n_taken = 0;
    size_t                n_after = 0;  // of them, ends that came after the grammar's own
    std::string           error;

    lr_constraint(lr_constraint_vocab * vocab, matcher_ptr start)
        : vocab(vocab), start(std::move(start)), now(llg.clone_matcher(this->start.get())), mask((vocab->n_vocab + 31) / 32) {
        if (llg.matcher_get_mask_byte_size(now.get()) != mask.size() * sizeof(uint32_t)) {
            throw std::runtime_error("llguidance counts other tokens than there are");
        }
        vocab->keep();
        lr_live_add(LR_CONSTRAINT, 1);
    }
    lr_constraint(const lr_constraint & other)
        : vocab(other.vocab), start(llg.clone_matcher(other.start.get())), now(llg.clone_matcher(other.now.get())),
          mask(other.mask), masked(other.masked), n_taken(other.n_taken), n_after(other.n_after), error(other.error) {
        vocab->keep();
        lr_live_add(LR_CONSTRAINT, 1);
    }
    lr_constraint & operator=(const lr_constraint &) = delete;
    ~lr_constraint() {
        now.reset();
        start.reset();
        vocab->drop();
        lr_live_add(LR_CONSTRAINT, -1);
    }

    bool is_end(llama_token token) const {
        return std::find(vocab->ends.begin(), vocab->ends.end(), token) != vocab->ends.end();
    }
    bool stopped() const { return llg.matcher_is_stopped(now.get()) && !llg.matcher_is_error(now.get()); }

    void check() const {
        if (llg.matcher_is_error(now.get())) {
            throw std::runtime_error(error_of(now.get()));
        }
    }

    const uint32_t * allowed() {
        if (masked) {
            return mask.data();
        }
        check();
        if (stopped() && vocab->ends.empty()) {
            throw std::runtime_error("the text is complete, and this vocabulary has no token that ends it");
        }
        if (llg.matcher_compute_mask_into(now.get(), mask.data(), mask.size() * sizeof(uint32_t)) != 0) {
            throw std::runtime_error(error_of(now.get()));
        }
        if (std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; })) {
            throw std::runtime_error("the grammar allows no token here");
        }
        masked = true;
        return mask.data();
    }

    // All of them, or none.
    void consume(const llama_token * tokens, size_t n) {
        check();
        std::vector<uint32_t> taken;
        size_t after = 0;
        bool   over  = stopped();
        for (size_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= vocab->n_vocab) {
                throw std::runtime_error("there is no token " + std::to_string(tokens[i]));
            }
            if (over || after > 0) {
                if (!is_end(tokens[i])) {
                    throw std::runtime_error("token " + std::to_string(tokens[i]) + " after the end of the text");
                }
                ++after;
            } else {
                taken.push_back((uint32_t) tokens[i]);
            }
        }
        // that what is sampled is allowed is known by its mask
        const bool known = taken.size() == 1 && masked && bit(mask.data(), taken[0]);
        if (!taken.empty() && !known) {
            const int32_t valid = llg.matcher_validate_tokens(now.get(), taken.data(), taken.size());
            if (valid < (int32_t) taken.size()) {
                check();
                throw std::runtime_error("token " + std::to_string(taken[(size_t) std::max(valid, 0)]) +
                                         " is not allowed here");
            }
        }
        masked = false;
        if (!taken.empty() && llg.matcher_consume_tokens(now.get(), taken.data(), taken.size()) != 0) {
            throw std::runtime_error(error_of(now.get()));
        }
        n_taken += n;
        n_after += after;
    }

    size_t forced(llama_token * out, size_t room) {
        check();
        if (room == 0) {
            return 0;
        }
        if (stopped()) {
            if (vocab->ends.size() != 1) {
                return 0;  // which one is the model's to say
            }
            out[0] = vocab->ends[0];
            return 1;
        }
        const int32_t n = llg.matcher_compute_ff_tokens(now.get(), (uint32_t *) out, room);
        if (n < 0) {
            throw std::runtime_error(error_of(now.get()));
        }
        return std::min((size_t) n, room);
    }

    void rollback(size_t n) {
        check();
        if (n > n_taken) {
            throw std::runtime_error("only " + std::to_string(n_taken) + " tokens were consumed");
        }
        const size_t after = std::min(n, n_after);
        masked = false;
        if (n > after && llg.matcher_rollback(now.get(), n - after) != 0) {
            throw std::runtime_error(error_of(now.get()));
        }
        n_after -= after;
        n_taken -= n;
    }

    void reset() {
        now.reset(llg.clone_matcher(start.get()));
        masked  = false;
        n_taken = n_after = 0;
        error.clear();
    }

    template <class Call> int guarded(Call call) {
        error.clear();
        try {
            return call();
        } catch (const std::exception & e) {
            error = e.what();
        }
        return -1;
    }
};

lr_constraint * lr_constraint_new(lr_constraint_vocab * vocab, const char * kind, const char * data,
                                  const lr_constraint_limits * limits, char ** error) {
    try {
        return new lr_constraint(vocab, vocab->compile(kind, data, *limits));
    } catch (const std::exception & e) {
        *error = lr_copy_string(e.what());
        return nullptr;
    }
}

void lr_constraint_free(lr_constraint * constraint) {
    delete constraint;
}

lr_constraint * lr_constraint_clone(const lr_constraint * constraint) {
    try {
        return new lr_constraint(*constraint);
    } catch (const std::exception &) {
        return nullptr;
    }
}

const uint32_t * lr_constraint_mask(lr_constraint * constraint) {
    return constraint->guarded([&] {
        constraint->allowed();
        return 0;
    }) == 0 ? constraint->mask.data() : nullptr;
}

int lr_constraint_consume(lr_constraint * constraint, const llama_token * tokens, size_t n) {
    return constraint->guarded([&] {
        constraint->consume(tokens, n);
        return 0;
    });
}

int32_t lr_constraint_forced(lr_constraint * constraint, llama_token * out, size_t room) {
    return constraint->guarded([&] { return (int32_t) constraint->forced(out, room); });
}

int lr_constraint_rollback(lr_constraint * constraint, size_t n) {
    return constraint->guarded([&] {
        constraint->rollback(n);
        return 0;
    });
}

void lr_constraint_reset(lr_constraint * constraint) {
    constraint->reset();
}

bool lr_constraint_accepting(lr_constraint * constraint) {
    return !llg.matcher_is_error(constraint->now.get()) &&
           (constraint->stopped() || llg.matcher_is_accepting(constraint->now.get()));
}

bool lr_constraint_stopped(const lr_constraint * constraint) {
    return constraint->stopped();
}

size_t lr_constraint_taken(const lr_constraint * constraint) {
    return constraint->n_taken;
}

const char * lr_constraint_error(const lr_constraint * constraint) {
    return constraint->error.c_str();
}

// --- the link

namespace {

lr_constraint & of(const llama_sampler * link) {
    return *static_cast<lr_constraint *>(link->ctx);
}

const char * constraint_name(const llama_sampler *) {
    return "constraint";
}

void constraint_accept(llama_sampler * link, llama_token token) {
    of(link).consume(&token, 1);
}

void constraint_apply(llama_sampler * link, llama_token_data_array * candidates) {
    auto &           self = of(link);
    const uint32_t * mask = self.allowed();
    for (size_t i = 0; i < candidates->size; ++i) {
        auto & candidate = candidates->data[i];
        if (candidate.id < 0 || candidate.id >= self.vocab->n_vocab || !bit(mask, (size_t) candidate.id)) {
            candidate.logit = -INFINITY;
        }
    }
    candidates->sorted = false;  // what stood first may be ruled out now
}

void constraint_reset(llama_sampler * link) {
    of(link).reset();
}

extern llama_sampler_i constraint_interface;

llama_sampler * constraint_clone(const llama_sampler * link) {
    return llama_sampler_init(&constraint_interface, new lr_constraint(of(link)));
}

void constraint_free(llama_sampler * link) {
    delete static_cast<lr_constraint *>(link->ctx);
}

llama_sampler_i constraint_interface = {
    /* .name              = */ constraint_name,
    /* .accept            = */ constraint_accept,
    /* .apply             = */ constraint_apply,
    /* .reset             = */ constraint_reset,
    /* .clone             = */ constraint_clone,
    /* .free              = */ constraint_free,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

}  // namespace

llama_sampler * lr_constraint_link(const lr_constraint * constraint) {
    lr_constraint * copy = lr_constraint_clone(constraint);
    return copy ? llama_sampler_init(&constraint_interface, copy) : nullptr;
}

lr_constraint * lr_constraint_of(const llama_sampler * link) {
    return link && link->iface == &constraint_interface ? static_cast<lr_constraint *>(link->ctx) : nullptr;
}

const uint32_t * lr_constraint_allowed(lr_constraint & constraint) {
    return constraint.allowed();
}

void lr_constraint_mask_row(lr_constraint & constraint, const float * row, int n_vocab, float * out) {
    const uint32_t * mask = constraint.allowed();
    const int        n    = std::min(n_vocab, constraint.vocab->n_vocab);
    for (int i = 0; i < n; i += 32) {
        const uint32_t word = mask[i / 32];
        const int      end  = std::min(n, i + 32);
        if (word == UINT32_MAX) {
            std::copy(row + i, row + end, out + i);
        } else if (word == 0) {
            std::fill(out + i, out + end, -INFINITY);
        } else {
            for (int j = i; j < end; ++j) {
                out[j] = (word >> (j - i)) & 1 ? row[j] : -INFINITY;
            }
        }
    }
    std::fill(out + n, out + n_vocab, -INFINITY);
}
