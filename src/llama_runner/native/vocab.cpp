// Text to tokens and back, many at once, on threads of our own; and what a text may ask of the stack.
//
// llama.cpp splits the text of many BPE vocabularies with std::regex, and libstdc++ matches by recursion: a stack frame or
// more for each character of a match. 26,000 letters in a row overflow 8 MiB and end the process. How deep a vocabulary
// goes for each character is measured once, on a stack that we own; a text that could need more than a caller surely has
// is tokenized on a thread with a stack of the size it needs, and refused where that would be absurd.

#include "llama_runner.h"

#include "llama-vocab.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifndef _WIN32
#    include <pthread.h>
#endif

namespace {

constexpr size_t KIB = 1024, MIB = 1024 * KIB;

constexpr size_t CALLER_STACK = 128 * KIB;  // what is surely left of the stack of whoever calls
constexpr size_t BASE_STACK   = MIB;        // what a thread of ours has beside the depth of its text
constexpr size_t MAX_STACK    = 512 * MIB;  // a text that could need more is refused
constexpr size_t INLINE_BYTES = 16 * KIB;   // less work than this is not worth a thread
constexpr size_t BYTES_A_THREAD = 8 * KIB;  // or as many tokens

// --- a thread with a stack of a chosen size ------------------------------------------------------

class worker {
public:
    worker()                           = default;
    worker(const worker &)             = delete;
    worker & operator=(const worker &) = delete;

#ifdef _WIN32
    // The matcher of Microsoft's library counts its own depth and gives up in time: any stack will do.
    bool start(void (*run)(void *), void * data, size_t) {
        try {
            thread = std::thread(run, data);
            return true;
        } catch (const std::exception &) {
            return false;
        }
    }
    void join() { thread.join(); }

private:
    std::thread thread;
#else
    bool start(void (*run)(void *), void * data, size_t stack_size, void * stack = nullptr) {
        body   = run;
        object = data;
        pthread_attr_t attr;
        if (pthread_attr_init(&attr) != 0) {
            return false;
        }
        constexpr size_t page = 64 * KIB;
        stack_size = (stack_size + page - 1) / page * page;
        const int refused = stack ? pthread_attr_setstack(&attr, stack, stack_size) :
                                    pthread_attr_setstacksize(&attr, stack_size);
        const bool ok = refused == 0 && pthread_create(&thread, &attr, enter, this) == 0;
        pthread_attr_destroy(&attr);
        return ok;
    }
    void join() { pthread_join(thread, nullptr); }

private:
    static void * enter(void * self) {
        auto * me = static_cast<worker *>(self);
        me->body(me->object);
        return nullptr;
    }
    void (*body)(void *) = nullptr;
    void *    object     = nullptr;
    pthread_t thread{};
#endif
};

// --- how deep a vocabulary's splitter recurses ---------------------------------------------------

#ifdef _WIN32
size_t stack_used(const llama_vocab &, const std::string &) {
    return 0;
}
#else
struct probe {
    const llama_vocab * vocab;
    const std::string * text;
};

void run_probe(void * data) {
    const auto * what = static_cast<probe *>(data);
    try {
        what->vocab->tokenize(*what->text, false, false);
    } catch (...) {
        // a vocabulary that cannot tokenize this much will say so when it is asked to
    }
}

// Bytes of the stack [low, low + size), zero before, that have been touched. A stack grows downwards without wide gaps.
size_t touched(const char * low, size_t size) {
    constexpr size_t block = 4 * KIB, gap = 64;
    static const char zeros[block] = {};
    const char *      lowest       = low + size;
    size_t            empty        = 0;
    for (const char * at = low + size; at > low && empty < gap;) {
        at -= block;
        if (memcmp(at, zeros, block) == 0) {
            empty++;
        } else {
            empty  = 0;
            lowest = std::find_if(at, at + block, [](char byte) { return byte != 0; });
        }
    }
    return static_cast<size_t>(low + size - lowest);
}

// Bytes of stack that tokenizing `text` takes: it runs on zeroed memory, which is looked at afterwards.
size_t stack_used(const llama_vocab & vocab, const std::string & text) {
    constexpr size_t size = 4 * MIB, align = 64 * KIB;
    std::unique_ptr<char, decltype(&free)> memory{static_cast<char *>(calloc(size + align, 1)), free};
    if (!memory) {
        throw std::bad_alloc();
    }
    char * stack = memory.get() + (align - reinterpret_cast<uintptr_t>(memory.get()) % align) % align;
    probe  what{&vocab, &text};
    worker thread;
    if (!thread.start(run_probe, &what, size, stack)) {
        throw std::runtime_error("no thread can be started");
    }
    thread.join();
    return touched(stack, size);
}
#endif

// Each of `units` over and over, in lines of `length` characters: whatever class of characters a vocabulary splits by is
// among them, alone and mixed.
std::string lines_of(const std::vector<std::vector<const char *>> & units, size_t length) {
    std::string text;
    for (const auto & unit : units) {
        for (size_t i = 0; i < length; i++) {
            text += unit[i % unit.size()];
        }
        text += "x\n";
    }
    return text;
}

const std::vector<std::vector<const char *>> UNBROKEN = {
    {"a"}, {"A"}, {"a", "A"}, {"7"}, {"."}, {"="}, {"'"}, {"_"}, {" "}, {"\n"}, {"\r", "\n"}, {"\t"},
    {"\xc3\xa9"},                      // a letter of Latin-1
    {"e", "\xcc\x81"}, {"\xcc\x81"},   // a combining mark
    {"\xe4\xb8\xad"}, {"\xe3\x81\x82"}, {"\xea\xb0\x80"}, {"\xe0\xb9\x80"}, {"\xd8\xa7"},  // Han, Kana, Hangul, Thai, Arabic
    {"\xf0\x9f\x98\x80"}, {"\xe2\x80\x98"}, {"\xef\xbc\x81"}, {"\xc2\xa0"}, {"\xee\x80\x80"},  // emoji, punctuation, …
    {"a", "1", ".", "\xc3\xa9", "B"}, {"a", "'", "s"}, {"1", "."}, {"<", "1"},
};
const std::vector<std::vector<const char *>> SPACED = {
    {"a", " "}, {"a", "b", " "}, {"1", " "}, {".", " "}, {"\xe4\xb8\xad", " "}, {"a", "\n"}, {".", "\n"}, {"a", "\t"},
    {"e", "\xcc\x81", " "}, {"a", "b", "1", ".", " "},
};

// Bytes of stack for each character of a match, 0 where the depth does not depend on the text.
size_t frame_size(const llama_vocab & vocab, const std::vector<std::vector<const char *>> & units) {
    constexpr size_t few = 16, many = 272, noise = 16;
    const size_t low = stack_used(vocab, lines_of(units, few)), high = stack_used(vocab, lines_of(units, many));
    const size_t frame = high > low ? (high - low) / (many - few) : 0;
    return frame < noise ? 0 : frame + frame / 2;
}

bool is_space(char byte) {
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

// Whether `size` bytes or more follow each other that are all spaces or all none. Looks at one place in `size`.
bool has_run(const char * text, size_t length, size_t size) {
    for (size_t at = 0; at < length; at += size) {
        const bool kind = is_space(text[at]);
        size_t first = at, last = at + 1;
        while (first > 0 && at - first < size && is_space(text[first - 1]) == kind) {
            first--;
        }
        while (last < length && last - first < size && is_space(text[last]) == kind) {
            last++;
        }
        if (last - first >= size) {
            return true;
        }
    }
    return false;
}

// The longest run that a match can cover, in characters: spaces, no spaces, spaces.
size_t longest_run(const char * text, size_t length) {
    size_t longest = 0, before = 0, inside = 0, after = 0;
    for (size_t i = 0; i < length; i++) {
        if (is_space(text[i])) {
            (inside == 0 ? before : after)++;
        } else if ((text[i] & 0xC0) != 0x80) {
            if (after != 0) {
                longest = std::max(longest, before + inside + after);
                before  = after;
                inside = after = 0;
            }
            inside++;
        }
    }
    return std::max(longest, before + inside + after);
}

// --- one text ------------------------------------------------------------------------------------

struct problem {
    int         code = LR_TEXT_OK;
    std::string text;
};


}  // namespace

struct lr_vocab {
    const llama_vocab & vocab;

