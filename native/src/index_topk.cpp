// The indexer of sparse attention: scores every key a token sees, and keeps the k best positions.
#include <algorithm>
#include <functional>
#include <new>
#include <vector>

#include "attention_kernels.h"
#include "gallium/attention.h"
#include "ordered.h"
#include "pool.h"

namespace ga {
namespace {

struct Worker {
    std::vector<float> keys;       // one block
    std::vector<float> scores;     // one context
    std::vector<uint64_t> order;
};

float element(const ga_cache& c, int64_t at) {
    if (c.element == GA_KV_FLOAT32) return static_cast<const float*>(c.keys)[at];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(c.keys)[at]) << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void score_context(const ga_index_args& a, int64_t seq, int64_t token, int length, Worker& w) {
    const ga_cache& c = a.cache;
    const int dim = static_cast<int>(c.key_dim), size = static_cast<int>(c.block_size);
    const auto scores = attention_kernels().index_scores;
    for (int start = 0; start < length; start += size) {
        const int count = length - start < size ? length - start : size;
        const int64_t from = a.batch.block_tables[seq * a.batch.max_blocks + start / size] * c.block_size * dim;
        for (int64_t i = 0; i < static_cast<int64_t>(count) * dim; ++i) w.keys[i] = element(c, from + i);
        scores(a.q + token * a.q_stride, a.weights + token * a.weights_stride, static_cast<int>(a.heads), dim,
               w.keys.data(), count, w.scores.data() + start);
    }
}

void choose(const ga_index_args& a, int64_t token, int length, Worker& w) {
    for (int i = 0; i < length; ++i) w.order[i] = order_key(w.scores[i], static_cast<uint32_t>(i));
    const int kept = a.k < length ? static_cast<int>(a.k) : length;
    const auto begin = w.order.begin();
    std::nth_element(begin, begin + (kept < length ? kept : length - 1), begin + length, std::greater<uint64_t>());
    std::sort(begin, begin + kept, std::greater<uint64_t>());
    int32_t* out = a.positions + token * a.k;
    for (int64_t i = 0; i < a.k; ++i) out[i] = i < kept ? static_cast<int32_t>(index_of(w.order[i])) : -1;
}

void run(const ga_index_args& a) {
    std::vector<int32_t> seq_of;
    int longest = 1;
    for (int64_t s = 0; s < a.batch.seqs; ++s) {
        for (int t = a.batch.query_start[s]; t < a.batch.query_start[s + 1]; ++t) seq_of.push_back(static_cast<int>(s));
        longest = std::max(longest, a.batch.context_lens[s]);
    }
    std::vector<Worker> workers(threads());
    for (Worker& w : workers) {
        w.keys.resize(a.cache.block_size * a.cache.key_dim);
        w.scores.resize(longest);
        w.order.resize(longest);
    }
    parallel(static_cast<int>(seq_of.size()), [&](int token, int worker) {
        const int seq = seq_of[token];
        const int length = a.batch.context_lens[seq] - (a.batch.query_start[seq + 1] - token - 1);
        score_context(a, seq, token, length, workers[worker]);
        choose(a, token, length, workers[worker]);
    });
}

}  // namespace
}  // namespace ga

int32_t ga_index_topk(const ga_index_args* args) {
    try {
        ga::run(*args);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
