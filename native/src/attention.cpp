// Paged attention: cuts a batch into query tiles, heads and splits, and hands them to the kernels of the level in use.
#include "gallium/attention.h"

#include <vector>

#include "attention_kernel.h"
#include "attention_shared.h"
#include "buffer.h"
#include "level.h"
#include "pool.h"
#include "simd_portable.h"

namespace ga {

const AttentionKernels attention_portable = attention_table<Portable>();

const AttentionKernels& attention_kernels() {
#if defined(GA_X86)
    if (level() >= Level::avx512) return attention_avx512;
    if (level() == Level::avx2) return attention_avx2;
#elif defined(GA_ARM)
    if (level() >= Level::neon) return attention_neon;
#endif
    return attention_portable;
}

namespace {

constexpr size_t kSplitBytes = size_t{64} << 20;    // most memory for partial results

class Attention {
public:
    explicit Attention(const ga_attend_args& args) : a(args), kernels(attention_kernels()) {
        group_ = static_cast<int>(a.heads / a.cache.kv_heads);
        cut_tiles();
    }

    bool run() {
        const int units = static_cast<int>(tiles_.size() * a.cache.kv_heads);
        if (units == 0) return true;
        int splits = 0;
        size_t scratch = 0, state = 0;
        for (int u = 0; u < units; u += static_cast<int>(a.cache.kv_heads)) {
            const QueryTile t = tile(u);
            const KvView kv = view(u);
            if (splits_of(t) > splits) splits = splits_of(t);
            scratch = larger(scratch, kernels.scratch_bytes(t, kv));
            state = larger(state, state_bytes(t, kv));
        }
        const bool few = units < 3 * threads() && splits > 1, shared = find_shared();
        if ((few || shared) && state * splits * units < kSplitBytes) return run_split(units, shared);
        return run_whole(units, line(scratch), line(state));
    }

private:
    static size_t larger(size_t x, size_t y) { return x > y ? x : y; }
    static size_t line(size_t bytes) { return (bytes + 63) / 64 * 64; }
    static size_t state_bytes(const QueryTile& t, const KvView& kv) {
        return sizeof(float) * rows_of(t) * (2 + static_cast<size_t>(padded(kv.value_dim)));
    }
    static SoftmaxState state_at(char* memory, const QueryTile& t) {
        float* f = reinterpret_cast<float*>(memory);
        return {f, f + rows_of(t), f + 2 * rows_of(t)};
    }
    static SoftmaxState from_row(const SoftmaxState& s, int64_t row, const KvView& kv) {
        return {s.maximum + row, s.sum + row, s.mix + row * padded(kv.value_dim)};
    }

    bool find_shared() {
        return !a.selected && a.cache.layout == 0 && shared_splits(a.batch, tiles_, group_, a.cache.block_size);
    }

    void cut_tiles() {
        const int per_tile = a.selected ? 1 : group_ >= kTileRows ? 1 : kTileRows / group_;
        for (int64_t s = 0; s < a.batch.seqs; ++s) {
            const int begin = a.batch.query_start[s], end = a.batch.query_start[s + 1];
            for (int t = begin; t < end; t += per_tile)
                tiles_.push_back({static_cast<int32_t>(s), t, end - t < per_tile ? end - t : per_tile});
        }
        if (a.selected) compact_selected();
    }

    // Positions >= 0 of each token's selection, in order.
    void compact_selected() {
        const int64_t tokens = a.batch.query_start[a.batch.seqs];
        chosen_.resize(static_cast<size_t>(tokens * a.selected_width));
        chosen_count_.assign(static_cast<size_t>(tokens), 0);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t i = 0; i < a.selected_width; ++i) {
                const int32_t position = a.selected[t * a.selected_width + i];
                if (position >= 0) chosen_[t * a.selected_width + chosen_count_[t]++] = position;
            }
    }

    // Unit u is one tile and one KV head; the last tiles, which see the most keys, come first.
    int unit_of(int tile, int head) const {
        return static_cast<int>((tiles_.size() - 1 - tile) * a.cache.kv_heads) + head;
    }
    const Tile& tile_of(int u) const { return tiles_[tiles_.size() - 1 - u / a.cache.kv_heads]; }

    QueryTile tile(int u) const {
        const Tile& t = tile_of(u);
        const int64_t head = u % a.cache.kv_heads * group_;
        const int32_t tokens_after = a.batch.query_start[t.seq + 1] - t.first - 1;
        QueryTile q;
        q.q = a.q + t.first * a.q_stride + head * a.q_dim;
        q.places = nullptr;
        q.q_rope = a.q_rope ? a.q_rope + t.first * a.q_rope_stride + head * a.q_rope_dim : nullptr;
        q.out = a.out + (t.first * a.heads + head) * a.out_dim;
        q.q_stride = a.q_stride;
        q.q_rope_stride = a.q_rope_stride;
        q.out_stride = a.heads * a.out_dim;
        q.tokens = t.tokens;
        q.group = group_;
        q.first_length = a.selected ? chosen_count_[t.first] : a.batch.context_lens[t.seq] - tokens_after;
        q.q_dim = static_cast<int32_t>(a.q_dim);
        q.q_rope_dim = a.q_rope ? static_cast<int32_t>(a.q_rope_dim) : 0;
        q.out_dim = static_cast<int32_t>(a.out_dim);
        q.scale = static_cast<float>(a.scale);
        return q;
    }