    std::once_flag probed;
    size_t         frame         = 0;      // bytes of stack for each character of a match
    bool           across_spaces = false;  // a match may be longer than a run without spaces

    explicit lr_vocab(const llama_vocab & vocab) : vocab(vocab) {}

    // Bytes of stack that tokenizing the text may need beside BASE_STACK.
    size_t depth(const char * text, size_t size) {
        if (vocab.get_type() != LLAMA_VOCAB_TYPE_BPE || size < 128) {
            return 0;
        }
        std::call_once(probed, [this] {
            const size_t spaced = frame_size(vocab, SPACED);
            across_spaces       = spaced != 0;
            frame               = std::max(spaced, frame_size(vocab, UNBROKEN));
        });
        if (frame == 0) {
            return 0;
        }
        if (across_spaces) {
            return frame * size;
        }
        // the rule: three short runs in a row are within what every caller has
        const size_t brief = std::max<size_t>(CALLER_STACK / (3 * frame), 8);
        return has_run(text, size, brief) ? frame * longest_run(text, size) : 0;
    }

    // What llama.cpp would assert, or never come back from.
    problem cannot_tokenize(bool add_special) const {
        const auto type = vocab.get_type();
        const bool wpm  = type == LLAMA_VOCAB_TYPE_WPM;
        const bool marks = type == LLAMA_VOCAB_TYPE_SPM || type == LLAMA_VOCAB_TYPE_BPE || type == LLAMA_VOCAB_TYPE_UGM;
        if (add_special && (wpm || (marks && vocab.get_add_bos())) && vocab.token_bos() == LLAMA_TOKEN_NULL) {
            return {LR_TEXT_CAPABILITY, "cannot be tokenized: the model wants BOS before a text and has no such token: pass add_special=False"};
        }
        if (add_special && wpm && vocab.token_sep() == LLAMA_TOKEN_NULL) {
            return {LR_TEXT_CAPABILITY, "cannot be tokenized: the model wants SEP after a text and has no such token: pass add_special=False"};
        }
        if (add_special && marks && vocab.get_add_eos() && vocab.token_eos() == LLAMA_TOKEN_NULL) {
            return {LR_TEXT_CAPABILITY, "cannot be tokenized: the model wants EOS after a text and has no such token: pass add_special=False"};
        }
        if (type == LLAMA_VOCAB_TYPE_RWKV && !every_first_byte_is_a_token()) {
            return {LR_TEXT_CAPABILITY, "cannot be tokenized: a token of this vocabulary begins with a byte that is no token: llama.cpp would "
                                        "never end"};
        }
        return {};
    }

private:
    bool every_first_byte_is_a_token() const {
        bool first[256] = {}, single[256] = {};
        for (llama_token id = 0; id < (llama_token) vocab.n_tokens(); id++) {
            const std::string & piece = vocab.token_to_piece(id);
            if (!piece.empty()) {
                first[(unsigned char) piece[0]] = true;
                single[(unsigned char) piece[0]] |= piece.size() == 1;
            }
        }
        return std::equal(std::begin(first), std::end(first), std::begin(single));
    }
};

lr_vocab * lr_vocab_new(const llama_vocab * vocab) {
    return new (std::nothrow) lr_vocab(*vocab);
}

void lr_vocab_free(lr_vocab * vocab) {
    delete vocab;
}

size_t lr_vocab_frame_size(lr_vocab * vocab) {
    try {
        const std::string text(128, ' ');
        vocab->depth(text.data(), text.size());
    } catch (...) {
        return 0;
    }
    return vocab->frame;
}

// --- many texts ----------------------------------------------------------------------------------

struct lr_text_job {
    struct input {
        const void * data;
        size_t       size;  // bytes of a text, or tokens
    };

