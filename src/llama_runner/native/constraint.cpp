#include "constraint.h"

#include "constraint_vocab.h"
#include "shared.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

// --- a grammar and how far it has got

struct lr_constraint {
    lr_constraint_vocab * vocab;  // a reference of its own
    llg_matcher_ptr           start;  // llguidance cannot reset a matcher that failed
    llg_matcher_ptr           now;
    std::vector<uint32_t> mask;
    bool                  masked  = false;  // `mask` is of the present state
    size_t                n_taken = 0;
    size_t                n_after = 0;  // of them, ends that came after the grammar's own
    std::string           error;

    lr_constraint(lr_constraint_vocab * vocab, llg_matcher_ptr start)
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
            throw std::runtime_error(llg_error_of(now.get()));
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
            throw std::runtime_error(llg_error_of(now.get()));
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
        const bool known = taken.size() == 1 && masked && llg_bit(mask.data(), taken[0]);
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
            throw std::runtime_error(llg_error_of(now.get()));
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
            throw std::runtime_error(llg_error_of(now.get()));
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
            throw std::runtime_error(llg_error_of(now.get()));
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
        if (candidate.id < 0 || candidate.id >= self.vocab->n_vocab || !llg_bit(mask, (size_t) candidate.id)) {
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
