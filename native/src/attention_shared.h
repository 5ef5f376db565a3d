// Sequences whose contexts begin alike: which splits of keys several query tiles read from the same blocks.
#pragma once
#include <stdint.h>

#include <vector>

#include "attention_kernels.h"

namespace ga {

constexpr int kTileRows = 64;  // query rows that share one pass over the keys

struct Tile {
    int32_t seq, first, tokens;  // tokens [first, first + tokens) of the step
};

// One split of keys for the queries of one tile, or of several that read it from the same blocks and see all of it.
struct Piece {
    int split;
    std::vector<int> tiles;
    std::vector<int32_t> places;  // of several tiles: the tokens of all, in order
};

// Whether any two tiles share a split.
bool shared_splits(const ga_batch& batch, const std::vector<Tile>& tiles, int group, int64_t block_size);

// The first splits[t] splits of each tile t, in order; with `shared`, those in one piece that can be computed together.
std::vector<Piece> cut_pieces(const ga_batch& batch, const std::vector<Tile>& tiles, const std::vector<int>& splits,
                              int group, int64_t block_size, bool shared);

}  // namespace ga