    lr_vocab & owner;
    const bool to_tokens;
    const bool first_switch, second_switch;

    std::vector<input>                    inputs;
    std::vector<std::vector<llama_token>> tokens;
    std::vector<std::string>              texts;

    std::vector<std::unique_ptr<worker>> workers;
    std::atomic<size_t>                  next{0};
    std::atomic<bool>                    stopped{false};

    std::mutex              mutex;
    std::condition_variable ended;
    size_t                  running  = 0;
    size_t                  bad      = 0;
    problem                 what;
    lr_guard *              left_with = nullptr;

    lr_text_job(lr_vocab & owner, bool to_tokens, bool first_switch, bool second_switch) :
        owner(owner), to_tokens(to_tokens), first_switch(first_switch), second_switch(second_switch) {}

    ~lr_text_job() {
        for (auto & thread : workers) {
            thread->join();
        }
    }

    void fail(size_t index, problem found) {
        stopped.store(true, std::memory_order_relaxed);
        std::lock_guard<std::mutex> lock(mutex);
        // Inputs are taken in order and each that was taken is finished: the first bad one is always found.
        if (what.code == LR_TEXT_OK || index < bad) {
            bad  = index;
            what = std::move(found);
        }
    }

    void tokenize(size_t i) {
        const auto & in = inputs[i];
        auto found = owner.vocab.tokenize(std::string(static_cast<const char *>(in.data), in.size), first_switch,
                                          second_switch);
        if (found.size() > (size_t) std::numeric_limits<int32_t>::max()) {
            fail(i, {LR_TEXT_ARGUMENT, "has more tokens than llama.cpp can count"});
            return;
        }
        const auto n_vocab = (llama_token) owner.vocab.n_tokens();
        for (const llama_token token : found) {
            if (token < 0 || token >= n_vocab) {
                fail(i, {LR_TEXT_CAPABILITY, "has characters that this vocabulary has no token for, nor one for unknown text"});
                return;
            }
        }
        tokens[i] = std::move(found);
    }

