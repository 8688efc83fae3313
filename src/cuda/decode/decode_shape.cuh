#pragma once

#include <cstdint>
#include <type_traits>

#include "decode_call.h"
#include "hopper.cuh"

// Sizes of the decode kernel, and its shared memory.
namespace seqattn::decode {

inline constexpr int kMathWarps = 4;
inline constexpr int kMathThreads = kMathWarps * 32;
inline constexpr int kControlWarps = 2;  // one schedules, one loads
inline constexpr int kChunkSlots = 2;    // chunks under way
inline constexpr int kMergeSlots = 4;    // publications of a block; three may not be settled
inline constexpr int kBlockRows = 8;     // query rows that one matrix product takes

struct Float8 {  // e4m3
  std::uint8_t bits;
};

// What the scheduler hands over: a chunk of keys for the queries of one row and one KV head. Chunks
// of an item follow one another.
struct Chunk {
  int head;
  int number, num_items;      // of its item among those of its row and head; none: no more work
  int run_items;              // items that make a run
  bool is_of_run;             // the item is a run, not the only chunk of a row
  int num_left;               // chunks of the item behind this one
  int first_tile, num_tiles;  // no tile: a row without keys
  int kv_len, q_begin, q_len;
  int partial;  // the place of the item's result among all
};

// Results of a row and head that a block has to add, by the scheduler for the others.
struct Merge {
  bool is_due = false;  // all are there
  bool in_pairs = false;
  int head, q_begin, q_len;
  int place, num_results = 0;             // of the group's first; how many it has
  int row_place, num_groups, group_step;  // of the row's first; its groups, and how far apart
};

// Queries of 16 bits over a cache of the same type, or of Float8; blocks of 8 query rows. A row's
// bits do not depend on how many blocks there are.
template <class Query, class Cache, int kHeadDim, int kBlocks>
struct Shape {
  using T = Query;
  static constexpr bool kIsFloat8 = std::is_same_v<Cache, Float8>;
  using Factor = std::conditional_t<kIsFloat8, __half, T>;  // of products: exact for Float8
  static constexpr int kDim = kHeadDim;
  static constexpr int kRowBlocks = kBlocks;
  static constexpr int kRows = kRowBlocks * kBlockRows;
  static constexpr int kSteps = kDim / 16;                       // of a product's 16 elements
  static constexpr int kUnits = kDim * int{sizeof(Cache)} / 16;  // of 16 bytes, a token
  static constexpr int kBlockUnits = kUnits < 8 ? kUnits : 8;    // that a box has side by side
  static constexpr int kTileBytes = kTileTokens * kUnits * 16;
  static constexpr int kBlocksPerSm = blocks_per_sm(kDim);
  // Where accumulators and queries take more registers than two blocks' threads have, the warps
  // that do not compute give theirs away, which whole groups of four warps can.
  static constexpr bool kTradesRegisters = kDim * kRowBlocks == 256 && kBlocksPerSm == 2;
  static constexpr int kThreads = kMathThreads + 32 * (kTradesRegisters ? 4 : kControlWarps);
  // A thread's; as many in all as both kinds of warps start with, 128 each.
  static constexpr int kControlRegisters = 56, kMathRegisters = 200;
  static_assert(kControlRegisters + kMathRegisters == 2 * 128);
  // Tiles that there is room for, for each warp: about as many bytes in any shape.
  static constexpr int kWarpStages = (kDim == 64         ? 6
                                      : kTradesRegisters ? 2
                                      : kDim == 128      ? 3
                                                         : 2) *
                                     (kIsFloat8 ? 2 : 1);
  static constexpr int kStages = kMathWarps * kWarpStages;
  // Tiles that a block has under way at most where most blocks have work (is_busy): as many bytes
  // as keep the memory busy. More would only queue up there, and with them whatever else a block
  // waits for.
  static constexpr int kMostUnderWay = kBlocksPerSm == 1 ? kStages : 32 * 1024 / (2 * kTileBytes);
  static_assert(kMostUnderWay <= kStages);
  // Of a warp, where registers and stages allow two.
  static constexpr int kTilesAtOnce = kRowBlocks == 1 && kWarpStages > 2 ? 2 : 1;
  static constexpr int kMaxChunkTiles =
      kIsFloat8 || kRowBlocks > 1 ? decode::kMaxChunkTiles : kLongChunkTiles;
  static constexpr int kOwnSteps = kSteps / kMathWarps;  // that a warp has of a merged result
  // Row g of a matrix of accumulators is element kRowElements * g of its 16, row g + 8 the one
  // kOtherHalf behind it (add_values).
  static constexpr int kRowElements = kIsFloat8 ? 2 : 1;
  static constexpr int kOtherHalf = kIsFloat8 ? 1 : 8;
};

// Boxes are swizzled by the copy engine: they begin at multiples of 1,024.
template <class S>
struct alignas(1024) Shared {
  struct Stage {
    std::uint8_t keys[S::kTileBytes];
    std::uint8_t values[S::kTileBytes];
  };
  Stage ring[S::kStages];
  alignas(128) typename S::T queries[S::kRows][S::kDim];  // of the item to come; then in registers
  float4 exchange[kMathWarps][kMathWarps - 1][S::kOwnSteps][32];
  float4 stats[S::kRowBlocks][kMathWarps][4];  // maximum and sum of two rows
  alignas(16) std::int32_t pages[kChunkSlots][S::kMaxChunkTiles];
  Chunk chunks[kChunkSlots];
  std::uint64_t stage_full[S::kStages], stage_empty[S::kStages];
  std::uint64_t chunk_full[kChunkSlots], chunk_empty[kChunkSlots], queries_full, queries_empty;
  std::uint64_t published, counted;
  Merge merges[kMergeSlots];  // of publications
  bool row_is_due;            // all its groups are there
  bool is_busy;  // most blocks have items, or there are runs; known with the first chunk

  // A processor has 228 KiB, of which each block takes 1 KiB for itself.
  static constexpr int kMostBytes = 228 * 1024 / S::kBlocksPerSm - 1024;
};

}  // namespace seqattn::decode
