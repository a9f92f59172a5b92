#include "llama_runner.h"

#include "llama-grammar.h"
#include "llama-vocab.h"
#include "shared.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int64_t MOST_STEPS  = 2'000'000;  // of llama.cpp's search for left recursion, which remembers nothing
constexpr int     MOST_CYCLES = 1;          // repetitions of what may be empty, one in the other
constexpr int64_t MOST_AROUND = 5000;       // steps of that search where there is such a repetition: each goes round it
constexpr int     MOST_DEPTH  = 200;        // and which goes down by recursion; the ways to go on grow with its cube
constexpr int64_t MOST_STACKS = 20'000;     // ways to go on that are followed at once, each compared with each
constexpr size_t  WINDOW      = 256;        // bytes of output that trigger patterns look at, in time that is quadratic
constexpr size_t  WHOLE       = 4096;       // the same for those that say where the output begins

std::string brief(std::string text) {
    const auto line = text.find('\n');
    if (line != std::string::npos) {
        text.resize(line);
    }
    if (text.size() > 120) {
        text.resize(120);
        while (!text.empty() && (text.back() & 0xc0) == 0x80) {
            text.pop_back();  // no half character
        }
        text += "...";
    }
    return text;
}

const char * after_space(const char * at) {
    while (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n' || *at == '#') {
        if (*at != '#') {
            ++at;
        } else {
            while (*at && *at != '\r' && *at != '\n') {
                ++at;
            }
        }
    }
    return at;
}

// What of a grammar ends in endless loops, recursion too deep or memory without end, found before any of it is run.
struct inspection {
    const llama_grammar_rules & rules;
    std::vector<bool>           nullable;
    std::vector<char>           state;   // 0 new, 1 being visited, 2 done
    std::vector<int64_t>        steps;   // paths of leftmost rules from here on
    std::vector<int64_t>        stacks;  // ways to begin
    std::vector<int>            depth;
    std::vector<uint32_t>       component;
    std::vector<int>            cycles;

    explicit inspection(const llama_grammar_rules & rules)
        : rules(rules), nullable(rules.size()), state(rules.size()), steps(rules.size(), 1), stacks(rules.size()),
          depth(rules.size(), 1), component(rules.size(), UINT32_MAX),
          cycles(rules.size()) {}

    static bool ends(const llama_grammar_element & at) {
        return at.type == LLAMA_GRETYPE_END || at.type == LLAMA_GRETYPE_ALT;
    }

