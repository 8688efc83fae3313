#include "attention_tile.h"

#include <algorithm>
#include <array>
#include <span>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention_tile.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "bfloat16_steps-inl.h"
#include "hwy/highway.h"
#include "products-inl.h"
#include "scales-inl.h"
#include "simd_math-inl.h"
#include "softmax-inl.h"
#include "store-inl.h"
#include "tile_state-inl.h"
#include "unpack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void compute_scores(const AttentionCall& call, const TileProgress& progress,
                    const ScoreShape& shape, const TokenTile& tokens, const TokenTile& next,
                    const Scratch& scratch) {
  const std::size_t dim = call.shape.head_dim;
  const std::size_t padded = padded_dim(call.shape.head_dim);
  NextLines lines(next.keys.data(), next.count, dim * sizeof(T));
  if (shape.few() && dim % kLanes == 0) {
    dot_tokens(TokenRows<T>{tokens.keys.data(), lines}, tokens.padded_count, progress.queries,
               shape.num_rows, padded, dim, scratch.scores, shape.stride);
    return;
  }
  load_tokens<T>(tokens.keys.data(), lines, tokens.padded_count, dim, scratch.keys);
  const std::size_t stride = unpacked_stride(call.shape.head_dim);
  if (shape.few()) {
    std::array<const std::byte*, kTileTokens> rows;
    for (int t = 0; t < kTileTokens; ++t) {
      rows[t] = reinterpret_cast<const std::byte*>(scratch.keys + t * stride);
    }
    dot_tokens(TokenRows<float>{rows.data(), lines}, tokens.padded_count, progress.queries,
               shape.num_rows, padded, padded, scratch.scores, shape.stride);
    return;
  }
  multiply<6, false>({scratch.keys, stride, 1}, tokens.padded_count,
                     DenseRows{progress.queries, shape.stride}, shape.stride, dim,
                     {scratch.scores, shape.stride});
}

template <bool kSkipZeros, class Right>
void add_weighted(const ScoreShape& shape, const LeftFactor& weights, const Right& values,
                  std::size_t columns, std::size_t num_tokens, const Product& out) {
  const auto rows = static_cast<std::size_t>(shape.num_rows);
  if (rows > kFewRows) {
    multiply<6, kSkipZeros>(weights, rows, values, columns, num_tokens, out);
  } else if (rows == 1) {
    multiply<1, kSkipZeros>(weights, rows, values, columns, num_tokens, out);
  } else if (rows == 2) {
    multiply<2, kSkipZeros>(weights, rows, values, columns, num_tokens, out);
  } else if (rows == 3 || rows == 6) {
    multiply<3, kSkipZeros>(weights, rows, values, columns, num_tokens, out);
  } else {
    multiply<4, kSkipZeros>(weights, rows, values, columns, num_tokens, out);
  }
}

// out = rescale x out + weights x values. Where a query may not see a token, its weight is 0 and
// the value may be NaN: then, and only then, zeros are skipped.
template <class T>
void accumulate_values(const AttentionCall& call, const ScoreShape& shape, const TokenTile& tokens,
                       const TokenTile& next, bool all_visible, const Scratch& scratch,
                       float* out) {
  const std::size_t dim = call.shape.head_dim_v;
  const std::size_t padded = padded_dim(call.shape.head_dim_v);
  const LeftFactor weights{scratch.scores, 1, shape.stride};
  const Product to{out, padded, scratch.rescale};
  const auto num_tokens = static_cast<std::size_t>(tokens.padded_count);
  NextLines lines(next.values.data(), next.count, dim * sizeof(T));
  if (shape.few() && all_visible && dim % kLanes == 0) {
    add_weighted<false>(shape, weights, TokenRows<T>{tokens.values.data(), lines}, dim, num_tokens,
                        to);
    return;
  }
  const bool finite =
      load_tokens<T>(tokens.values.data(), lines, tokens.padded_count, dim, scratch.values);
  const DenseRows values{scratch.values, unpacked_stride(call.shape.head_dim_v)};
  if (finite || all_visible) {
    add_weighted<false>(shape, weights, values, padded, num_tokens, to);
  } else {
    add_weighted<true>(shape, weights, values, padded, num_tokens, to);
  }
}

template <class T>
bool uses_unit(const AttentionCall& call) {
  return std::is_same_v<T, hwy::bfloat16_t> && call.bfloat16 != nullptr;
}

template <class T>
void start_tile(const AttentionCall& call, const TileProgress& progress, const ScoreShape& shape,
                const Scratch& scratch) {
  if (uses_unit<T>(call)) {
    load_bfloat16_queries(call, progress, shape, scratch);
  } else {
    load_queries(call, progress, shape, scratch);
  }
  std::fill_n(progress.max, shape.width, kMinusInfinity);
  std::fill_n(progress.sum, shape.width, 0.0f);
  std::fill_n(progress.out, shape.num_rows * padded_dim(call.shape.head_dim_v), 0.0f);
}

