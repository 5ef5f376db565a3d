// Finds splits that several sequences share, by the numbers of their blocks.
#include "attention_shared.h"

#include <string.h>

#include <algorithm>

namespace ga {
namespace {

// Keys that the first token of a tile sees.
int seen_by_first(const ga_batch& batch, const Tile& t) {
    return batch.context_lens[t.seq] - (batch.query_start[t.seq + 1] - t.first - 1);
}

class Sharing {
public:
    Sharing(const ga_batch& batch, const std::vector<Tile>& tiles, int group, int64_t block_size)
        : batch_(batch), tiles_(tiles), group_(group), blocks_(static_cast<int>(kSplit / block_size)) {
        possible_ = kSplit % block_size == 0 && tiles.size() > 1;
    }

    // Tiles that see all of `split` and leave room for others, those with the same blocks side by side.
    std::vector<int> candidates(int split) const {
        std::vector<int> found;
        if (!possible_) return found;
        for (size_t t = 0; t < tiles_.size(); ++t)
            if (seen_by_first(batch_, tiles_[t]) >= (split + 1) * kSplit && 2 * rows(static_cast<int>(t)) <= kTileRows)
                found.push_back(static_cast<int>(t));
        std::sort(found.begin(), found.end(), [&](int x, int y) {
            const int order = compare(x, y, split);
            return order != 0 ? order < 0 : x < y;
        });
        return found;
    }

    int compare(int x, int y, int split) const {
        return memcmp(table(x) + split * blocks_, table(y) + split * blocks_, sizeof(int32_t) * blocks_);
    }
    int rows(int t) const { return tiles_[t].tokens * group_; }

private:
    const int32_t* table(int t) const { return batch_.block_tables + tiles_[t].seq * batch_.max_blocks; }

    const ga_batch& batch_;
    const std::vector<Tile>& tiles_;
    const int group_, blocks_;
    bool possible_;
};

void add_token_places(const Tile& t, std::vector<int32_t>& places) {
    for (int i = 0; i < t.tokens; ++i) places.push_back(t.first + i);
}

// The pieces of one split: runs of tiles with the same blocks, cut where they have too many rows.
void cut_split(const Sharing& sharing, const std::vector<Tile>& tiles, int split, std::vector<char>& taken,
               std::vector<Piece>& pieces) {
    const std::vector<int> order = sharing.candidates(split);
    for (size_t i = 0; i < order.size();) {
        Piece piece{split, {}, {}};
        int rows = 0;
        for (; i < order.size() && rows + sharing.rows(order[i]) <= kTileRows; ++i) {
            if (rows > 0 && sharing.compare(order[i], piece.tiles[0], split) != 0) break;
            piece.tiles.push_back(order[i]);
            rows += sharing.rows(order[i]);
        }
        if (piece.tiles.size() < 2) continue;
        for (const int t : piece.tiles) {
            add_token_places(tiles[t], piece.places);
            taken[t] = 1;
        }
        pieces.push_back(std::move(piece));
    }
}

}  // namespace

bool shared_splits(const ga_batch& batch, const std::vector<Tile>& tiles, int group, int64_t block_size) {
    // A prefix is shared from its start, or not at all: the cache finds blocks by all that stands before them.
    const Sharing sharing(batch, tiles, group, block_size);
    const std::vector<int> order = sharing.candidates(0);
    for (size_t i = 1; i < order.size(); ++i)
        if (sharing.compare(order[i - 1], order[i], 0) == 0) return true;
    return false;
}

std::vector<Piece> cut_pieces(const ga_batch& batch, const std::vector<Tile>& tiles, const std::vector<int>& splits,
                              int group, int64_t block_size, bool shared) {
    const Sharing sharing(batch, tiles, group, block_size);
    const int most = splits.empty() ? 0 : *std::max_element(splits.begin(), splits.end());
    std::vector<Piece> pieces;
    for (int split = 0; split < most; ++split) {
        std::vector<char> taken(tiles.size(), 0);
        if (shared) cut_split(sharing, tiles, split, taken, pieces);
        for (size_t t = 0; t < tiles.size(); ++t)
            if (!taken[t] && split < splits[t]) pieces.push_back({split, {static_cast<int>(t)}, {}});
    }
    return pieces;
}

}  // namespace ga
