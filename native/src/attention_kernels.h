// What one instruction-set level offers to attention.cpp, and the shape of one piece of attention work.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "gallium/attention.h"

namespace ga {

// Attention walks a context in chunks, sums chunks into splits, and merges splits in order. All three are aligned to
// positions, so that a query's arithmetic depends on its own position and on nothing else in the batch.
constexpr int kPanel = 16;                                 // keys per panel: one vector of scores
constexpr int kChunk = 64;                                 // keys per softmax update
constexpr int kSplit = 512;                                // keys per partial result
constexpr int kChunkPanels = kChunk / kPanel;

// Where one sequence's keys and values lie, for one KV head. Three layouts:
//  panels   keys [block][head][panel][dim/2][16][2], values [block][head][panel][8][v_dim][2] (bf16: pairs; float: split
//           into [..][2][16] and [16][v_dim]), read in place; of 8-bit codes each panel has its steps before it
//  rows     [block][head][offset][width], gathered into panels; for block sizes that are no multiple of 16
//  latent   as rows, with one row holding latent and rope key: the value is the start of the key
struct KvView {
    const void* keys;
    const void* values;
    const int32_t* blocks;     // block table of the sequence
    const int32_t* chosen;     // positions to visit instead of 0, 1, 2, …; or null
    int64_t head_offset;       // panels or rows before this head within a block
    int64_t block_units;       // panels or rows per block, all heads
    int32_t block_size;
    int32_t key_dim;           // width of a key row; even in panels
    int32_t value_dim;         // width of a value row; a multiple of 16 in panels
    int32_t key_width;         // elements between rows (rows and latent)
    int32_t value_width;
    bool panels;
    int element;               // GA_KV_FLOAT32, GA_KV_BFLOAT16 or GA_KV_INT8
};

// Queries that share one KV head: consecutive tokens of one sequence times the heads of the group. Or, for a split that
// several sequences share, tokens of all of these.
struct QueryTile {
    const float* q;            // first token, first head of the group
    const int32_t* places;     // of a token's query, counted in tokens from `q`; null: one after the other
    const float* q_rope;       // second part of the query (latent attention), or null
    float* out;
    int64_t q_stride, q_rope_stride, out_stride;  // elements between tokens
    int32_t tokens, group;
    int32_t first_length;      // keys that the first token sees; the next token sees one more
    int32_t q_dim, q_rope_dim, out_dim;
    float scale;
};

// Running softmax of the rows of a tile: maximum, sum and weighted values.
struct SoftmaxState {
    float* maximum;            // [rows]
    float* sum;                // [rows]
    float* mix;                // [rows][value dim rounded up to 16]
};

struct AttentionKernels {
    const char* level;
    // Bytes of scratch that the functions below need.
    size_t (*scratch_bytes)(const QueryTile&, const KvView&);
    // One split of keys, for every row that sees any of it.
    void (*split)(const QueryTile&, const KvView&, int split, const SoftmaxState&, void* scratch);
    // total = total merged with part; for the first split, total = part. Rows that do not reach the split keep theirs.
    void (*merge)(const QueryTile&, const KvView&, int split, const SoftmaxState& total, const SoftmaxState& part);
    // out = mix / sum
    void (*finish)(const QueryTile&, const KvView&, const SoftmaxState&);
    // y[i] = sum over heads of relu(q[h] . key[i]) * weight[h], for `count` float rows of `dim`
    void (*index_scores)(const float* q, const float* weights, int heads, int dim, const float* keys, int count,
                         float* y);
};

extern const AttentionKernels attention_portable;
extern const AttentionKernels attention_avx2;    // x86 only
extern const AttentionKernels attention_avx512;  // x86 only
extern const AttentionKernels attention_neon;    // arm64 only

// The table of the level in use.
const AttentionKernels& attention_kernels();

static inline int rows_of(const QueryTile& t) { return t.tokens * t.group; }
static inline int padded(int n) { return (n + 15) / 16 * 16; }
static inline int last_length(const QueryTile& t) { return t.first_length + t.tokens - 1; }
static inline int splits_of(const QueryTile& t) { return (last_length(t) + kSplit - 1) / kSplit; }

}  // namespace ga
