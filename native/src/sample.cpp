// Sampling as ops/reference_sampling.py defines it, without sorting or drawing noise for the whole vocabulary.
#include "gallium/sample.h"

#include <math.h>

#include <algorithm>
#include <functional>
#include <new>
#include <vector>

#include "ordered.h"
#include "philox.h"
#include "pool.h"
#include "sample_kernels.h"

namespace ga {
namespace {

constexpr int64_t kFirstNucleus = 256;  // tokens sorted in the first attempt at top-p

// What one worker keeps between rows.
struct Worker {
    std::vector<float> adjusted;   // the row, padded with -inf to a multiple of kScan
    std::vector<uint64_t> order;   // candidates as order keys
    std::vector<uint32_t> ids;     // survivors
};

struct Row {
    const float* x;
    int64_t n;
    double temperature;
    float highest;
    uint64_t seed;
    int32_t position;

    double scaled(int64_t id) const { return static_cast<double>(x[id]) / temperature; }
    double relative(int64_t id) const { return exp(scaled(id) - static_cast<double>(highest) / temperature); }
};

// A copy of row r with penalties and biases applied, padding cut off.
void adjust(const ga_sample_args& a, int64_t r, Worker& w) {
    const int64_t padded = (a.vocab + kScan - 1) / kScan * kScan;
    w.adjusted.resize(padded);
    std::copy(a.logits + r * a.stride, a.logits + r * a.stride + a.vocab, w.adjusted.begin());
    std::fill(w.adjusted.begin() + a.vocab, w.adjusted.end(), -INFINITY);
    for (int32_t i = a.adjust_start[r]; i < a.adjust_start[r + 1]; ++i) {
        float& x = w.adjusted[a.adjust_ids[i]];
        x = (x > 0.0f ? x / a.adjust_scale[i] : x * a.adjust_scale[i]) + a.adjust_bias[i];
    }
}

int32_t first_at(const Row& row) {
    for (int64_t i = 0; i < row.n; ++i)
        if (row.x[i] == row.highest) return static_cast<int32_t>(i);
    return 0;
}

// The k best ids into w.ids, best first, ties to the lower id. Forbidden tokens (-inf) are left out.
void best(const Row& row, int64_t k, Worker& w) {
    const auto above = sample_kernels().above;
    const size_t capacity = static_cast<size_t>(std::max<int64_t>(2 * k, 1024));
    float limit = -INFINITY;
    w.order.clear();
    const auto shrink = [&] {
        if (w.order.size() <= static_cast<size_t>(k)) return;
        std::nth_element(w.order.begin(), w.order.begin() + (k - 1), w.order.end(), std::greater<uint64_t>());
        w.order.resize(k);
        limit = row.x[index_of(w.order.back())];
    };
    for (int64_t i = 0; i < row.n; i += kScan) {
        // Ids ascend, so a later token that only equals the limit has lost already.
        for (uint64_t bits = above(row.x + i, limit); bits; bits &= bits - 1) {
            const int64_t id = i + __builtin_ctzll(bits);
            w.order.push_back(order_key(row.x[id], static_cast<uint32_t>(id)));
        }
        if (w.order.size() >= capacity) shrink();
    }
    shrink();
    std::sort(w.order.begin(), w.order.end(), std::greater<uint64_t>());
    w.ids.clear();
    for (const uint64_t key : w.order) w.ids.push_back(index_of(key));
}

// Cuts the sorted w.ids where the probability before a token reaches top_p; the best always stays. False if the list
// ends before that.
bool cut_nucleus(const Row& row, double total, double top_p, Worker& w) {
    double before = 0.0;
    for (size_t i = 0; i < w.ids.size(); ++i) {
        if (i > 0 && !(before < top_p)) {
            w.ids.resize(i);
            return true;
        }
        before += row.relative(w.ids[i]) / total;
    }
    return false;
}

void nucleus(const Row& row, double top_p, Worker& w) {
    const double total = sample_kernels().sum_exp(row.x, row.n, row.highest, row.temperature);
    for (int64_t k = kFirstNucleus;; k *= 8) {
        best(row, std::min(k, row.n), w);
        if (cut_nucleus(row, total, top_p, w) || k >= row.n) return;
    }
}

// Every id whose probability is at least min_p of the best, in ascending order.
void likely(const Row& row, double min_p, Worker& w) {
    const auto above = sample_kernels().above;
    // A little low: the exact test follows.
    const float limit = static_cast<float>(row.highest + log(min_p) * row.temperature - 1e-3 * (1.0 + row.temperature) -
                                           1e-6 * fabs(row.highest));
    w.ids.clear();
    for (int64_t i = 0; i < row.n; i += kScan)
        for (uint64_t bits = above(row.x + i, limit); bits; bits &= bits - 1)
            w.ids.push_back(static_cast<uint32_t>(i + __builtin_ctzll(bits)));
}

// The best (score, id) so far; ties go to the lower id.
struct Winner {
    double score = -INFINITY;
    int64_t id = -1;

