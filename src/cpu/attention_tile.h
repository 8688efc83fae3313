#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "attention_work.h"
#include "backend.h"
#include "bfloat16_unit.h"

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

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Vectors of head_dim floats are padded to this many, which whole vectors of any target fill.
inline constexpr int kDimPadding = 16;

// The softmax so far of some query rows over some keys: `out` holds sum(2^(x - max) v), `sum` the
// sum of the weights 2^(x - max), x being logits in base 2.
struct SoftmaxState {
  float* max = nullptr;  // [num_rows]
  float* sum = nullptr;  // [num_rows]
  float* out = nullptr;  // [num_rows, head_dim_v padded to kDimPadding]

  SoftmaxState() = default;
  SoftmaxState(float* memory, int num_rows) noexcept
      : max(memory), sum(memory + padded(num_rows)), out(memory + 2 * padded(num_rows)) {}

  static std::int64_t num_floats(int num_rows, int head_dim_v) noexcept {
    return padded(num_rows) * (2 + round_up(head_dim_v, kDimPadding));
  }

 private:
  // Rows are computed 4 or 6 at a time; a multiple of 4 keeps every part aligned.
  static std::int64_t padded(int num_rows) noexcept {
    return num_rows <= kFewRows ? round_up(num_rows, 4) : round_up(num_rows, 12);
  }
};

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
