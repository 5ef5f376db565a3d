// Body of attention over a 16-lane vector type V: chunks into splits, merge, finish.
#pragma once
#include "attention_codes.h"
#include "attention_tiles.h"

namespace ga {

// The scratch of one worker, cut into its parts.
struct AttentionScratch {
    float* q;        // [rows][key dim]
    float* scores;   // [rows][kChunk]
    float* fade;     // [rows]
    float* keys;     // gathered panels
    float* values;
    float* q_step;        // 8-bit caches only: [rows]
    float* weight_step;   // [rows]
    int16_t* q_codes;     // [rows][code width]
    int16_t* weights;     // [rows][kChunk]
};

static inline int key_dim_of(const KvView& kv) { return (kv.key_dim + 1) / 2 * 2; }

static inline int code_width(const KvView& kv) { return padded(key_dim_of(kv)); }

template <class V>
size_t attention_scratch(const QueryTile& t, const KvView& kv) {
    const size_t rows = static_cast<size_t>(rows_of(t));
    const size_t gathered = kv.panels ? 0 : static_cast<size_t>(kChunk) * (key_dim_of(kv) + padded(kv.value_dim));
    const size_t codes = kv.element == GA_KV_INT8 ? rows * (2 + (code_width(kv) + kChunk) / 2) : 0;
    return sizeof(float) * (rows * (key_dim_of(kv) + kChunk + 1) + gathered + codes + 64);
}

static inline AttentionScratch cut(const QueryTile& t, const KvView& kv, void* scratch) {
    const size_t rows = static_cast<size_t>(rows_of(t));
    AttentionScratch s;
    s.q = static_cast<float*>(scratch);
    s.scores = s.q + rows * key_dim_of(kv);
    s.keys = s.scores + rows * kChunk;
    s.values = s.keys + (kv.panels ? 0 : static_cast<size_t>(kChunk) * key_dim_of(kv));
    s.fade = s.values + (kv.panels ? 0 : static_cast<size_t>(kChunk) * padded(kv.value_dim));
    s.q_step = s.fade + rows;
    s.weight_step = s.q_step + rows;
    s.q_codes = reinterpret_cast<int16_t*>(s.weight_step + rows);
    s.weights = s.q_codes + rows * code_width(kv);
    return s;
}

static inline void copy_queries(const QueryTile& t, int dim, float* to) {
    for (int i = 0; i < t.tokens; ++i) {
        const int64_t at = t.places ? t.places[i] : i;
        for (int h = 0; h < t.group; ++h, to += dim) {
            const float* q = t.q + at * t.q_stride + static_cast<int64_t>(h) * t.q_dim;
            int d = 0;
            for (; d < t.q_dim; ++d) to[d] = q[d];
            for (int r = 0; r < t.q_rope_dim; ++r, ++d)
                to[d] = t.q_rope[at * t.q_rope_stride + static_cast<int64_t>(h) * t.q_rope_dim + r];
            for (; d < dim; ++d) to[d] = 0.0f;
        }
    }
}

// Queries times the score's scale as 16-bit codes, each row with a step of its own.
template <class V>
void code_queries(const QueryTile& t, const KvView& kv, const AttentionScratch& s) {
    const int dim = key_dim_of(kv), width = code_width(kv), rows = rows_of(t);
    const float range = query_range(dim);
    for (int64_t r = 0; r < rows; ++r)
        s.q_step[r] = to_codes<V>(s.q + r * dim, dim, range, s.q_codes + r * width) * t.scale;
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
    fade = maximum == now ? 1.0f : V::first(V::exp(V::set1(maximum - now)));
    sum = sum * fade + V::reduce_add(V::add(V::add(s[0], s[1]), V::add(s[2], s[3])));
    maximum = now;
}

// The panels of one chunk, and those whose memory is fetched meanwhile: values while keys are read, then the next keys.
template <class T>
struct Panels {
    const T* keys[kChunkPanels];
    const T* values[kChunkPanels];
    const T* next[kChunkPanels];
    int count;
};

static inline int keys_seen(const QueryTile& t, int row, int start) {
    const int seen = t.first_length + row / t.group - start;
    return seen < kChunk ? seen : kChunk;
}

// One chunk: scores, softmax update, weighted values, for the tokens from `first` on.
template <class V, class T>
void chunk(const QueryTile& t, const KvView& kv, int start, int first, const Panels<T>& panels,
           const AttentionScratch& s, const SoftmaxState& state) {
    const int rows = rows_of(t), from = first * t.group, dim = key_dim_of(kv), value_dim = padded(kv.value_dim);
    scores_of<V, T>(s.q + static_cast<int64_t>(from) * dim, rows - from, dim, panels.keys, panels.values, panels.count,
                    t.scale, s.scores + static_cast<int64_t>(from) * kChunk);
    for (int r = from; r < rows; ++r)
        softmax_row<V>(s.scores + static_cast<int64_t>(r) * kChunk, keys_seen(t, r, start), state.maximum[r],
                       state.sum[r], s.fade[r]);
    // A token mixes exactly the keys that it sees: on the diagonal tokens go one by one, below it all at once.
    for (int i = first; i < t.tokens;) {
        const int seen = t.first_length + i - start;
        const int together = seen >= kChunk ? t.tokens - i : 1;
        const int64_t r = static_cast<int64_t>(i) * t.group;
        mix_values<V, V::kMixVectors, T>(s.scores + r * kChunk, s.fade + r, together * t.group, panels.values,
                                         panels.next, value_dim, 0, seen < kChunk ? seen : kChunk,
                                         state.mix + r * value_dim);
        i += together;
    }
}

// The same over 8-bit codes. Products and their sums are integers, so keys that a token does not see may go along with
// a weight of zero.
template <class V>
void chunk_of_codes(const QueryTile& t, const KvView& kv, int start, int first, const Panels<int8_t>& panels,
                    const AttentionScratch& s, const SoftmaxState& state) {
    const int rows = rows_of(t), from = first * t.group, value_dim = padded(kv.value_dim), width = code_width(kv);
    for (int p = 0; p < panels.count; ++p)
        score_codes<V, V::kCodeRows>(s.q_codes + static_cast<int64_t>(from) * width, s.q_step + from, rows - from,
                                    key_dim_of(kv), width, panels.keys + p, panels.values + p,
                                    s.scores + static_cast<int64_t>(from) * kChunk + p * kPanel);
    for (int r = from; r < rows; ++r) {
        float* scores = s.scores + static_cast<int64_t>(r) * kChunk;
        const int seen = keys_seen(t, r, start);
        softmax_row<V>(scores, seen, state.maximum[r], state.sum[r], s.fade[r]);
        s.weight_step[r] = weight_codes<V>(scores, seen, panels.values, s.weights + static_cast<int64_t>(r) * kChunk);
    }
    for (int d = 0; d < value_dim; d += 16) {
        const int8_t* values[kChunkPanels];
        const int8_t* next[kChunkPanels];
        for (int p = 0; p < panels.count; ++p) {
            values[p] = panels.values[p] + d * 2;
            next[p] = panels.next[p] + d * kPanel;
        }
        mix_codes<V, V::kCodeRows>(s.weights + static_cast<int64_t>(from) * kChunk, s.weight_step + from, s.fade + from,
                                  rows - from, values, next, panels.count, value_dim,
                                  state.mix + static_cast<int64_t>(from) * value_dim + d);
    }
}

// Where the panel of `position` lies, counted in panels; of keys and of values alike.
static inline int64_t panel_of(const KvView& kv, int position) {
    return kv.blocks[position / kv.block_size] * kv.block_units + kv.head_offset +
           position % kv.block_size / kPanel;
}

template <class T>
Panels<T> panels_in_place(const QueryTile& t, const KvView& kv, int start) {
    constexpr int head = sizeof(T) == 1 ? kStepBytes : 0;  // elements before a panel's codes
    const int64_t key_size = kPanel * kv.key_dim + head, value_size = kPanel * kv.value_dim + head;
    const auto* keys = static_cast<const T*>(kv.keys) + head;
    const auto* values = static_cast<const T*>(kv.values) + head;
    const int end = last_length(t), known = t.places ? t.first_length : end;  // so far the block table goes for certain
    Panels<T> found;
    found.count = 0;
    for (int position = start; position < end && found.count < kChunkPanels; position += kPanel) {
        const int64_t at = panel_of(kv, position);
        const int ahead = position + kChunk;
        found.keys[found.count] = keys + at * key_size;
        found.values[found.count] = values + at * value_size;
        found.next[found.count++] = keys + (ahead < known ? panel_of(kv, ahead) : at) * key_size;
    }
    return found;
}

template <class V>
void chunk_gathered(const QueryTile& t, const KvView& kv, int start, int first, const AttentionScratch& s,
                    const SoftmaxState& state) {
    const int left = last_length(t) - start, count = left < kChunk ? left : kChunk;
    if (kv.element == GA_KV_BFLOAT16)
        gather<V, uint16_t>(kv, start, count, s);
    else
        gather<V, float>(kv, start, count, s);
    Panels<float> panels;
    panels.count = (count + kPanel - 1) / kPanel;
    for (int p = 0; p < kChunkPanels; ++p) {
        panels.keys[p] = panels.next[p] = s.keys + static_cast<int64_t>(p) * kPanel * key_dim_of(kv);
        panels.values[p] = s.values + static_cast<int64_t>(p) * kPanel * padded(kv.value_dim);
    }
    chunk<V, float>(t, kv, start, first, panels, s, state);
}

// The first token of the tile that sees `position`.
static inline int first_token(const QueryTile& t, int position) {
    const int i = position - t.first_length + 1;
    return i < 0 ? 0 : i;
}

template <class V>
void attention_split(const QueryTile& t, const KvView& kv, int split, const SoftmaxState& state, void* scratch) {
    const AttentionScratch s = cut(t, kv, scratch);
    const int rows = rows_of(t), value_dim = padded(kv.value_dim);
    copy_queries(t, key_dim_of(kv), s.q);
    if (kv.element == GA_KV_INT8) code_queries<V>(t, kv, s);
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
        else if (kv.element == GA_KV_INT8)
            chunk_of_codes<V>(t, kv, start, first, panels_in_place<int8_t>(t, kv, start), s, state);
        else if (kv.element == GA_KV_BFLOAT16)
            chunk<V, uint16_t>(t, kv, start, first, panels_in_place<uint16_t>(t, kv, start), s, state);
        else
            chunk<V, float>(t, kv, start, first, panels_in_place<float>(t, kv, start), s, state);
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