    void offer(double s, int64_t i) {
        if (s > score || (s == score && i < id)) {
            score = s;
            id = i;
        }
    }
};

double noisy(const Row& row, int64_t id) {
    const Words four = token_words(row.seed, row.position, static_cast<uint32_t>(id >> 2));
    return row.scaled(id) + gumbel(four.w[id & 3]);
}

int32_t draw_listed(const Row& row, const Worker& w) {
    Winner winner;
    for (const uint32_t id : w.ids) winner.offer(noisy(row, id), id);
    return static_cast<int32_t>(winner.id);
}

// Over the whole vocabulary, computing logarithms only for tokens that can still win.
int32_t draw_any(const Row& row) {
    const SampleKernels& kernels = sample_kernels();
    Winner winner;
    const int32_t likeliest = first_at(row);
    winner.offer(noisy(row, likeliest), likeliest);
    const float inverse = static_cast<float>(1.0 / row.temperature);
    uint32_t words[kScan];
    for (int64_t i = 0; i < row.n; i += kScan) {
        const float lead = static_cast<float>(row.scaled(likeliest) - winner.score);
        kernels.words(row.seed, row.position, static_cast<uint32_t>(i / 4), words);
        for (uint64_t bits = kernels.contenders(row.x + i, words, row.highest, inverse, lead); bits; bits &= bits - 1) {
            const int bit = __builtin_ctzll(bits);
            winner.offer(row.scaled(i + bit) + gumbel(words[bit]), i + bit);
        }
    }
    return static_cast<int32_t>(winner.id);
}

int32_t sample_row(const ga_sample_args& a, int64_t r, Worker& w) {
    adjust(a, r, w);
    Row row{w.adjusted.data(), a.vocab, a.temperature[r], 0.0f, a.seed[r], a.position[r]};
    row.highest = sample_kernels().maximum(row.x, row.n);
    if (row.temperature == 0.0 || row.highest == -INFINITY) return first_at(row);
    const int64_t top_k = a.top_k[r];
    const double top_p = a.top_p[r], min_p = a.min_p[r];
    if (top_k > 0 && top_k < row.n) {
        best(row, top_k, w);
        if (top_p < 1.0) {
            double total = 0.0;
            for (const uint32_t id : w.ids) total += row.relative(id);
            cut_nucleus(row, total, top_p, w);
        }
    } else if (top_p < 1.0) {
        nucleus(row, top_p, w);
    } else if (min_p > 0.0) {
        likely(row, min_p, w);
    } else {
        return draw_any(row);
    }
    if (min_p > 0.0)
        w.ids.erase(std::remove_if(w.ids.begin(), w.ids.end(),
                                   [&](uint32_t id) { return !(row.relative(id) >= min_p); }),
                    w.ids.end());
    return draw_listed(row, w);
}

}  // namespace
}  // namespace ga

int32_t ga_sample(const ga_sample_args* args) {
    const ga_sample_args a = *args;
    try {
        static thread_local std::vector<ga::Worker> workers;  // kept: fresh pages cost more than the scans
        workers.resize(ga::threads());
        for (ga::Worker& w : workers) {
            w.adjusted.reserve(a.vocab + ga::kScan);
            w.order.reserve(a.vocab + ga::kScan);
            w.ids.reserve(a.vocab);
        }
        ga::Worker* const mine = workers.data();
        ga::parallel(static_cast<int>(a.rows),
                     [&](int row, int worker) { a.ids[row] = ga::sample_row(a, row, mine[worker]); });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
