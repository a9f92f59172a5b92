#include "constraint_vocab.h"

#include "shared.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr uint32_t NO_TOKEN     = UINT32_MAX;
constexpr uint8_t  SPECIAL      = 0xff;       // before the text of a token that no text is tokenized to
constexpr size_t   MOST_CACHED  = 32;         // compiled grammars of a vocabulary
constexpr size_t   CACHED_BYTES = 4 << 20;    // of their sources
constexpr size_t   DEEP_STACK   = 128 << 20;
constexpr size_t   PART         = 384;        // bytes tokenized at once: llama.cpp's splitter may recurse for each character

// llguidance follows references and rules by recursion. What calls this bounds how many there are.
template <class Make> llg_matcher_ptr on_deep_stack(Make make) {
    lr_limits limits;
    limits.stack   = DEEP_STACK;
    limits.reserve = 1 << 20;
    limits.memory  = INT64_MAX / 2;  // of this library's own allocations, which are few
    limits.time_us = INT64_MAX / 2;
    llg_matcher_ptr made;
    std::string error;
    if (lr_run_bounded(limits, [&] { made = make(); }, error) != LR_WHY_OK) {
        throw std::runtime_error(error);
    }
    return made;
}

}  // namespace

lr_constraint_vocab::lr_constraint_vocab(const llama_vocab * vocab) : vocab(vocab), n_vocab(llama_vocab_n_tokens(vocab)) {
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

llg_matcher_ptr lr_constraint_vocab::compile(const char * kind, const char * data, const lr_constraint_limits & limits) {
    std::string key = std::string(kind) + '\0' + data + '\0';
    key.append((const char *) &limits, sizeof(limits));
    {
        std::lock_guard<std::mutex> lock(mutex);
        const auto found = compiled.find(key);
        if (found != compiled.end()) {
            order.splice(order.begin(), order, found->second.second);
            return llg_matcher_ptr(llg.clone_matcher(found->second.first.get()));
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
    llg_matcher_ptr made = on_deep_stack([&] { return llg_matcher_ptr(llg.new_matcher(&init, kind, data)); });
    if (!made || llg.matcher_is_error(made.get())) {
        throw std::runtime_error(made ? llg_error_of(made.get()) : "llguidance made nothing of it");
    }
    // a grammar without an end in sight is found out now; what it takes to follow the beginning is kept for the copies
    std::vector<uint32_t> mask(((size_t) n_vocab + 31) / 32);
    if (llg.matcher_compute_mask_into(made.get(), mask.data(), mask.size() * sizeof(uint32_t)) != 0) {
        throw std::runtime_error("no text fits it: " + llg_error_of(made.get()));
    }
    llg_matcher_ptr result(llg.clone_matcher(made.get()));
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

void lr_constraint_vocab::tokenize(const uint8_t * text, size_t size, std::vector<llama_token> & out) const {
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

void lr_constraint_vocab::read_pieces() {
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

void lr_constraint_vocab::find_ends() {
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

bool lr_constraint_vocab::fills_bytes() const {
    for (int byte = 0x20; byte <= 0xf0; ++byte) {
        if (byte != 0x7f && (byte < 0xc0 || byte > 0xc2) && single[(size_t) byte] == LLAMA_TOKEN_NULL) {
            return false;
        }
    }
    return single['\t'] != LLAMA_TOKEN_NULL && single['\n'] != LLAMA_TOKEN_NULL;
}

bool lr_constraint_vocab::same_bytes(const llama_token * tokens, size_t n, const uint8_t * text, size_t size) const {
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

bool lr_constraint_vocab::tokenize_part(const uint8_t * text, size_t size, std::vector<llama_token> & out) const {
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

bool lr_constraint_vocab::tokenizes() {
    return fills_bytes() && probe();
}

bool lr_constraint_vocab::probe() {
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

size_t lr_constraint_vocab::tokenize_for_llg(const void * user, const uint8_t * text, size_t size, uint32_t * out, size_t room) {
    try {
        std::vector<llama_token> tokens;
        static_cast<const lr_constraint_vocab *>(user)->tokenize(text, size, tokens);
        for (size_t i = 0; i < std::min(tokens.size(), room); ++i) {
            out[i] = (uint32_t) tokens[i];
        }
        return tokens.size();
    } catch (...) {  // nothing may unwind through llguidance
        return 0;
    }
}

void lr_constraint_vocab::make_tokenizer() {
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
    char error[LLG_ERROR_ROOM] = "";
    tokenizer.reset(llg.new_tokenizer_v2(&init, error, sizeof(error)));
    if (!tokenizer) {
        throw std::runtime_error(llg_message(error));
    }
}

lr_constraint_vocab * lr_constraint_vocab_new(const llama_vocab * vocab, char ** error) {
    try {
        llg_check_bound();
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
