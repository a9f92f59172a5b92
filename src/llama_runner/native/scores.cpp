#include "llama_runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

// The library itself is built for the oldest processor that a wheel runs on; these loops are worth their own versions.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#    define LR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#    define LR_CLONES
#endif

namespace {

constexpr int     LANES = 16;       // independent sums, which compilers turn into vectors without -ffast-math
constexpr int64_t BLOCK = 1 << 19;  // elements that are worth a thread of their own

uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

// The largest value; *nan is set where there is one that is no number. In integers that are ordered as the floats are,
// NaN above and below both infinities: compilers make vectors of that.
LR_CLONES float row_max(const float * x, int64_t n, bool * nan) {
    int32_t high = INT32_MIN, low = INT32_MAX;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = (int32_t) bits_of(x[i]);
        const int32_t key  = bits ^ ((bits >> 31) & 0x7fffffff);
        high               = key > high ? key : high;
        low                = key < low ? key : low;
    }
    *nan = high > 0x7f800000 || low < -0x7f800001;
    const int32_t bits = high ^ ((high >> 31) & 0x7fffffff);
    float         max;
    memcpy(&max, &bits, sizeof(max));
    return max;
}

// e^x for x <= 0 to about one unit in the last place, 0 below -87; written so that it becomes vector code.
inline float exp_negative(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float rounded = clamped * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to the nearest integer
    const float n       = rounded - 12582912.0f;
    const float r       = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float       p       = 1.9875691500e-4f;
    p                   = p * r + 1.3981999507e-3f;
    p                   = p * r + 8.3334519073e-3f;
    p                   = p * r + 4.1665795894e-2f;
    p                   = p * r + 1.6666665459e-1f;
    p                   = p * r + 5.0000001201e-1f;
    p                   = p * r * r + r + 1.0f;
    const uint32_t scaled = bits_of(p) + ((bits_of(rounded) - bits_of(12582912.0f)) << 23);
    float          y;
    memcpy(&y, &scaled, sizeof(y));
    return x < -87.0f ? 0.0f : y;
}

LR_CLONES double sum_exp(const float * x, int64_t n, float max) {
    double sums[LANES] = {};
    float  e[LANES];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            e[j] = exp_negative(x[i + j] - max);
        }
        for (int j = 0; j < LANES; ++j) {
            sums[j] += e[j];
        }
    }
    for (; i < n; ++i) {
        sums[0] += exp_negative(x[i] - max);
    }
    double sum = 0.0;
    for (double part : sums) {
        sum += part;
    }
    return sum;
}

// The logarithm of sum(exp(row)) in two parts: added up, a large maximum would swallow the other.
struct log_sum {
    double max, rest;

    float logprob(float x) const { return (float) ((x - max) - rest); }
};

LR_CLONES void logprobs_of(const float * x, int64_t n, log_sum sum, float * out) {
    for (int64_t i = 0; i < n; ++i) {
        out[i] = sum.logprob(x[i]);
    }
}

// Whether one of LANES values is above the bar.
LR_CLONES bool any_above(const float * x, float bar) {
    uint32_t any = 0;
    for (int j = 0; j < LANES; ++j) {
        any |= x[j] > bar;
    }
    return any != 0;
}

// The row's log_sum, or the reason why it has none.
int log_sum_exp(const float * x, int64_t n, log_sum * sum) {
    bool        nan;
    const float max = row_max(x, n, &nan);
    if (nan) {
        return LR_SCORES_NAN;
    }
    if (std::isinf(max)) {
        return max < 0 ? LR_SCORES_NOTHING : LR_SCORES_INFINITE;
    }
    *sum = { max, std::log(sum_exp(x, n, max)) };
    return LR_SCORES_OK;
}

struct entry {
    float   value;
    int32_t id;
};

