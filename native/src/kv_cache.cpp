// Writers of the paged cache: panels for attention that reads in place, rows for the rest.
#include "kv_cache.h"

#include "half.h"
#include "round_even.h"
#include "rows.h"

namespace ga {
namespace {

inline void put(float* to, float x) { *to = x; }

inline void put(uint16_t* to, float x) { *to = float_to_bf16(x); }

constexpr int64_t kLanes = 16;

// Element (d, lane) of a key panel and (lane, d) of a value panel.
inline int64_t key_at(const uint16_t*, int64_t d, int64_t lane) { return (d / 2) * 2 * kLanes + lane * 2 + d % 2; }
inline int64_t key_at(const float*, int64_t d, int64_t lane) { return d * kLanes + lane; }
inline int64_t value_at(const uint16_t*, int64_t width, int64_t lane, int64_t d) {
    return (lane / 2) * 2 * width + d * 2 + lane % 2;
}
inline int64_t value_at(const float*, int64_t width, int64_t lane, int64_t d) { return lane * width + d; }

template <class T>
void store_panels(const ga_cache& c, int64_t block, int64_t offset, const float* k, const float* v) {
    const int64_t panels = c.block_size / kLanes, lane = offset % kLanes;
    for (int64_t h = 0; h < c.kv_heads; ++h) {
        const int64_t panel = (block * c.kv_heads + h) * panels + offset / kLanes;
        T* key = static_cast<T*>(c.keys) + panel * kLanes * c.key_dim;
        T* value = static_cast<T*>(c.values) + panel * kLanes * c.value_dim;
        for (int64_t d = 0; d < c.key_used; ++d) put(key + key_at(key, d, lane), k[h * c.key_used + d]);
        for (int64_t d = 0; d < c.value_used; ++d)
            put(value + value_at(value, c.value_dim, lane, d), v[h * c.value_used + d]);
    }
}

// The step of a vector: its largest magnitude is 127 steps. Not a number if one of x is not finite.
inline float step_of(const float* x, int64_t count) {
    float most = 0.0f;
    for (int64_t d = 0; d < count; ++d) {
        const float a = x[d] < 0.0f ? -x[d] : x[d];
        if (!(a <= 3.402823466e38f)) return __builtin_nanf("");
        most = a > most ? a : most;
    }
    return most / 127.0f;
}

// x / step to the nearest integer, half to even; |x| <= 127 steps.
inline int8_t code_of(float x, float step) {
    if (!(step > 0.0f)) return 0;
    const float steps = x / step;  // beyond 127 only where steps are subnormal
    return static_cast<int8_t>(round_even(steps > 127.0f ? 127.0f : steps < -127.0f ? -127.0f : steps));
}

// Codes lie as bfloat16 does; before those of each panel are the steps of its keys.
void store_codes(const ga_cache& c, int64_t block, int64_t offset, const float* k, const float* v) {
    constexpr int64_t steps = kLanes * static_cast<int64_t>(sizeof(float));
    const int64_t panels = c.block_size / kLanes, lane = offset % kLanes;
    const uint16_t* like = nullptr;
    for (int64_t h = 0; h < c.kv_heads; ++h) {
        const int64_t panel = (block * c.kv_heads + h) * panels + offset / kLanes;
        int8_t* key = static_cast<int8_t*>(c.keys) + panel * (kLanes * c.key_dim + steps);
        int8_t* value = static_cast<int8_t*>(c.values) + panel * (kLanes * c.value_dim + steps);
        const float* key_from = k + h * c.key_used;
        const float* value_from = v + h * c.value_used;
        const float key_step = step_of(key_from, c.key_used), value_step = step_of(value_from, c.value_used);
        reinterpret_cast<float*>(key)[lane] = key_step;
        reinterpret_cast<float*>(value)[lane] = value_step;
        for (int64_t d = 0; d < c.key_used; ++d) key[steps + key_at(like, d, lane)] = code_of(key_from[d], key_step);
        for (int64_t d = 0; d < c.value_used; ++d)
            value[steps + value_at(like, c.value_dim, lane, d)] = code_of(value_from[d], value_step);
    }
}

template <class T>
void store_rows(const ga_cache& c, int64_t block, int64_t offset, const float* k, const float* v) {
    for (int64_t h = 0; h < c.kv_heads; ++h) {
        const int64_t row = (block * c.kv_heads + h) * c.block_size + offset;
        T* key = static_cast<T*>(c.keys) + row * c.key_dim;
        T* value = static_cast<T*>(c.values) + row * c.value_dim;
        for (int64_t d = 0; d < c.key_used; ++d) put(key + d, k[h * c.key_used + d]);
        for (int64_t d = 0; d < c.value_used; ++d) put(value + d, v[h * c.value_used + d]);
    }
}

template <class T>
void store_latent(const ga_cache& c, int64_t slot, const float* latent, const float* rope_key) {
    T* row = static_cast<T*>(c.keys) + slot * c.key_dim;
    for (int64_t d = 0; d < c.value_dim; ++d) put(row + d, latent[d]);
    for (int64_t d = c.value_dim; d < c.key_dim; ++d) put(row + d, rope_key[d - c.value_dim]);
}

template <class T>
void store(const ga_cache& c, int32_t slot, const float* k, const float* v) {
    if (c.layout == 0)
        store_panels<T>(c, slot / c.block_size, slot % c.block_size, k, v);
    else if (c.layout == 1)
        store_rows<T>(c, slot / c.block_size, slot % c.block_size, k, v);
    else
        store_latent<T>(c, slot, k, v);
}

}  // namespace

void store_token(const ga_cache& cache, int32_t slot, const float* k, const float* v) {
    if (cache.element == GA_KV_INT8)
        store_codes(cache, slot / cache.block_size, slot % cache.block_size, k, v);
    else if (cache.element == GA_KV_BFLOAT16)
        store<uint16_t>(cache, slot, k, v);
    else
        store<float>(cache, slot, k, v);
}

}  // namespace ga

void ga_kv_write(const ga_kv_write_args* args) {
    const ga_kv_write_args a = *args;
    ga::for_rows(a.tokens, a.k_stride + a.v_stride, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            ga::store_token(a.cache, a.slots[t], a.k + t * a.k_stride, a.v ? a.v + t * a.v_stride : nullptr);
    });
}

int32_t ga_plan_slots(const ga_slots_args* args) {
    const ga_slots_args a = *args;
    if (a.batch.query_start[0] != 0 || a.batch.query_start[a.batch.seqs] != a.tokens) return 1;
    for (int64_t s = 0; s < a.batch.seqs; ++s) {
        const int64_t begin = a.batch.query_start[s], end = a.batch.query_start[s + 1], length = a.batch.context_lens[s];
        if (begin > end) return 1;
        if (length < end - begin) return 2;
        const int32_t* table = a.batch.block_tables + s * a.batch.max_blocks;
        const int64_t needed = (length + a.block_size - 1) / a.block_size;
        if (needed > a.batch.max_blocks) return 3;
        for (int64_t b = 0; b < needed; ++b)
            if (table[b] < 0 || table[b] >= a.blocks) return 3;
        for (int64_t t = begin; t < end; ++t) {
            const int64_t position = length - (end - t);
            if (a.positions[t] != position) return 2;
            a.slots[t] = static_cast<int32_t>(table[position / a.block_size] * a.block_size + position % a.block_size);
        }
    }
    return 0;
}