    void detokenize(size_t i) {
        const auto * ids   = static_cast<const llama_token *>(inputs[i].data);
        const size_t count = inputs[i].size;
        size_t room = 0;
        for (size_t k = 0; k < count; k++) {
            room += owner.vocab.token_to_piece(ids[k]).size();
        }
        if (room > (size_t) std::numeric_limits<int32_t>::max() || count > (size_t) std::numeric_limits<int32_t>::max()) {
            fail(i, {LR_TEXT_ARGUMENT, "stands for more than 2 GiB of text"});
            return;
        }
        std::string text(std::max<size_t>(room, 1), '\0');
        const int32_t size = owner.vocab.detokenize(ids, (int32_t) count, &text[0], (int32_t) text.size(), first_switch,
                                                    second_switch);
        if (size < 0) {
            fail(i, {LR_TEXT_FAILED, "has more text than its pieces"});
            return;
        }
        text.resize(size);
        texts[i] = std::move(text);
    }

    // Takes inputs until none is left. Nothing unwinds out of it.
    void work() {
        for (;;) {
            const size_t i = stopped.load(std::memory_order_relaxed) ? inputs.size() : next.fetch_add(1);
            if (i >= inputs.size()) {
                return;
            }
            try {
                to_tokens ? tokenize(i) : detokenize(i);
            } catch (const std::bad_alloc &) {
                fail(i, {LR_TEXT_MEMORY, "needs more memory than there is"});
            } catch (const std::length_error &) {
                fail(i, {LR_TEXT_MEMORY, "needs more memory than there is"});
            } catch (const std::out_of_range &) {
                fail(i, {LR_TEXT_CAPABILITY, "has characters that this vocabulary has no token for"});
            } catch (const std::exception & e) {
                fail(i, {LR_TEXT_FAILED, std::string("made llama.cpp fail: ") + e.what()});
            } catch (...) {
                fail(i, {LR_TEXT_FAILED, "made llama.cpp fail with an unknown C++ exception"});
            }
        }
    }

    static void work_and_leave(void * self) {
        auto * job = static_cast<lr_text_job *>(self);
        job->work();
        std::lock_guard<std::mutex> lock(job->mutex);
        if (--job->running == 0) {
            if (job->left_with) {
                lr_guard_end_shared(job->left_with);
            }
            job->ended.notify_all();
        }
    }

    // False with `what` set where some text asks too much.
    bool plan(size_t & cost, size_t & stack) {
        cost = stack = 0;
        for (size_t i = 0; i < inputs.size(); i++) {
            cost += inputs[i].size;
            if (!to_tokens) {
                continue;
            }
            const size_t depth = owner.depth(static_cast<const char *>(inputs[i].data), inputs[i].size);
            if (depth > MAX_STACK) {
                fail(i, {LR_TEXT_ARGUMENT,
                         "has a run of " + std::to_string(depth / owner.frame) + " characters that " +
                             (owner.across_spaces ? "this vocabulary splits as a whole" : "no space divides") +
                             ": llama.cpp splits the text of this vocabulary by recursion, here at most " +
                             std::to_string(MAX_STACK / owner.frame) + " characters deep"});
                return false;
            }
            stack = std::max(stack, depth);
        }
        return true;
    }