    void find_nullable() {
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t id = 0; id < rules.size(); ++id) {
                bool empty = true;  // so far in this alternative
                for (const auto & at : rules[id]) {
                    if (ends(at)) {
                        if (empty && !nullable[id]) {
                            nullable[id] = changed = true;
                        }
                        empty = true;
                    } else {
                        empty = empty && at.type == LLAMA_GRETYPE_RULE_REF && nullable[at.value];
                    }
                }
            }
        }
    }

    struct edge {
        uint32_t to;
        bool     tail;  // nothing follows it in its alternative: going down it leaves nothing behind
    };

    // The rules that may stand leftmost in `id`, as often as they may.
    std::vector<edge> edges(size_t id) const {
        std::vector<edge> found;
        bool              open = true;
        const auto &      rule = rules[id];
        for (size_t i = 0; i < rule.size(); ++i) {
            if (ends(rule[i])) {
                open = true;
            } else if (open && rule[i].type == LLAMA_GRETYPE_RULE_REF) {
                found.push_back({rule[i].value, i + 1 == rule.size() || ends(rule[i + 1])});
                open = nullable[rule[i].value];
            } else {
                open = false;
            }
        }
        return found;
    }

    // Which rules can come back to each other without reading anything (Tarjan's components). llama.cpp follows that once
    // where a rule comes back to itself as the last of its alternative, which is what it makes of (a?)*, and for ever where
    // something is left behind. One such repetition in another multiplies its ways, and so does much that may come first.
    void find_cycles() {
        constexpr uint32_t    NONE = UINT32_MAX;
        std::vector<uint32_t> order(rules.size(), NONE), low(rules.size()), open;
        uint32_t              time = 0;
        struct frame {
            uint32_t          id;
            std::vector<edge> below;
            size_t            next;
        };
        const auto enter = [&](std::vector<frame> & path, uint32_t id) {
            order[id] = low[id] = time++;
            open.push_back(id);
            path.push_back({id, edges(id), 0});
        };
        for (uint32_t from = 0; from < rules.size(); ++from) {
            std::vector<frame> path;
            if (order[from] == NONE) {
                enter(path, from);
            }
            while (!path.empty()) {
                auto & top = path.back();
                if (top.next < top.below.size()) {
                    const uint32_t to = top.below[top.next++].to;
                    if (order[to] == NONE) {
                        enter(path, to);
                    } else if (component[to] == NONE) {
                        low[top.id] = std::min(low[top.id], order[to]);
                    }
                    continue;
                }
                const uint32_t id = top.id;
                if (low[id] == order[id]) {
                    uint32_t member;
                    do {
                        member = open.back();
                        open.pop_back();
                        component[member] = id;
                    } while (member != id);
                }
                path.pop_back();
                if (!path.empty()) {
                    low[path.back().id] = std::min(low[path.back().id], low[id]);
                }
            }
        }
        for (uint32_t id = 0; id < rules.size(); ++id) {
            for (const auto & e : edges(id)) {
                if (component[id] == component[e.to] && !(e.tail && e.to == id)) {
                    throw std::runtime_error("a rule begins with itself (left recursion)");
                }
            }
        }
    }

    // The rules that may stand leftmost in `id`, but for those that come back to it; and how many terminals may.
    std::vector<uint32_t> leftmost(size_t id) {
        std::vector<uint32_t> found;
        for (const auto & e : edges(id)) {
            if (e.to != id) {
                found.push_back(e.to);
            } else {
                cycles[id] = 1;
            }
        }
        bool open    = true;
        int  skipped = 0;  // in a row, wherever in the alternative
        for (const auto & at : rules[id]) {
            const bool empty = at.type == LLAMA_GRETYPE_RULE_REF && nullable[at.value];
            skipped = empty ? skipped + 1 : 0;
            if (skipped > MOST_DEPTH) {
                throw std::runtime_error("more than " + std::to_string(MOST_DEPTH) +
                                         " things in a row may be empty, each of them or not");
            }
            if (ends(at)) {
                open = true;
            } else if (open && !empty) {
                stacks[id] += at.type != LLAMA_GRETYPE_RULE_REF;
                open = false;
            }
        }
        return found;
    }

    void finish(size_t id, const std::vector<uint32_t> & below) {
        int inner = 0;
        for (const uint32_t ref : below) {
            steps[id]  = std::min(MOST_STEPS + 1, steps[id] + steps[ref]);
            stacks[id] = std::min(MOST_STACKS + 1, stacks[id] + stacks[ref]);
            depth[id]  = std::max(depth[id], depth[ref] + 1);
            inner      = std::max(inner, cycles[ref]);
        }
        cycles[id] += inner;
        if (cycles[id] > MOST_CYCLES) {
            throw std::runtime_error("repetitions of what may be empty are nested too deeply");
        }
        state[id] = 2;
    }

    void run() {
        find_nullable();
        find_cycles();
        struct frame {
            size_t                id;
            std::vector<uint32_t> below;
            size_t                next;
        };
        int64_t all_steps = 0;
        for (size_t from = 0; from < rules.size(); ++from) {
            std::vector<frame> path;
            if (state[from] == 0) {
                state[from] = 1;
                path.push_back({from, leftmost(from), 0});
            }
            while (!path.empty()) {
                auto & top = path.back();
                if (top.next == top.below.size()) {
                    finish(top.id, top.below);
                    path.pop_back();
                    continue;
                }
                const uint32_t ref = top.below[top.next++];
                if (state[ref] == 0) {
                    state[ref] = 1;
                    path.push_back({ref, leftmost(ref), 0});
                }
            }
            all_steps += steps[from];
            const bool around = std::find(cycles.begin(), cycles.end(), 1) != cycles.end();
            if (all_steps > MOST_STEPS || (around && steps[from] > MOST_AROUND) || depth[from] > MOST_DEPTH) {
                throw std::runtime_error("its rules begin with each other in too many or too long chains");
            }
            if (stacks[from] > MOST_STACKS) {
                throw std::runtime_error("one of its rules can begin in more than " + std::to_string(MOST_STACKS) + " ways");
            }
        }
    }
};

void check(const llama_vocab * vocab, const char * text, const char * root) {
    // llama_grammar_parser::parse writes what is wrong to stderr; its parts throw it
    llama_grammar_parser parser(vocab);
    for (const char * at = after_space(text); *at;) {
        at = parser.parse_rule(at);
    }
    for (const auto & [name, id] : parser.symbol_ids) {
        if (id >= parser.rules.size() || parser.rules[id].empty()) {
            throw std::runtime_error("rule '" + name + "' is not defined");
        }
    }
    if (parser.symbol_ids.find(root) == parser.symbol_ids.end()) {
        throw std::runtime_error(std::string("it has no rule '") + root + "'");
    }
    for (const auto & rule : parser.rules) {
        for (const auto & at : rule) {
            if ((at.type == LLAMA_GRETYPE_TOKEN || at.type == LLAMA_GRETYPE_TOKEN_NOT) && at.value >= vocab->n_tokens()) {
                throw std::runtime_error("the vocabulary has no token <[" + std::to_string(at.value) + "]>");
            }
        }
    }
    inspection(parser.rules).run();
}

