// The steps of attention that a unit of bfloat16 dot products takes over. Compiled once for each
// target.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "attention_tile.h"
#include "bfloat16_unit.h"
#include "hwy/highway.h"
#include "seqattn/half.h"
#include "tile_state-inl.h"
#include "unpack-inl.h"

#if defined(SEQATTN_CPU_BFLOAT16_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_BFLOAT16_STEPS_INL_H_
#undef SEQATTN_CPU_BFLOAT16_STEPS_INL_H_
#else
#define SEQATTN_CPU_BFLOAT16_STEPS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

inline BFloat16Tokens bfloat16_tokens(const std::byte* const* rows, const TokenTile& tokens,
                                      const std::byte* const* next_rows, const TokenTile& next,
                                      std::size_t dim) {
  return {rows, static_cast<std::size_t>(tokens.padded_count), dim,
          NextLines(next_rows, next.count, dim * sizeof(std::uint16_t))};
}

// Queries as they are; where they come as floats, rounded. The scale is left for the scores.
inline void load_bfloat16_queries(const AttentionCall& call, const TileProgress& progress,
                                  const ScoreShape& shape, const Scratch& scratch) {
  const QueryTile& tile = progress.tile;
  const std::size_t dim = call.shape.head_dim;
  auto* const rows = reinterpret_cast<std::uint16_t*>(progress.queries);
  auto* const pairs = reinterpret_cast<std::uint32_t*>(progress.queries);
  if (!shape.few()) std::fill_n(pairs, dim / 2 * shape.stride, 0u);
  for (int r = 0; r < tile.num_rows; ++r) {
    const std::int64_t offset = query_offset(call, tile, r);
    auto* const row = shape.few() ? rows + r * dim : reinterpret_cast<std::uint16_t*>(scratch.row);
    if (call.q.dtype == DType::kFloat32) {
      call.bfloat16->round(static_cast<const float*>(call.q.data) + offset, dim, row);
    } else {
      std::memcpy(row, static_cast<const std::uint16_t*>(call.q.data) + offset, dim * sizeof *row);
    }
    if (shape.few()) continue;
    for (std::size_t d = 0; d < dim; d += 2) {
      std::memcpy(pairs + d / 2 * shape.stride + r, row + d, sizeof *pairs);
    }
  }
}

inline void compute_bfloat16_scores(const AttentionCall& call, const TileProgress& progress,
                                    const ScoreShape& shape, const TokenTile& tokens,
                                    const TokenTile& next, const Scratch& scratch) {
  const BFloat16Tokens keys =
      bfloat16_tokens(tokens.keys.data(), tokens, next.keys.data(), next, call.shape.head_dim);
  const ScoreBlock scores{scratch.scores, static_cast<std::size_t>(shape.num_rows), shape.stride};
  if (shape.few()) {
    call.bfloat16->score_few(keys, reinterpret_cast<const std::uint16_t*>(progress.queries),
                             score_factor(call.shape), scores);
  } else {
    call.bfloat16->score_many(keys, reinterpret_cast<const std::uint32_t*>(progress.queries),
                              score_factor(call.shape), scores);
  }
}

// What pack_values has left out: infinities and NaN reach the queries that give them weight.
inline void add_not_finite(const ScoreShape& shape, const TokenTile& tokens, std::size_t dim,
                           const float* weights, float* out) {
  for (int t = 0; t < tokens.count; ++t) {
    const auto* const value = reinterpret_cast<const std::uint16_t*>(tokens.values[t]);
    for (std::size_t d = 0; d < dim; ++d) {
      if ((value[d] & 0x7f80) != 0x7f80) continue;
      for (int r = 0; r < shape.num_rows; ++r) {
        std::uint16_t pair[2];
        std::memcpy(pair, weights + t / 2 * shape.stride + r, sizeof pair);
        const float weight = from_bfloat16(pair[t % 2]);
        if (weight != 0) out[r * padded_dim(dim) + d] += weight * from_bfloat16(value[d]);
      }
    }
  }
}

inline void accumulate_bfloat16_values(const AttentionCall& call, const ScoreShape& shape,
                                       const TokenTile& tokens, const TokenTile& next,
                                       bool all_visible, const Scratch& scratch, float* out) {
  const std::size_t dim = call.shape.head_dim_v;
  const BFloat16Tokens values =
      bfloat16_tokens(tokens.values.data(), tokens, next.values.data(), next, dim);
  const ScoreBlock weights{scratch.scores, static_cast<std::size_t>(shape.num_rows), shape.stride};
  const WeightedSums sums{out, padded_dim(dim), scratch.rescale};
  if (shape.few() && all_visible) {
    call.bfloat16->weigh_tokens(weights, values, sums);
    return;
  }
  auto* const packed = reinterpret_cast<std::uint32_t*>(scratch.values);
  const bool all_finite = call.bfloat16->pack_values(values, packed);
  call.bfloat16->weigh_packed(weights, values, packed, sums);
  if (!all_finite) add_not_finite(shape, tokens, dim, scratch.scores, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