    KvView view(int u) const {
        const Tile& t = tile_of(u);
        const ga_cache& c = a.cache;
        KvView kv;
        kv.panels = c.layout == 0;
        kv.element = static_cast<int>(c.element);
        kv.keys = c.keys;
        kv.values = c.layout == 2 ? c.keys : c.values;
        kv.blocks = a.batch.block_tables + t.seq * a.batch.max_blocks;
        kv.chosen = a.selected ? chosen_.data() + t.first * a.selected_width : nullptr;
        const int64_t units = kv.panels ? c.block_size / kPanel : c.block_size;
        kv.head_offset = u % c.kv_heads * units;
        kv.block_units = c.kv_heads * units;
        kv.block_size = static_cast<int32_t>(c.block_size);
        kv.key_dim = static_cast<int32_t>(c.key_dim);
        kv.value_dim = static_cast<int32_t>(c.value_dim);
        kv.key_width = kv.key_dim;
        kv.value_width = c.layout == 2 ? kv.key_dim : kv.value_dim;
        return kv;
    }

    // Each unit walks all its splits.
    bool run_whole(int units, size_t scratch, size_t state) {
        const size_t each = scratch + 2 * state;
        char* memory = buffer().get(each * threads());
        if (!memory) return false;
        parallel(units, [&](int u, int worker) {
            char* mine = memory + each * worker;
            const QueryTile t = tile(u);
            const KvView kv = view(u);
            const SoftmaxState total = state_at(mine + scratch, t), part = state_at(mine + scratch + state, t);
            for (int s = 0; s < splits_of(t); ++s) {
                kernels.split(t, kv, s, s == 0 ? total : part, mine);
                if (s > 0) kernels.merge(t, kv, s, total, part);
            }
            kernels.finish(t, kv, total);
        });
        return true;
    }

    // The queries of a piece: those of its one tile, or those of all tiles that share the split.
    QueryTile queries(const Piece& piece, int head) const {
        const int unit = unit_of(piece.tiles[0], head);
        QueryTile q = tile(unit);
        if (piece.tiles.size() == 1) return q;
        q.q = a.q + static_cast<int64_t>(head) * group_ * a.q_dim;
        q.places = piece.places.data();
        q.tokens = static_cast<int32_t>(piece.places.size());
        q.first_length = (piece.split + 1) * kSplit;  // every token sees the whole split
        return q;
    }

    // Few units and long contexts, or contexts that begin alike: the splits themselves are shared out, then merged in
    // the same order as above.
    bool run_split(int units, bool shared) {
        const int heads = static_cast<int>(a.cache.kv_heads);
        std::vector<int> splits;
        for (size_t t = 0; t < tiles_.size(); ++t) {
            const int own = splits_of(tile(unit_of(static_cast<int>(t), 0)));
            splits.push_back(own > 0 ? own : 1);  // an empty selection has a result too: zeros
        }
        const auto pieces = cut_pieces(a.batch, tiles_, splits, group_, a.cache.block_size, shared);
        std::vector<size_t> at;  // where the partial results of each piece and head begin
        std::vector<std::vector<std::pair<int, int64_t>>> parts(tiles_.size());  // per tile and split: piece, first row
        size_t bytes = 0, scratch = 0;
        for (size_t p = 0; p < pieces.size(); ++p) {
            const QueryTile q = queries(pieces[p], 0);
            const KvView kv = view(unit_of(pieces[p].tiles[0], 0));
            scratch = larger(scratch, line(kernels.scratch_bytes(q, kv)));
            for (int h = 0; h < heads; ++h, bytes += line(state_bytes(q, kv))) at.push_back(bytes);
            int64_t row = 0;
            for (const int t : pieces[p].tiles) {
                parts[t].push_back({static_cast<int>(p), row});
                row += static_cast<int64_t>(tiles_[t].tokens) * group_;
            }
        }
        char* memory = buffer().get(bytes + scratch * threads());
        if (!memory) return false;
        parallel(static_cast<int>(pieces.size()) * heads, [&](int task, int worker) {
            const Piece& piece = pieces[task / heads];
            const QueryTile q = queries(piece, task % heads);
            kernels.split(q, view(unit_of(piece.tiles[0], task % heads)), piece.split, state_at(memory + at[task], q),
                          memory + bytes + scratch * worker);
        });
        parallel(units, [&](int u, int) {
            const QueryTile t = tile(u);
            const KvView kv = view(u);
            const int head = u % heads;
            const auto& mine = parts[tiles_.size() - 1 - u / heads];
            const auto part = [&](int s) {
                const int task = mine[s].first * heads + head;
                return from_row(state_at(memory + at[task], queries(pieces[mine[s].first], head)), mine[s].second, kv);
            };
            const SoftmaxState total = part(0);
            for (int s = 1; s < splits_of(t); ++s) kernels.merge(t, kv, s, total, part(s));
            kernels.finish(t, kv, total);
        });
        return true;
    }

    static Buffer& buffer() {
        thread_local Buffer kept;
        return kept;
    }

    const ga_attend_args& a;
    const AttentionKernels& kernels;
    int group_ = 1;
    std::vector<Tile> tiles_;
    std::vector<int32_t> chosen_, chosen_count_;
};

}  // namespace
}  // namespace ga

int32_t ga_attend(const ga_attend_args* args) {
    try {
        return ga::Attention(*args).run() ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
