// What the steps of attention share: sizes, working memory, where tokens lie. Compiled once for
// each target.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "attention_tile.h"
#include "hwy/highway.h"
#include "products-inl.h"
#include "simd_math-inl.h"

#if defined(SEQATTN_CPU_TILE_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_TILE_STATE_INL_H_
#undef SEQATTN_CPU_TILE_STATE_INL_H_
#else
#define SEQATTN_CPU_TILE_STATE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

inline constexpr float kLog2E = 1.44269504088896341f;

// Tokens of one pass over scores, softmax and values: few enough that keys, values and scores stay
// in the second-level cache. A multiple of kTokenStep, and for few rows of as many as a vector of
// scores covers (at most 4).
inline constexpr int kTileTokens = 96;

// How far ahead, in pairs of query tile and token tile, keys and values are prefetched.
inline constexpr int kStepsAhead = 2;

alignas(64) inline constexpr std::byte kZeros[kMaxHeadDim * sizeof(float)] = {};

inline std::size_t padded_dim(int dim) {
  return static_cast<std::size_t>(round_up(dim, kDimPadding));
}
// The distance of tokens that were unpacked: an odd number of cache lines, since those that a
// column of them lies in would meet in a few sets of the cache otherwise.
inline std::size_t unpacked_stride(int dim) { return padded_dim(dim) | kDimPadding; }

// Scores lie token by token, `stride` query rows each. Few rows fill a part of a vector, which then
// covers several tokens: row constants repeat with a period of `stride` lanes, `width` in all.
struct ScoreShape {
  int num_rows;
  std::size_t stride;
  std::size_t width;
  explicit ScoreShape(int rows)
      : num_rows(rows),
        stride(rows <= 4          ? 4
               : rows <= kFewRows ? 8
                                  : static_cast<std::size_t>(round_up(rows, 16))),
        width(std::max(stride, kLanes)) {}
  bool few() const { return num_rows <= kFewRows; }
};

// Row constants of one tile: as many floats as the widest score shape has lanes.
inline constexpr std::size_t kRowFloats = kMaxTileRows + 16;

// A thread's working memory, cut from one block.
struct Scratch {
  float* keys;     // [tokens, unpacked_stride(dim)]
  float* values;   // [tokens, unpacked_stride(dim_v)]
  float* scores;   // [tokens, stride], then weights
  float* rescale;  // [width], as the two that follow
  float* first_visible;
  float* end_visible;
  float* first_sink;
  float* end_sink;
  float* row;       // [dim], one query
  float* progress;  // of each tile

  Scratch(const AttentionShape& shape, float* memory) {
    const auto take = [&memory](std::size_t count) {
      float* const taken = memory;
      memory += count;
      return taken;
    };
    keys = take(kTileTokens * unpacked_stride(shape.head_dim));
    values = take(kTileTokens * unpacked_stride(shape.head_dim_v));
    scores = take((kTileTokens + 1) * kRowFloats);  // one token more: rows are read in sixes
    rescale = take(kRowFloats);
    first_visible = take(kRowFloats);
    end_visible = take(kRowFloats);
    first_sink = take(kRowFloats);
    end_sink = take(kRowFloats);
    row = take(padded_dim(shape.head_dim));
    progress = memory;
  }
  // For one tile of any size, or several of few rows.
  static std::size_t num_floats(const AttentionShape& shape, int max_tiles);
};

// One query tile on its way through the keys.
struct TileProgress {
  const QueryTile& tile;
  float* queries;  // few rows: [stride, dim]; else transposed: [dim, stride]
  float* max;      // [width]
  float* sum;      // [width]
  float* out;      // [rows, dim_v]

  TileProgress(const AttentionShape& shape, const ScoreShape& scores, const QueryTile& query_tile,
               float* memory, SoftmaxState state)
      : tile(query_tile),
        queries(memory),
        max(queries + scores.stride * padded_dim(shape.head_dim)),
        sum(max + scores.width),
        out(state.out) {}
  static std::size_t num_floats(const AttentionShape& shape, const ScoreShape& scores) {
    return scores.stride * padded_dim(shape.head_dim) + 2 * scores.width;
  }
};

inline std::size_t Scratch::num_floats(const AttentionShape& shape, int max_tiles) {
  const std::size_t dim = padded_dim(shape.head_dim);
  const std::size_t shared =
      kTileTokens * (unpacked_stride(shape.head_dim) + unpacked_stride(shape.head_dim_v)) +
      (kTileTokens + 6) * kRowFloats + dim;
  return shared + std::max(kRowFloats * (dim + 2),
                           max_tiles * TileProgress::num_floats(shape, ScoreShape(kFewRows)));
}

// Where a tile's keys and values lie. Beyond `count`, up to kTokenStep, they are zeros.
struct TokenTile {
  std::int64_t begin = 0;
  int count = 0;
  int padded_count = 0;
  std::array<const std::byte*, kTileTokens> keys;
  std::array<const std::byte*, kTileTokens> values;
  std::array<float, kTileTokens> key_scales;  // of elements that have them; likewise
  std::array<float, kTileTokens> value_scales;
};

inline bool has_scales(const AttentionCall& call) { return call.keys.scales.data != nullptr; }

inline void locate_scales(const AttentionCall& call, const QueryTile& tile, TokenTile& tokens) {
  const int page_size = call.keys.page_size;
  const PageId* const pages = call.plan.page_indices.data() + tile.row.page_begin;
  tokens.key_scales.fill(0);
  tokens.value_scales.fill(0);
  for (int t = 0; t < tokens.count; ++t) {
    const PageId page = pages[(tokens.begin + t) / page_size];
    const std::int64_t slot = (tokens.begin + t) % page_size;
    tokens.key_scales[static_cast<std::size_t>(t)] = call.keys.scale(page, slot, tile.kv_head);
    tokens.value_scales[static_cast<std::size_t>(t)] = call.values.scale(page, slot, tile.kv_head);
  }
}

inline void locate_tokens(const AttentionCall& call, const QueryTile& tile, std::int64_t begin,
                          std::int64_t end, TokenTile& tokens) {
  tokens.begin = begin;
  tokens.count = static_cast<int>(std::min<std::int64_t>(kTileTokens, end - begin));
  tokens.padded_count = static_cast<int>(round_up(tokens.count, kTokenStep));
  const int page_size = call.keys.page_size;
  const PageId* page = call.plan.page_indices.data() + tile.row.page_begin + begin / page_size;
  std::int64_t slot = begin % page_size;
  for (int t = 0; t < tokens.count; ++page, slot = 0) {
    const std::byte* key = call.keys.slot(*page, slot, tile.kv_head);
    const std::byte* value = call.values.slot(*page, slot, tile.kv_head);
    const auto page_end = std::min<std::int64_t>(tokens.count, t + page_size - slot);
    for (; t < page_end; ++t, key += call.keys.token_stride, value += call.values.token_stride) {
      tokens.keys[t] = key;
      tokens.values[t] = value;
    }
  }
  for (int t = tokens.count; t < kTileTokens; ++t) tokens.keys[t] = tokens.values[t] = kZeros;
  if (has_scales(call)) locate_scales(call, tile, tokens);
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