struct grammar_deleter {
    void operator()(llama_grammar * grammar) const { llama_grammar_free_impl(grammar); }
};
using grammar_ptr = std::unique_ptr<llama_grammar, grammar_deleter>;

// llama.cpp's own grammar sampler keeps its state to itself, and with it how long the text has become that its trigger
// patterns are matched against at every token. This one does the same on the same functions, and looks after that.
struct grammar_link {
    grammar_ptr now;
    grammar_ptr start;  // for reset
    bool        whole;  // a trigger pattern says where the output begins
};

bool says_where_output_begins(const char * pattern) {
    const std::string text = pattern;
    for (size_t at = text.find('^'); at != std::string::npos; at = text.find('^', at + 1)) {
        if (at == 0 || (text[at - 1] != '[' && text[at - 1] != '\\')) {
            return true;
        }
    }
    return false;
}

grammar_ptr copy(const grammar_ptr & grammar) {
    return grammar_ptr(llama_grammar_clone_impl(*grammar));
}

void forget_beginning(llama_grammar & grammar) {
    auto & tokens = grammar.trigger_buffer_positions;
    const size_t size = grammar.trigger_buffer.size();
    size_t n = 0;
    while (n < tokens.size() && size - tokens[n].second.second >= WINDOW) {
        ++n;
    }
    const size_t bytes = n ? tokens[n - 1].second.second : 0;
    tokens.erase(tokens.begin(), tokens.begin() + n);
    grammar.trigger_buffer.erase(0, bytes);
    for (auto & token : tokens) {
        token.second.first -= bytes;
        token.second.second -= bytes;
    }
}

const char * grammar_name(const llama_sampler *) {
    return "grammar";
}

void grammar_accept(llama_sampler * smpl, llama_token token) {
    auto & self = *static_cast<grammar_link *>(smpl->ctx);
    auto & grammar = *self.now;
    if (grammar.awaiting_trigger && !self.whole) {
        forget_beginning(grammar);
    } else if (grammar.awaiting_trigger && grammar.trigger_buffer.size() > WHOLE) {
        throw std::runtime_error("no trigger in the first " + std::to_string(WHOLE) +
                                 " bytes: a pattern with ^ looks at all of them, and no further");
    }
    llama_grammar_accept_impl(grammar, token);
    if (grammar.stacks.size() > (size_t) MOST_STACKS) {
        throw std::runtime_error("the grammar can go on in more than " + std::to_string(MOST_STACKS) + " ways");
    }
}

void grammar_apply(llama_sampler * smpl, llama_token_data_array * cur) {
    llama_grammar_apply_impl(*static_cast<grammar_link *>(smpl->ctx)->now, cur);
    // upstream still calls candidates sorted whose best one is ruled out now, and divides by nothing in the next softmax
    if (cur->size > 0 && cur->data[0].logit == -INFINITY) {
        cur->sorted = false;
    }
}

void grammar_reset(llama_sampler * smpl) {
    auto & self = *static_cast<grammar_link *>(smpl->ctx);
    self.now = copy(self.start);
}

extern llama_sampler_i grammar_interface;

llama_sampler * grammar_clone(const llama_sampler * smpl) {
    const auto & self = *static_cast<const grammar_link *>(smpl->ctx);
    return llama_sampler_init(&grammar_interface, new grammar_link{copy(self.now), copy(self.start), self.whole});
}

void grammar_free(llama_sampler * smpl) {
    delete static_cast<grammar_link *>(smpl->ctx);
}

llama_sampler_i grammar_interface = {
    /* .name              = */ grammar_name,
    /* .accept            = */ grammar_accept,
    /* .apply             = */ grammar_apply,
    /* .reset             = */ grammar_reset,
    /* .clone             = */ grammar_clone,
    /* .free              = */ grammar_free,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

}  // namespace

llama_sampler * lr_grammar_new(const llama_vocab * vocab, const char * text, const char * root, bool lazy,
                               const char ** patterns, size_t n_patterns, const llama_token * tokens, size_t n_tokens,
                               char ** error) {
    try {
        check(vocab, text, root);
        grammar_ptr start(
            llama_grammar_init_impl(vocab, text, root, lazy, patterns, n_patterns, tokens, n_tokens));
        if (!start) {
            throw std::runtime_error("llama.cpp refuses it");
        }
#ifdef __GLIBCXX__
        // libstdc++'s usual way recurses for each character and takes 2^n steps for some patterns; this one does neither
        for (auto & trigger : start->trigger_patterns) {
            trigger.regex.assign(trigger.pattern, std::regex::ECMAScript | std::regex_constants::__polynomial);
        }
#endif
        const bool whole = std::any_of(patterns, patterns + n_patterns, says_where_output_begins);
        grammar_ptr now = copy(start);
        return llama_sampler_init(&grammar_interface, new grammar_link{std::move(now), std::move(start), whole});
    } catch (const std::exception & e) {
        *error = lr_copy_string(brief(e.what()));
    }
    return nullptr;
}
