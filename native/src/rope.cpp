// Rotary embedding, and the fused step between the QKV projection and attention.
#include "gallium/rope.h"

#include "kv_cache.h"
#include "rows.h"
#include "vector_kernels.h"

void ga_rope(const ga_rope_args* args) {
    const ga_rope_args a = *args;
    const auto rope = ga::vector_kernels().rope;
    const int64_t row = a.heads * a.width;
    ga::for_rows(a.tokens, row * 2, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            rope(a.x + t * a.x_stride, a.y + t * row, a.heads, a.width, a.dim, a.table + t * 2 * a.dim,
                 a.interleaved != 0);
    });
}

void ga_qkv_prepare(const ga_qkv_args* args) {
    const ga_qkv_args a = *args;
    const auto& kernels = ga::vector_kernels();
    const int64_t width = a.cache.key_used, kv_heads = a.cache.kv_heads, all = a.heads + kv_heads;
    ga::for_rows(a.tokens, a.stride, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* qk = a.qkv + t * a.stride;
            if (a.q_gain)
                for (int64_t h = 0; h < all; ++h) {
                    float* head = qk + h * width;
                    kernels.norm(head, nullptr, h < a.heads ? a.q_gain : a.k_gain, nullptr, head, width,
                                 static_cast<float>(a.eps));
                }
            kernels.rope(qk, qk, all, width, a.dim, a.table + t * 2 * a.dim, a.interleaved != 0);
            ga::store_token(a.cache, a.slots[t], qk + a.heads * width, qk + all * width);
        }
    });
}
