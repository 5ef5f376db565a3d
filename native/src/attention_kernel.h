// Body of attention over a 16-lane vector type V: chunks into splits, merge, finish.
#pragma once
#include "attention_tiles.h"

namespace ga {

// The scratch of one worker, cut into its parts.
struct AttentionScratch {
    float* q;        // [rows][key dim]
    float* scores;   // [rows][kChunk]
    float* fade;     // [rows]
    float* keys;     // gathered panels
    float* values;
};

static inline int key_dim_of(const KvView& kv) { return (kv.key_dim + 1) / 2 * 2; }

template <class V>
size_t attention_scratch(const QueryTile& t, const KvView& kv) {
    const size_t rows = static_cast<size_t>(rows_of(t));
    const size_t gathered = kv.panels ? 0 : static_cast<size_t>(kChunk) * (key_dim_of(kv) + padded(kv.value_dim));
    return sizeof(float) * (rows * (key_dim_of(kv) + kChunk + 1) + gathered + 64);
}

static inline AttentionScratch cut(const QueryTile& t, const KvView& kv, void* scratch) {
    const size_t rows = static_cast<size_t>(rows_of(t));
    AttentionScratch s;
    s.q = static_cast<float*>(scratch);
    s.scores = s.q + rows * key_dim_of(kv);
    s.keys = s.scores + rows * kChunk;
    s.values = s.keys + (kv.panels ? 0 : static_cast<size_t>(kChunk) * key_dim_of(kv));
    s.fade = s.values + (kv.panels ? 0 : static_cast<size_t>(kChunk) * padded(kv.value_dim));
    return s;
}

static inline void copy_queries(const QueryTile& t, int dim, float* to) {
    for (int i = 0; i < t.tokens; ++i)
        for (int h = 0; h < t.group; ++h, to += dim) {
            const float* q = t.q + i * t.q_stride + static_cast<int64_t>(h) * t.q_dim;
            int d = 0;
            for (; d < t.q_dim; ++d) to[d] = q[d];
            for (int r = 0; r < t.q_rope_dim; ++r, ++d)
                to[d] = t.q_rope[i * t.q_rope_stride + static_cast<int64_t>(h) * t.q_rope_dim + r];
            for (; d < dim; ++d) to[d] = 0.0f;
        }
}

static inline float element(const float* p) { return *p; }
static inline float element(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}

// Copies keys [start, start + count) into float panels: what the panel layout would hold.
template <class V, class T>
void gather(const KvView& kv, int start, int count, const AttentionScratch& s) {
    const int dim = key_dim_of(kv), value_dim = padded(kv.value_dim);
    for (int i = 0; i < count; ++i) {
        const int position = kv.chosen ? kv.chosen[start + i] : start + i;
        const int64_t unit = kv.blocks[position / kv.block_size] * kv.block_units + kv.head_offset +
                             position % kv.block_size;
        const T* key = static_cast<const T*>(kv.keys) + unit * kv.key_width;
        const T* value = static_cast<const T*>(kv.values) + unit * kv.value_width;
        float* k = s.keys + static_cast<int64_t>(i / kPanel) * kPanel * dim + i % kPanel;
        for (int d = 0; d < dim; ++d) k[d * kPanel] = d < kv.key_dim ? element(key + d) : 0.0f;
        float* v = s.values + static_cast<int64_t>(i) * value_dim;
        for (int d = 0; d < value_dim; ++d) v[d] = d < kv.value_dim ? element(value + d) : 0.0f;
    }
}

template <class V>
inline void softmax_row(float* scores, int count, float& maximum, float& sum, float& fade) {
    using F = typename V::F;
    const float lowest = -__builtin_inff();
    F s[kChunkPanels];
    for (int p = 0; p < kChunkPanels; ++p) s[p] = V::first_n(V::load(scores + p * kPanel), count - p * kPanel, lowest);
    const float highest = V::reduce_max(V::max(V::max(s[0], s[1]), V::max(s[2], s[3])));
    const float now = maximum > highest ? maximum : highest;
    const F base = V::set1(now);
    for (int p = 0; p < kChunkPanels; ++p) {
        s[p] = V::exp(V::sub(s[p], base));
        V::store(scores + p * kPanel, s[p]);
    }
    fade = V::first(V::exp(V::set1(maximum - now)));
    sum = sum * fade + V::reduce_add(V::add(V::add(s[0], s[1]), V::add(s[2], s[3])));
    maximum = now;
}

// One chunk: scores, softmax update, weighted values, for the tokens from `first` on.
template <class V, class T>
void chunk(const QueryTile& t, const KvView& kv, int start, int first, const T* const* keys, const T* const* values,
           const AttentionScratch& s, const SoftmaxState& state) {
    const int rows = rows_of(t), from = first * t.group, dim = key_dim_of(kv), value_dim = padded(kv.value_dim);
    const int left = last_length(t) - start;
    const int panels = left >= kChunk ? kChunkPanels : (left + kPanel - 1) / kPanel;
    scores_of<V, T>(s.q + static_cast<int64_t>(from) * dim, rows - from, dim, keys, panels, t.scale,
                    s.scores + static_cast<int64_t>(from) * kChunk);
    for (int r = from; r < rows; ++r) {
        const int seen = t.first_length + r / t.group - start;
        softmax_row<V>(s.scores + static_cast<int64_t>(r) * kChunk, seen < kChunk ? seen : kChunk, state.maximum[r],
                       state.sum[r], s.fade[r]);
    }
    // A token mixes exactly the keys that it sees: on the diagonal tokens go one by one, below it all at once.
    for (int i = first; i < t.tokens;) {
        const int seen = t.first_length + i - start;
        const int together = seen >= kChunk ? t.tokens - i : 1;
        const int64_t r = static_cast<int64_t>(i) * t.group;
        mix_values<V, V::kMixVectors, T>(s.scores + r * kChunk, s.fade + r, together * t.group, values, value_dim, 0,
                                         seen < kChunk ? seen : kChunk, state.mix + r * value_dim);
        i += together;
    }
}

template <class V, class T>
void chunk_in_place(const QueryTile& t, const KvView& kv, int start, int first, const AttentionScratch& s,
                    const SoftmaxState& state) {
    const T* keys[kChunkPanels];
    const T* values[kChunkPanels];
    const int left = last_length(t) - start;
    for (int p = 0; p < kChunkPanels && p * kPanel < left; ++p) {
        const int position = start + p * kPanel;
        const int64_t unit = kv.blocks[position / kv.block_size] * kv.block_units + kv.head_offset +
                             position % kv.block_size / kPanel;
        keys[p] = static_cast<const T*>(kv.keys) + unit * kPanel * kv.key_dim;
        values[p] = static_cast<const T*>(kv.values) + unit * kPanel * kv.value_dim;
    }
    chunk<V, T>(t, kv, start, first, keys, values, s, state);
}

template <class V>
void chunk_gathered(const QueryTile& t, const KvView& kv, int start, int first, const AttentionScratch& s,
                    const SoftmaxState& state) {
    const float* keys[kChunkPanels];
    const float* values[kChunkPanels];
    const int left = last_length(t) - start, count = left < kChunk ? left : kChunk;
    if (kv.bf16)
        gather<V, uint16_t>(kv, start, count, s);
    else
        gather<V, float>(kv, start, count, s);
    for (int p = 0; p < kChunkPanels; ++p) {
        keys[p] = s.keys + static_cast<int64_t>(p) * kPanel * key_dim_of(kv);
        values[p] = s.values + static_cast<int64_t>(p) * kPanel * padded(kv.value_dim);
    }
    chunk<V, float>(t, kv, start, first, keys, values, s, state);
}

// The first token that sees key `position`.
static inline int first_token(const QueryTile& t, int position) {
    const int i = position - t.first_length + 1;
    return i < 0 ? 0 : i;
}

template <class V>
void attention_split(const QueryTile& t, const KvView& kv, int split, const SoftmaxState& state, void* scratch) {
    const AttentionScratch s = cut(t, kv, scratch);
    const int rows = rows_of(t), value_dim = padded(kv.value_dim);
    copy_queries(t, key_dim_of(kv), s.q);
    for (int r = first_token(t, split * kSplit) * t.group; r < rows; ++r) {
        state.maximum[r] = -__builtin_inff();
        state.sum[r] = 0.0f;
        float* mix = state.mix + static_cast<int64_t>(r) * value_dim;
        for (int d = 0; d < value_dim; ++d) mix[d] = 0.0f;
    }
    const int end = (split + 1) * kSplit < last_length(t) ? (split + 1) * kSplit : last_length(t);
    for (int start = split * kSplit; start < end; start += kChunk) {
        const int first = first_token(t, start);
        if (!kv.panels)
            chunk_gathered<V>(t, kv, start, first, s, state);
        else if (kv.bf16)
            chunk_in_place<V, uint16_t>(t, kv, start, first, s, state);
        else
            chunk_in_place<V, float>(t, kv, start, first, s, state);
    }
}

template <class V>
void attention_merge(const QueryTile& t, const KvView& kv, int split, const SoftmaxState& total,
                     const SoftmaxState& part) {
    const int rows = rows_of(t), value_dim = padded(kv.value_dim);
    for (int r = first_token(t, split * kSplit) * t.group; r < rows; ++r) {
        float* to = total.mix + static_cast<int64_t>(r) * value_dim;
        const float* from = part.mix + static_cast<int64_t>(r) * value_dim;
        if (split == 0) {
            total.maximum[r] = part.maximum[r];
            total.sum[r] = part.sum[r];
            for (int d = 0; d < value_dim; ++d) to[d] = from[d];
            continue;
        }
        const float now = total.maximum[r] > part.maximum[r] ? total.maximum[r] : part.maximum[r];
        const typename V::F a = V::exp(V::set1(total.maximum[r] - now)), b = V::exp(V::set1(part.maximum[r] - now));
        total.sum[r] = total.sum[r] * V::first(a) + part.sum[r] * V::first(b);
        total.maximum[r] = now;
        for (int d = 0; d < value_dim; d += 16)
            V::store(to + d, V::fma(V::load(from + d), b, V::mul(V::load(to + d), a)));
    }
}

template <class V>
void attention_finish(const QueryTile& t, const KvView& kv, const SoftmaxState& state) {
    const int value_dim = padded(kv.value_dim);
    for (int r = 0; r < rows_of(t); ++r) {
        float* out = t.out + (r / t.group) * t.out_stride + static_cast<int64_t>(r % t.group) * t.out_dim;
        const float* mix = state.mix + static_cast<int64_t>(r) * value_dim;
        const bool sees = t.first_length + r / t.group > 0;  // false only for an empty selection
        for (int d = 0; d < t.out_dim; d += 16) {
            const int n = t.out_dim - d < 16 ? t.out_dim - d : 16;
            V::store_n(out + d, sees ? V::div(V::load(mix + d), V::set1(state.sum[r])) : V::zero(), n);
        }
    }
}

template <class V>
void index_score_rows(const float* q, const float* weights, int heads, int dim, const float* keys, int count,
                      float* y) {
    using F = typename V::F;
    for (int i = 0; i < count; ++i) {
        const float* key = keys + static_cast<int64_t>(i) * dim;
        float score = 0.0f;
        for (int h = 0; h < heads; ++h) {
            F sum = V::zero();
            for (int d = 0; d < dim; d += 16) {
                const int n = dim - d < 16 ? dim - d : 16;
                sum = V::fma(V::load_n(q + static_cast<int64_t>(h) * dim + d, n), V::load_n(key + d, n), sum);
            }
            const float dot = V::reduce_add(sum);
            score += (dot > 0.0f ? dot : 0.0f) * weights[h];
        }
        y[i] = score;
    }
}

template <class V>
constexpr AttentionKernels attention_table() {
    return {V::kName,           attention_scratch<V>, attention_split<V>, attention_merge<V>,
            attention_finish<V>, index_score_rows<V>};
}

}  // namespace ga