// Larger values first, the lower id where they are equal.
bool before(const entry & a, const entry & b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The k best of a row, best first; `best` has room for k.
void top_of_row(const float * x, int64_t n, int64_t k, entry * best) {
    for (int64_t i = 0; i < k; ++i) {
        best[i] = { x[i], (int32_t) i };
    }
    std::make_heap(best, best + k, before);  // the worst of them on top
    for (int64_t i = k; i < n;) {
        if (i + LANES <= n && !any_above(x + i, best[0].value)) {
            i += LANES;
            continue;
        }
        const int64_t end = std::min(i + LANES, n);
        for (; i < end; ++i) {
            if (x[i] > best[0].value) {
                std::pop_heap(best, best + k, before);
                best[k - 1] = { x[i], (int32_t) i };
                std::push_heap(best, best + k, before);
            }
        }
    }
    std::sort_heap(best, best + k, before);
}

// Runs `row(i)` for each row, in several threads where that pays; the first row that fails, by its number, is reported.
template <typename Row> int each_row(const lr_rows * rows, int n_threads, int64_t * bad_row, Row row) {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> first_bad{rows->n_rows};
    std::vector<int8_t>  codes(rows->n_rows);
    const auto work = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < rows->n_rows;) {
            codes[i] = (int8_t) row(i, rows->data + i * rows->stride);
            if (codes[i] != LR_SCORES_OK) {
                int64_t seen = first_bad.load();
                while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
                }
                return;
            }
        }
    };
    const int64_t useful = std::min(rows->n_rows, rows->n_rows * rows->n_columns / BLOCK);
    const int64_t n_helpers = std::max<int64_t>(0, std::min<int64_t>(n_threads, useful) - 1);
    std::vector<std::thread> helpers;
    helpers.reserve(n_helpers);
    for (int64_t t = 0; t < n_helpers; ++t) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error &) {
            break;  // no thread to be had: the rest is done here
        }
    }
    work();
    for (auto & helper : helpers) {
        helper.join();
    }
    *bad_row = first_bad.load();
    return *bad_row < rows->n_rows ? codes[*bad_row] : LR_SCORES_OK;
}

template <typename Call> int guarded(Call call) {
    try {
        return call();
    } catch (const std::exception &) {
        return LR_SCORES_NO_MEMORY;
    }
}

}  // namespace

int64_t lr_first_not_finite(const float * data, int64_t n) {
    constexpr int64_t STEP = 4096;
    for (int64_t start = 0; start < n; start += STEP) {
        const int64_t end  = std::min(start + STEP, n);
        uint32_t      most = 0;
        for (int64_t i = start; i < end; ++i) {
            const uint32_t exponent = bits_of(data[i]) & 0x7f800000u;
            most                    = exponent > most ? exponent : most;
        }
        for (int64_t i = start; most == 0x7f800000u && i < end; ++i) {
            if (!std::isfinite(data[i])) {
                return i;
            }
        }
    }
    return -1;
}

int lr_log_softmax(const lr_rows * rows, float * out, int64_t out_stride, int n_threads, int64_t * bad_row) {
    return guarded([&] {
        return each_row(rows, n_threads, bad_row, [&](int64_t i, const float * x) {
            log_sum   sum{};
            const int code = log_sum_exp(x, rows->n_columns, &sum);
            if (code == LR_SCORES_OK) {
                logprobs_of(x, rows->n_columns, sum, out + i * out_stride);
            }
            return code;
        });
    });
}

int lr_logprobs(const lr_rows * rows, const int32_t * tokens, float * out, int n_threads, int64_t * bad_row) {
    return guarded([&] {
        return each_row(rows, n_threads, bad_row, [&](int64_t i, const float * x) {
            log_sum   sum{};
            const int code = log_sum_exp(x, rows->n_columns, &sum);
            out[i]         = sum.logprob(x[tokens[i]]);
            return code;
        });
    });
}

int lr_top_logprobs(const lr_rows * rows, int64_t k, int32_t * ids, float * out, int n_threads, int64_t * bad_row) {
    return guarded([&] {
        return each_row(rows, n_threads, bad_row, [&](int64_t i, const float * x) {
            log_sum   sum{};
            const int code = log_sum_exp(x, rows->n_columns, &sum);
            if (code != LR_SCORES_OK) {
                return code;
            }
            std::vector<entry> best;
            try {
                best.resize(k);
            } catch (const std::bad_alloc &) {
                return (int) LR_SCORES_NO_MEMORY;  // on a thread of its own it could go nowhere
            }
            top_of_row(x, rows->n_columns, k, best.data());
            for (int64_t j = 0; j < k; ++j) {
                ids[i * k + j] = best[j].id;
                out[i * k + j] = sum.logprob(best[j].value);
            }
            return code;
        });
    });
}

int lr_argmax(const lr_rows * rows, int32_t * ids, int n_threads, int64_t * bad_row) {
    return guarded([&] {
        return each_row(rows, n_threads, bad_row, [&](int64_t i, const float * x) {
            bool          nan;
            const float   max = row_max(x, rows->n_columns, &nan);
            const float * end = x + rows->n_columns;
            const float * at  = std::find(x, end, max);
            ids[i]            = at == end ? 0 : (int32_t) (at - x);
            return (int) (nan ? LR_SCORES_NAN : LR_SCORES_OK);
        });
    });
}
