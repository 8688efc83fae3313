#pragma once

#include <cstdint>

#include "decode_call.h"
#include "hopper.cuh"

// Sizes of the decode kernel, and its shared memory.
namespace seqattn::decode {

inline constexpr int kMathWarps = 4;
inline constexpr int kMathThreads = kMathWarps * 32;
inline constexpr int kThreads = kMathThreads + 64;  // and a warp that schedules, one that loads
inline constexpr int kItemSlots = 2;                // items under way
inline constexpr int kRows = kMaxQueryRows;

// A piece of work: some tiles of keys for the queries of one row and one KV head.
struct Item {
  int row, head, chunk, num_chunks;  // no chunk: there is no more work
  int first_tile, num_tiles;         // no tile: a row without keys
  int kv_len, q_begin, q_len;
  int partial;  // its place among the partial results
};

template <class Type, int kHeadDim>
struct Shape {
  using T = Type;
  static constexpr int kDim = kHeadDim;
  static constexpr int kSteps = kDim / 16;  // of a product's 16 elements
  static constexpr int kTileBytes = kTileTokens * kDim * 2;
  static constexpr int kStages = kDim == 64 ? 6 : kDim == 128 ? 3 : 2;  // of each warp
  static constexpr int kBlocksPerSm = kDim == 256 ? 1 : 2;
  static constexpr int kOwnSteps = kSteps / kMathWarps;  // that a warp has of a merged result
};

// Boxes of 128 bytes a token are swizzled by the copy engine: they begin at multiples of 1,024.
template <class S>
struct alignas(1024) Shared {
  struct Stage {
    std::uint8_t keys[S::kTileBytes];
    std::uint8_t values[S::kTileBytes];
  };
  Stage ring[kMathWarps][S::kStages];
  alignas(128) typename S::T queries[kRows][S::kDim];  // of the item to come; then in registers
  float4 exchange[kMathWarps][kMathWarps - 1][S::kOwnSteps][32];
  float4 stats[kMathWarps][4];  // maximum and sum of two rows
  alignas(16) std::int32_t pages[kItemSlots][kMaxItemTiles];
  Item items[kItemSlots];
  std::uint64_t stage_full[kMathWarps][S::kStages], stage_empty[kMathWarps][S::kStages];
  std::uint64_t item_full[kItemSlots], item_empty[kItemSlots], queries_full, queries_empty;
  std::uint64_t published, counted;
  int pending_is_last;

  // A processor has 228 KiB, of which each block takes 1 KiB for itself.
  static constexpr int kMostBytes = 228 * 1024 / S::kBlocksPerSm - 1024;
};

}  // namespace seqattn::decode
