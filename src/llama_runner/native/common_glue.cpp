// What the part of common that we compile asks of the part that we leave out: a few helpers of common.cpp, which would
// bring speculative decoding and argument parsing along, and log.cpp, which starts a thread that writes to stderr.

#include "common.h"
#include "log.h"
#include "shared.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string joined;
    for (const auto & value : values) {
        if (&value != &values.front()) {
            joined += separator;
        }
        joined += value;
    }
    return joined;
}

std::vector<std::string> string_split(const std::string & str, const std::string & delimiter) {
    std::vector<std::string> parts;
    size_t start = 0;
    for (size_t end; (end = str.find(delimiter, start)) != std::string::npos; start = end + delimiter.size()) {
        parts.push_back(str.substr(start, end - start));
    }
    parts.push_back(str.substr(start));
    return parts;
}

std::string string_repeat(const std::string & str, size_t n) {
    std::string repeated;
    repeated.reserve(str.size() * n);
    while (n-- > 0) {
        repeated += str;
    }
    return repeated;
}

void string_replace_all(std::string & s, const std::string & search, const std::string & replace) {
    if (search.empty()) {
        return;
    }
    for (size_t pos = 0; (pos = s.find(search, pos)) != std::string::npos; pos += replace.size()) {
        s.replace(pos, search.size(), replace);
    }
}

std::vector<llama_token> common_tokenize(const llama_vocab * vocab, const std::string & text, bool add_special,
                                         bool parse_special) {
    std::vector<llama_token> tokens(text.size() + 8);
    int32_t n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(),
                               add_special, parse_special);
    if (n < 0) {
        tokens.resize(-n);
        n = llama_tokenize(vocab, text.data(), (int32_t) text.size(), tokens.data(), (int32_t) tokens.size(), add_special,
                           parse_special);
    }
    tokens.resize(std::max(n, 0));
    return tokens;
}

std::string common_token_to_piece(const llama_vocab * vocab, llama_token token, bool special) {
    std::string piece(32, '\0');
    int32_t n = llama_token_to_piece(vocab, token, piece.data(), (int32_t) piece.size(), 0, special);
    if (n < 0) {
        piece.resize(-n);
        n = llama_token_to_piece(vocab, token, piece.data(), (int32_t) piece.size(), 0, special);
    }
    piece.resize(std::max(n, 0));
    return piece;
}

int common_log_get_verbosity_thold(void) {
    return LOG_LEVEL_INFO;
}

struct common_log * common_log_main() {
    return nullptr;
}

void common_log_add(struct common_log *, ggml_log_level level, const char * fmt, ...) {
    char line[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    lr_log_line(level, line);
}
