#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "attention_work.h"
#include "backend.h"
#include "bfloat16_unit.h"
#include "softmax_state.h"

// The inner functions of CPU attention, once for each instruction set. attention_tile.cc defines
// them; cpu_attention.cc calls them.
namespace seqattn {

// One run: everything that its work items share.
struct AttentionCall {
  const AttentionShape& shape;
  const AttentionPlan& plan;
  const Plane& keys;
  const Plane& values;
  const TensorView& q;
  const TensorView& out;
  const TensorView& lse;          // may be absent
  const TensorView& sink_logits;  // may be absent
  const BFloat16Unit* bfloat16;   // computes the products of a bfloat16 cache, unless null
};

inline constexpr int kMaxHeadDim = 576;

struct TileFunctions {
  // Working memory of attend, in floats, for at most so many tiles at once.
  std::int64_t (*num_scratch_floats)(const AttentionShape& shape, int max_tiles);
  // states[i] <- the softmax of tiles[i]'s queries over the keys of `kv`. Tiles are heads of the
  // same query rows, of at most kFewRows where they are several.
  void (*attend)(const AttentionCall& call, std::span<const QueryTile> tiles, const KeySet& kv,
                 float* scratch, std::span<const SoftmaxState> states);
  // Merges the states of a tile's chunks in order, divides, and writes out and lse.
  void (*store)(const AttentionCall& call, const QueryTile& tile,
                std::span<const SoftmaxState> parts);
};

// Instruction sets are Highway's bits, HWY_AVX2 and so on.
std::vector<std::int64_t> tile_targets();                // of this build and machine, best first
std::string_view tile_target_name(std::int64_t target);  // "AVX2"
const TileFunctions& tile_functions(std::int64_t target, DType kv_dtype);

}  // namespace seqattn
