// From scores to weights: soft cap, what is hidden, the online softmax. Compiled once for each
// target.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "simd_math-inl.h"
#include "tile_state-inl.h"

#if defined(SEQATTN_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_SOFTMAX_INL_H_
#undef SEQATTN_CPU_SOFTMAX_INL_H_
#else
#define SEQATTN_CPU_SOFTMAX_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

inline void cap_scores(const AttentionCall& call, const ScoreShape& shape, int num_tokens,
                       float* scores) {
  const Floats cap = hn::Set(kFloatTag, call.shape.logits_soft_cap * kLog2E);
  for (std::size_t i = 0; i < num_tokens * shape.stride; i += kLanes) {
    // NaN goes past Tanh, which some targets have no defined result for.
    const Floats score = load(scores + i);
    const auto is_number = hn::Eq(score, score);
    const Floats capped = hn::Tanh(kFloatTag, hn::IfThenElseZero(is_number, score));
    store(hn::IfThenElse(is_number, hn::Mul(cap, capped), score), scores + i);
  }
}

// Whether every query of the tile sees every token, padding included.
inline bool sees_everything(const AttentionCall& call, const QueryTile& tile,
                            const TokenTile& tokens) {
  const KVRange range{tokens.begin, tokens.begin + tokens.count};
  if (range.end > tile.row.kv_len - tile.row.num_masked_keys) return false;
  if (tokens.count != tokens.padded_count) return false;
  const int group = call.shape.group_size();
  return all_see(call.shape, tile.row, tile.first_row / group,
                 (tile.first_row + tile.num_rows - 1) / group + 1, range);
}

inline void hide_by_position(const AttentionCall& call, const QueryTile& tile,
                             const ScoreShape& shape, const TokenTile& tokens,
                             const Scratch& scratch) {
  const int group = call.shape.group_size();
  const auto relative = [&](std::int64_t token) HWY_ATTR {
    return static_cast<float>(std::clamp<std::int64_t>(token - tokens.begin, 0, tokens.count));
  };
  for (std::size_t lane = 0; lane < shape.width; ++lane) {
    const std::int64_t row =
        std::min<std::int64_t>(lane % shape.stride, static_cast<std::int64_t>(shape.num_rows) - 1);
    const KeySet visible = visible_keys(call.shape, tile.row, (tile.first_row + row) / group);
    // A vector's lanes may belong to several tokens: compare with the vector's first one.
    const std::size_t tokens_before = lane / shape.stride;
    const auto token = static_cast<float>(tokens_before);
    scratch.first_visible[lane] = relative(visible.window.begin) - token;
    scratch.end_visible[lane] = relative(visible.window.end) - token;
    scratch.first_sink[lane] = relative(visible.sinks.begin) - token;
    scratch.end_sink[lane] = relative(visible.sinks.end) - token;
  }
  const bool has_sinks = tile.row.num_sink_tokens > 0;
  const std::size_t tokens_at_once = shape.width / shape.stride;
  const Floats hidden = hn::Set(kFloatTag, kMinusInfinity);
  for (std::size_t c = 0; c < shape.width; c += kLanes) {
    const Floats first = load(scratch.first_visible + c);
    const Floats end = load(scratch.end_visible + c);
    const Floats first_sink = load(scratch.first_sink + c);
    const Floats end_sink = load(scratch.end_sink + c);
    for (int t = 0; t < tokens.padded_count; t += static_cast<int>(tokens_at_once)) {
      float* at = scratch.scores + t * shape.stride + c;
      const Floats token = hn::Set(kFloatTag, static_cast<float>(t));
      auto visible = hn::And(hn::Ge(token, first), hn::Lt(token, end));
      if (has_sinks) {
        visible = hn::Or(visible, hn::And(hn::Ge(token, first_sink), hn::Lt(token, end_sink)));
      }
      store(hn::IfThenElse(visible, load(at), hidden), at);
    }
  }
}

inline void hide_by_mask(const AttentionCall& call, const QueryTile& tile, const ScoreShape& shape,
                         const TokenTile& tokens, float* scores) {
  const int group = call.shape.group_size();
  const std::int64_t num_masked = tile.row.num_masked_keys;
  const std::int64_t first_masked = tile.row.kv_len - num_masked;
  const int first =
      static_cast<int>(std::clamp<std::int64_t>(first_masked - tokens.begin, 0, tokens.count));
  for (int r = 0; r < shape.num_rows; ++r) {
    const std::int64_t begin = tile.row.mask_begin + (tile.first_row + r) / group * num_masked +
                               tokens.begin - first_masked;
    for (int t = first; t < tokens.count; ++t) {
      if (call.plan.mask[static_cast<std::size_t>(begin + t)] == 0)
        scores[t * shape.stride + r] = kMinusInfinity;
    }
  }
}

// Lanes that belong to one row take the greatest of their maxima.
inline void share_max(const ScoreShape& shape, float* max) {
  for (std::size_t r = 0; r < shape.stride; ++r) {
    float greatest = max[r];
    for (std::size_t lane = r; lane < shape.width; lane += shape.stride) {
      greatest = std::max(greatest, max[lane]);
    }
    for (std::size_t lane = r; lane < shape.width; lane += shape.stride) max[lane] = greatest;
  }
}

// One step of the online softmax (Milakov & Gimelshein 2018): scores become weights, and `rescale`
// what earlier sums have to be multiplied by. A sum stays one per lane until the end.
inline void update_softmax(const TileProgress& progress, const ScoreShape& shape, int num_tokens,
                           const Scratch& scratch) {
  const std::size_t num_scores = num_tokens * shape.stride;
  float* next_max = scratch.rescale;
  for (std::size_t c = 0; c < shape.width; c += kLanes) {
    Floats max = load(progress.max + c);
    for (std::size_t i = c; i < num_scores; i += shape.width) {
      max = hn::Max(load(scratch.scores + i), max);
    }
    store(max, next_max + c);
  }
  if (shape.stride < shape.width) share_max(shape, next_max);
  for (std::size_t c = 0; c < shape.width; c += kLanes) {
    const Floats max = load(next_max + c);
    // A row that has seen nothing subtracts 0, so that -inf - max is no NaN.
    const auto seen_none = hn::Eq(max, hn::Set(kFloatTag, kMinusInfinity));
    const Floats subtracted = hn::IfThenZeroElse(seen_none, max);
    const Floats rescale = exp2(hn::Sub(load(progress.max + c), subtracted));
    Floats sum = hn::Mul(load(progress.sum + c), rescale);
    for (std::size_t i = c; i < num_scores; i += shape.width) {
      const Floats weight = exp2(hn::Sub(load(scratch.scores + i), subtracted));
      store(weight, scratch.scores + i);
      sum = hn::Add(sum, weight);
    }
    store(sum, progress.sum + c);
    store(max, progress.max + c);
    store(rescale, scratch.rescale + c);
  }
}

inline void finish_state(const TileProgress& progress, const ScoreShape& shape,
                         SoftmaxState state) {
  for (int r = 0; r < shape.num_rows; ++r) {
    state.max[r] = progress.max[r];
    state.sum[r] = 0;
    for (std::size_t lane = r; lane < shape.width; lane += shape.stride) {
      state.sum[r] += progress.sum[lane];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