// One query tile meets one tile of tokens; those of `next` are prefetched.
template <class T>
void attend_tokens(const AttentionCall& call, const TileProgress& progress, const ScoreShape& shape,
                   const TokenTile& tokens, const TokenTile& next, const Scratch& scratch) {
  const QueryTile& tile = progress.tile;
  if (uses_unit<T>(call)) {
    compute_bfloat16_scores(call, progress, shape, tokens, next, scratch);
  } else {
    compute_scores<T>(call, progress, shape, tokens, next, scratch);
  }
  if (has_scales(call)) scale_scores(shape, tokens, scratch.scores);
  if (call.shape.logits_soft_cap > 0) {
    cap_scores(call, shape, tokens.padded_count, scratch.scores);
  }
  const bool all_visible = sees_everything(call, tile, tokens);
  if (!all_visible) hide_by_position(call, tile, shape, tokens, scratch);
  if (tile.row.num_masked_keys > 0) hide_by_mask(call, tile, shape, tokens, scratch.scores);
  update_softmax(progress, shape, tokens.padded_count, scratch);
  if (has_scales(call)) scale_weights(shape, tokens, all_visible, scratch.scores);
  if (uses_unit<T>(call)) {
    accumulate_bfloat16_values(call, shape, tokens, next, all_visible, scratch, progress.out);
  } else {
    accumulate_values<T>(call, shape, tokens, next, all_visible, scratch, progress.out);
  }
}

// Tokens outside, heads inside: the heads' keys and values lie side by side in a page.
template <class T>
void attend(const AttentionCall& call, std::span<const QueryTile> tiles, const KeySet& kv,
            float* memory, std::span<const SoftmaxState> states) {
  const ScoreShape shape(tiles[0].num_rows);
  const Scratch scratch(call.shape, memory);
  const auto progress = [&](std::size_t i) HWY_ATTR {
    return TileProgress(call.shape, shape, tiles[i],
                        scratch.progress + i * TileProgress::num_floats(call.shape, shape),
                        states[i]);
  };
  for (std::size_t i = 0; i < tiles.size(); ++i) start_tile<T>(call, progress(i), shape, scratch);

  const std::int64_t num_heads = static_cast<std::int64_t>(tiles.size());
  // No step crosses the gap behind the sinks.
  const std::int64_t sink_steps = (kv.sinks.size() + kTileTokens - 1) / kTileTokens;
  const std::int64_t num_steps =
      (sink_steps + (kv.window.size() + kTileTokens - 1) / kTileTokens) * num_heads;
  TokenTile ring[kStepsAhead + 1];
  const auto located = [&](std::int64_t step)
                           HWY_ATTR -> TokenTile& { return ring[step % (kStepsAhead + 1)]; };
  const auto locate = [&](std::int64_t step) HWY_ATTR {
    if (step >= num_steps) return;
    const std::int64_t piece = step / num_heads;
    const KVRange& range = piece < sink_steps ? kv.sinks : kv.window;
    const std::int64_t in_range = piece < sink_steps ? piece : piece - sink_steps;
    locate_tokens(call, tiles[step % num_heads], range.begin + in_range * kTileTokens, range.end,
                  located(step));
  };
  for (int step = 0; step < kStepsAhead; ++step) locate(step);
  for (std::int64_t step = 0; step < num_steps; ++step) {
    locate(step + kStepsAhead);
    const TokenTile& next = located(std::min(step + kStepsAhead, num_steps - 1));
    attend_tokens<T>(call, progress(step % num_heads), shape, located(step), next, scratch);
  }
  for (std::size_t i = 0; i < tiles.size(); ++i) finish_state(progress(i), shape, states[i]);
}

std::int64_t num_scratch_floats(const AttentionShape& shape, int max_tiles) {
  return static_cast<std::int64_t>(Scratch::num_floats(shape, max_tiles));
}

template <class T>
const TileFunctions* functions_of() {
  static constexpr TileFunctions functions{num_scratch_floats, attend<T>, store_tile};
  return &functions;
}

}  // namespace

const TileFunctions* functions(DType kv_dtype) {
  switch (kv_dtype) {
    case DType::kFloat32:
      return functions_of<float>();
    case DType::kFloat16:
      return functions_of<hwy::float16_t>();
    case DType::kBFloat16:
      return functions_of<hwy::bfloat16_t>();
    case DType::kFloat8E4M3:
      return functions_of<Float8>();
  }
  return nullptr;
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqattn {

HWY_EXPORT(functions);

const TileFunctions& tile_functions(std::int64_t target, DType kv_dtype) {
#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
  (void)target;
  return *HWY_STATIC_DISPATCH(functions)(kv_dtype);
#else
  hwy::ChosenTarget chosen;
  chosen.Update(target);
  return *HWY_DISPATCH_TABLE(functions)[chosen.GetIndex()](kv_dtype);
#endif
}

std::vector<std::int64_t> tile_targets() {
  const auto targets = hwy::SupportedAndGeneratedTargets();
  return {targets.begin(), targets.end()};
}

std::string_view tile_target_name(std::int64_t target) { return hwy::TargetName(target); }

}  // namespace seqattn
#endif