    void start(size_t n_threads) {
        try {
            if (to_tokens) {
                problem found = owner.cannot_tokenize(first_switch);
                if (found.code != LR_TEXT_OK) {
                    fail(0, std::move(found));
                    return;
                }
            }
            size_t cost, stack;
            if (!plan(cost, stack)) {
                return;
            }
            to_tokens ? tokens.resize(inputs.size()) : texts.resize(inputs.size());
            if (stack <= CALLER_STACK && cost < INLINE_BYTES) {
                work();
                return;
            }
            const size_t wanted = std::max<size_t>(1, std::min({n_threads, inputs.size(), cost / BYTES_A_THREAD}));
            for (size_t i = 0; i < wanted; i++) {
                workers.push_back(std::make_unique<worker>());
                std::lock_guard<std::mutex> lock(mutex);
                if (!workers.back()->start(work_and_leave, this, BASE_STACK + stack)) {
                    workers.pop_back();
                    break;
                }
                running++;
            }
            if (workers.empty()) {
                fail(0, {LR_TEXT_MEMORY, "needs a thread with a stack of " + std::to_string((BASE_STACK + stack) / MIB) +
                                         " MiB, and the system gives none"});
            }
        } catch (const std::bad_alloc &) {
            fail(0, {LR_TEXT_MEMORY, "needs more memory than there is"});
        } catch (const std::exception & e) {
            fail(0, {LR_TEXT_FAILED, std::string("cannot be worked on: ") + e.what()});
        }
    }
};

lr_text_job * lr_tokenize_new(lr_vocab * vocab, bool add_special, bool parse_special) {
    return new (std::nothrow) lr_text_job(*vocab, true, add_special, parse_special);
}

lr_text_job * lr_detokenize_new(lr_vocab * vocab, bool remove_special, bool unparse_special) {
    return new (std::nothrow) lr_text_job(*vocab, false, remove_special, unparse_special);
}

void lr_text_job_free(lr_text_job * job) {
    delete job;
}

bool lr_text_job_add(lr_text_job * job, const void * data, size_t size) {
    try {
        job->inputs.push_back({data, size});
        return true;
    } catch (...) {
        return false;
    }
}

void lr_text_job_start(lr_text_job * job, int n_threads) {
    job->start((size_t) n_threads);
}

bool lr_text_job_wait(lr_text_job * job, int64_t timeout_us) {
    std::unique_lock<std::mutex> lock(job->mutex);
    return job->ended.wait_for(lock, std::chrono::microseconds(timeout_us), [job] { return job->running == 0; });
}

bool lr_text_job_leave(lr_text_job * job, lr_guard * guard) {
    job->stopped.store(true, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(job->mutex);
    if (job->running == 0) {
        return false;
    }
    if (guard) {
        job->left_with = guard;
    }
    return true;
}

int lr_text_job_error(const lr_text_job * job, size_t * index, const char ** text) {
    *index = job->bad;
    *text  = job->what.text.c_str();
    return job->what.code;
}

const void * lr_text_job_item(const lr_text_job * job, size_t index, size_t * size) {
    if (job->to_tokens) {
        *size = job->tokens[index].size();
        return job->tokens[index].data();
    }
    *size = job->texts[index].size();
    return job->texts[index].data();
}

// --- the whole vocabulary ------------------------------------------------------------------------

namespace {

bool hidden(const llama_vocab & vocab, llama_token token) {
    return vocab.token_get_attr(token) & (LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_CONTROL);
}

}  // namespace

size_t lr_pieces(const llama_vocab * vocab, const llama_token * tokens, size_t count, bool special, char * out,
                 int64_t * offsets) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        const llama_token token = tokens ? tokens[i] : (llama_token) i;
        if (offsets) {
            offsets[i] = (int64_t) total;
        }
        if (special || !hidden(*vocab, token)) {
            const std::string & piece = vocab->token_to_piece(token);
            if (out) {
                memcpy(out + total, piece.data(), piece.size());
            }
            total += piece.size();
        }
    }
    if (offsets) {
        offsets[count] = (int64_t) total;
    }
    return total;
}

void lr_vocab_scores(const llama_vocab * vocab, float * out) {
    const auto count = (llama_token) vocab->n_tokens();
    for (llama_token token = 0; token < count; token++) {
        out[token] = vocab->token_get_score(token);
    }
}

void lr_vocab_attrs(const llama_vocab * vocab, int32_t * out) {
    const auto count = (llama_token) vocab->n_tokens();
    for (llama_token token = 0; token < count; token++) {
        out[token] = (int32_t) vocab->token_get_attr(token);
    }
}
