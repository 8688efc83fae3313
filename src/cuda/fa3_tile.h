#pragma once

#include <cstdint>

// How the tiles of FA3's rows are dealt to thread blocks; for the host that sorts them and for the
// kernel that takes them.
namespace seqattn {

// A tile of queries of a row: 192 of them for head_dim 64, else 128.
struct Fa3Tile {
  std::int32_t row = 0;
  std::int32_t tile = 0;
  friend constexpr bool operator==(const Fa3Tile&, const Fa3Tile&) = default;
};

// An item is one head of one tile: item i is head i % heads of tile i / heads. Tiles are sorted,
// costliest first, and items are dealt from the first block to the last, then back, and so on,
// which evens the sums out. Returns the item that a block takes in a round.
constexpr std::int32_t fa3_item(std::int32_t round, std::int32_t block, std::int32_t num_blocks) {
  return round * num_blocks + (round % 2 == 0 ? block : num_blocks - 1 - block);
}

}  // namespace seqattn
