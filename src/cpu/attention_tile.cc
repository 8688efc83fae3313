#include "attention_tile.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "seqattn/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention_tile.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "products-inl.h"
#include "simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// Tokens of one pass over scores, softmax and values: few enough that keys, values and scores stay
// in the second-level cache. A multiple of what each step takes at a time: 6, 4, and for few rows
// as many as a vector of scores covers (at most 4).
constexpr int kTileTokens = 96;
constexpr int kTokenStep = 12;

// How far ahead, in pairs of query tile and token tile, keys and values are prefetched.
constexpr int kStepsAhead = 2;

alignas(64) constexpr std::byte kZeros[kMaxHeadDim * sizeof(float)] = {};

std::size_t padded_dim(int dim) { return static_cast<std::size_t>(round_up(dim, kDimPadding)); }

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
constexpr std::size_t kRowFloats = kMaxTileRows + 16;

// A thread's working memory, cut from one block.
struct Scratch {
  float* keys;     // [tokens, dim]
  float* values;   // [tokens, dim_v]
  float* scores;   // [tokens, stride], then weights
  float* rescale;  // [width], as the two that follow
  float* first_visible;
  float* end_visible;
  float* row;       // [dim], one query
  float* progress;  // of each tile

  Scratch(const AttentionShape& shape, float* memory) {
    const auto take = [&memory](std::size_t count) {
      float* const taken = memory;
      memory += count;
      return taken;
    };
    keys = take(kTileTokens * padded_dim(shape.head_dim));
    values = take(kTileTokens * padded_dim(shape.head_dim_v));
    scores = take((kTileTokens + 1) * kRowFloats);  // one token more: rows are read in sixes
    rescale = take(kRowFloats);
    first_visible = take(kRowFloats);
    end_visible = take(kRowFloats);
    row = take(padded_dim(shape.head_dim));
    progress = memory;
  }
  // For one tile of any size, or several of few rows.
  static std::size_t num_floats(const AttentionShape& shape, int max_tiles) {
    const std::size_t dim = padded_dim(shape.head_dim);
    const std::size_t shared =
        kTileTokens * (dim + padded_dim(shape.head_dim_v)) + (kTileTokens + 4) * kRowFloats + dim;
    return shared + std::max(kRowFloats * (dim + 2), max_tiles * (kFewRows * dim + 2 * kLanes));
  }
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

// Where a tile's keys and values lie. Beyond `count`, up to kTokenStep, they are zeros.
struct TokenTile {
  std::int64_t begin = 0;
  int count = 0;
  int padded_count = 0;
  std::array<const std::byte*, kTileTokens> keys;
  std::array<const std::byte*, kTileTokens> values;
};

void locate_tokens(const AttentionCall& call, const QueryTile& tile, std::int64_t begin,
                   std::int64_t end, TokenTile& tokens) {
  tokens.begin = begin;
  tokens.count = static_cast<int>(std::min<std::int64_t>(kTileTokens, end - begin));
  tokens.padded_count = static_cast<int>(round_up(tokens.count, kTokenStep));
  const int page_size = call.keys.page_size;
  const PageId* page = call.plan.page_indices.data() + tile.row.page_begin + begin / page_size;
  std::int64_t slot = begin % page_size;
  for (int t = 0; t < tokens.count; ++t) {
    tokens.keys[t] = call.keys.slot(*page, slot, tile.kv_head);
    tokens.values[t] = call.values.slot(*page, slot, tile.kv_head);
    if (++slot == page_size) {
      slot = 0;
      ++page;
    }
  }
  for (int t = tokens.count; t < kTileTokens; ++t) tokens.keys[t] = tokens.values[t] = kZeros;
}

template <class T>
void load_row(const T* from, std::size_t dim, float scale, float* to) {
  const Floats factor = hn::Set(kFloatTag, scale);
  std::size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(hn::Mul(load(from + d), factor), to + d);
  if (d < dim) store(hn::Mul(load_some(from + d, dim - d), factor), to + d), d += kLanes;
  for (; d < padded_dim(static_cast<int>(dim)); d += kLanes) store(hn::Zero(kFloatTag), to + d);
}

// Queries times the factor that makes q . k a logit in base 2 (with a soft cap: the argument of
// tanh).
template <class T>
void load_queries(const AttentionCall& call, const TileProgress& progress, const ScoreShape& shape,
                  const Scratch& scratch) {
  const QueryTile& tile = progress.tile;
  const int group = call.shape.group_size();
  const std::size_t dim = call.shape.head_dim;
  const std::size_t stride = padded_dim(call.shape.head_dim);
  const float cap = call.shape.logits_soft_cap;
  const float scale = call.shape.sm_scale * (cap > 0 ? 1 / cap : kLog2E);
  std::fill_n(progress.queries, shape.stride * stride, 0.0f);
  for (int r = 0; r < tile.num_rows; ++r) {
    const std::int64_t token = tile.row.q_begin + (tile.first_row + r) / group;
    const std::int64_t head = tile.kv_head * group + (tile.first_row + r) % group;
    const std::int64_t offset = token * call.q.strides[0] + head * call.q.strides[1];
    float* row = shape.few() ? progress.queries + r * stride : scratch.row;
    if (call.q.dtype == DType::kFloat32) {
      load_row(static_cast<const float*>(call.q.data) + offset, dim, scale, row);
    } else {
      load_row(static_cast<const T*>(call.q.data) + offset, dim, scale, row);
    }
    if (shape.few()) continue;
    for (std::size_t d = 0; d < dim; ++d) progress.queries[d * shape.stride + r] = row[d];
  }
}

// Unpacks tokens to [padded_count, dim] floats; false where some are infinite or NaN.
template <class T>
bool load_tokens(const std::byte* const* tokens, const std::byte* const* next, int count,
                 std::size_t dim, float* to) {
  const std::size_t stride = padded_dim(static_cast<int>(dim));
  Floats marks = hn::Zero(kFloatTag);  // x * 0 is NaN where x is not finite
  for (int t = 0; t < count; ++t, to += stride) {
    prefetch(next[t], dim * sizeof(T));
    load_row(reinterpret_cast<const T*>(tokens[t]), dim, 1.0f, to);
    for (std::size_t d = 0; d < stride; d += kLanes) {
      marks = hn::MulAdd(load(to + d), hn::Zero(kFloatTag), marks);
    }
  }
  return hn::AllTrue(kFloatTag, hn::Eq(marks, marks));
}

template <class T>
void compute_scores(const AttentionCall& call, const TileProgress& progress,
                    const ScoreShape& shape, const TokenTile& tokens, const TokenTile& next,
                    const Scratch& scratch) {
  const std::size_t dim = call.shape.head_dim;
  const std::size_t stride = padded_dim(call.shape.head_dim);
  if (shape.few() && dim % kLanes == 0) {
    const TokenRows<T> keys{tokens.keys.data(), next.keys.data()};
    dot_tokens(keys, tokens.padded_count, progress.queries, shape.num_rows, stride, dim,
               scratch.scores, shape.stride);
    return;
  }
  load_tokens<T>(tokens.keys.data(), next.keys.data(), tokens.padded_count, dim, scratch.keys);
  if (shape.few()) {
    std::array<const std::byte*, kTileTokens> rows;
    for (int t = 0; t < kTileTokens; ++t) {
      rows[t] = reinterpret_cast<const std::byte*>(scratch.keys + t * stride);
    }
    dot_tokens(TokenRows<float>{rows.data(), rows.data()}, tokens.padded_count, progress.queries,
               shape.num_rows, stride, stride, scratch.scores, shape.stride);
    return;
  }
  multiply<6, false>({scratch.keys, stride, 1}, tokens.padded_count,
                     DenseRows{progress.queries, shape.stride}, shape.stride, dim, false,
                     scratch.scores, shape.stride);
}

void cap_scores(const AttentionCall& call, const ScoreShape& shape, int num_tokens, float* scores) {
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
bool sees_everything(const AttentionCall& call, const QueryTile& tile, const TokenTile& tokens) {
  if (!call.plan.mask.empty() || tokens.count != tokens.padded_count) return false;
  const int group = call.shape.group_size();
  const KVRange first = visible_keys(call.shape, tile.row, tile.first_row / group);
  const KVRange last =
      visible_keys(call.shape, tile.row, (tile.first_row + tile.num_rows - 1) / group);
  return last.begin <= tokens.begin && tokens.begin + tokens.count <= first.end;
}

void hide_by_position(const AttentionCall& call, const QueryTile& tile, const ScoreShape& shape,
                      const TokenTile& tokens, const Scratch& scratch) {
  const int group = call.shape.group_size();
  const auto relative = [&](std::int64_t token) HWY_ATTR {
    return static_cast<float>(std::clamp<std::int64_t>(token - tokens.begin, 0, tokens.count));
  };
  for (std::size_t lane = 0; lane < shape.width; ++lane) {
    const std::int64_t row =
        std::min<std::int64_t>(lane % shape.stride, static_cast<std::int64_t>(shape.num_rows) - 1);
    const KVRange visible = visible_keys(call.shape, tile.row, (tile.first_row + row) / group);
    // A vector's lanes may belong to several tokens: compare with the vector's first one.
    const auto token = static_cast<float>(lane / shape.stride);
    scratch.first_visible[lane] = relative(visible.begin) - token;
    scratch.end_visible[lane] = relative(visible.end) - token;
  }
  const std::size_t tokens_at_once = shape.width / shape.stride;
  const Floats hidden = hn::Set(kFloatTag, kMinusInfinity);
  for (std::size_t c = 0; c < shape.width; c += kLanes) {
    const Floats first = load(scratch.first_visible + c);
    const Floats end = load(scratch.end_visible + c);
    for (int t = 0; t < tokens.padded_count; t += static_cast<int>(tokens_at_once)) {
      float* at = scratch.scores + t * shape.stride + c;
      const Floats token = hn::Set(kFloatTag, static_cast<float>(t));
      const auto visible = hn::And(hn::Ge(token, first), hn::Lt(token, end));
      store(hn::IfThenElse(visible, load(at), hidden), at);
    }
  }
}

void hide_by_mask(const AttentionCall& call, const QueryTile& tile, const ScoreShape& shape,
                  const TokenTile& tokens, float* scores) {
  const int group = call.shape.group_size();
  for (int r = 0; r < shape.num_rows; ++r) {
    const std::uint8_t* mask = call.plan.mask.data() + tile.row.mask_begin + tokens.begin +
                               (tile.first_row + r) / group * tile.row.kv_len;
    for (int t = 0; t < tokens.count; ++t) {
      if (mask[t] == 0) scores[t * shape.stride + r] = kMinusInfinity;
    }
  }
}

// Lanes that belong to one row take the greatest of their maxima.
void share_max(const ScoreShape& shape, float* max) {
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
void update_softmax(const TileProgress& progress, const ScoreShape& shape, int num_tokens,
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

void rescale_out(const ScoreShape& shape, const Scratch& scratch, std::size_t stride, float* out) {
  for (int r = 0; r < shape.num_rows; ++r, out += stride) {
    if (scratch.rescale[r] == 1.0f) continue;
    const Floats factor = hn::Set(kFloatTag, scratch.rescale[r]);
    for (std::size_t d = 0; d < stride; d += kLanes) store(hn::Mul(load(out + d), factor), out + d);
  }
}

// out += weights x values. Where a query may not see a token, its weight is 0 and the value may be
// NaN: then, and only then, zeros are skipped.
template <class T>
void accumulate_values(const AttentionCall& call, const ScoreShape& shape, const TokenTile& tokens,
                       const TokenTile& next, bool all_visible, const Scratch& scratch,
                       float* out) {
  const std::size_t dim = call.shape.head_dim_v;
  const std::size_t stride = padded_dim(call.shape.head_dim_v);
  const LeftFactor weights{scratch.scores, 1, shape.stride};
  if (shape.few() && all_visible && dim % kLanes == 0) {
    const TokenRows<T> values{tokens.values.data(), next.values.data()};
    multiply<4, false>(weights, shape.num_rows, values, dim, tokens.padded_count, true, out,
                       stride);
    return;
  }
  const bool finite = load_tokens<T>(tokens.values.data(), next.values.data(), tokens.padded_count,
                                     dim, scratch.values);
  const DenseRows values{scratch.values, stride};
  const auto product =
      shape.few()
          ? (finite || all_visible ? multiply<4, false, DenseRows> : multiply<4, true, DenseRows>)
          : (finite || all_visible ? multiply<6, false, DenseRows> : multiply<6, true, DenseRows>);
  product(weights, shape.num_rows, values, stride, tokens.padded_count, true, out, stride);
}

void finish_state(const TileProgress& progress, const ScoreShape& shape, SoftmaxState state) {
  for (int r = 0; r < shape.num_rows; ++r) {
    state.max[r] = progress.max[r];
    state.sum[r] = 0;
    for (std::size_t lane = r; lane < shape.width; lane += shape.stride) {
      state.sum[r] += progress.sum[lane];
    }
  }
}

template <class T>
void start_tile(const AttentionCall& call, const TileProgress& progress, const ScoreShape& shape,
                const Scratch& scratch) {
  load_queries<T>(call, progress, shape, scratch);
  std::fill_n(progress.max, shape.width, kMinusInfinity);
  std::fill_n(progress.sum, shape.width, 0.0f);
  std::fill_n(progress.out, shape.num_rows * padded_dim(call.shape.head_dim_v), 0.0f);
}

// One query tile meets one tile of tokens; those of `next` are prefetched.
template <class T>
void attend_tokens(const AttentionCall& call, const TileProgress& progress, const ScoreShape& shape,
                   const TokenTile& tokens, const TokenTile& next, const Scratch& scratch) {
  const QueryTile& tile = progress.tile;
  compute_scores<T>(call, progress, shape, tokens, next, scratch);
  if (call.shape.logits_soft_cap > 0) {
    cap_scores(call, shape, tokens.padded_count, scratch.scores);
  }
  const bool all_visible = sees_everything(call, tile, tokens);
  if (!all_visible) hide_by_position(call, tile, shape, tokens, scratch);
  if (!call.plan.mask.empty()) hide_by_mask(call, tile, shape, tokens, scratch.scores);
  update_softmax(progress, shape, tokens.padded_count, scratch);
  rescale_out(shape, scratch, padded_dim(call.shape.head_dim_v), progress.out);
  accumulate_values<T>(call, shape, tokens, next, all_visible, scratch, progress.out);
}

// Tokens outside, heads inside: the heads' keys and values lie side by side in a page.
template <class T>
void attend(const AttentionCall& call, std::span<const QueryTile> tiles, KVRange kv, float* memory,
            std::span<const SoftmaxState> states) {
  const ScoreShape shape(tiles[0].num_rows);
  const Scratch scratch(call.shape, memory);
  const auto progress = [&](std::size_t i) HWY_ATTR {
    return TileProgress(call.shape, shape, tiles[i],
                        scratch.progress + i * TileProgress::num_floats(call.shape, shape),
                        states[i]);
  };
  for (std::size_t i = 0; i < tiles.size(); ++i) start_tile<T>(call, progress(i), shape, scratch);

  const std::int64_t num_heads = static_cast<std::int64_t>(tiles.size());
  const std::int64_t num_steps = (kv.end - kv.begin + kTileTokens - 1) / kTileTokens * num_heads;
  TokenTile ring[kStepsAhead + 1];
  const auto located = [&](std::int64_t step)
                           HWY_ATTR -> TokenTile& { return ring[step % (kStepsAhead + 1)]; };
  const auto locate = [&](std::int64_t step) HWY_ATTR {
    if (step >= num_steps) return;
    locate_tokens(call, tiles[step % num_heads], kv.begin + step / num_heads * kTileTokens, kv.end,
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

template <class T>
void store_row(Floats value, T* out, std::size_t d, std::size_t dim) {
  if (d + kLanes <= dim) {
    store(value, out + d);
  } else {
    store_some(value, out + d, dim - d);
  }
}

// The chunks' factors, and the row's LSE: sum(weight_i out_i) is the row's output.
double merge_weights(std::span<const SoftmaxState> parts, int row, double sink,
                     std::array<float, kMaxChunks>& weights) {
  double max = sink;
  for (const SoftmaxState& part : parts) max = std::max(max, static_cast<double>(part.max[row]));
  const double subtracted = std::isinf(max) && max < 0 ? 0 : max;
  double sum = std::exp2(sink - subtracted);
  std::array<double, kMaxChunks> factors;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    factors[i] = std::exp2(parts[i].max[row] - subtracted);
    sum += factors[i] * parts[i].sum[row];
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    weights[i] = sum == 0 ? 0.0f : static_cast<float>(factors[i] / sum);
  }
  return (subtracted + std::log2(sum)) / static_cast<double>(kLog2E);
}

template <class T>
void store_tile(const AttentionCall& call, const QueryTile& tile,
                std::span<const SoftmaxState> parts) {
  const int group = call.shape.group_size();
  const std::size_t dim = call.shape.head_dim_v;
  const std::size_t stride = padded_dim(call.shape.head_dim_v);
  for (int r = 0; r < tile.num_rows; ++r) {
    const std::int64_t token = tile.row.q_begin + (tile.first_row + r) / group;
    const std::int64_t head = tile.kv_head * group + (tile.first_row + r) % group;
    double sink = kMinusInfinity;
    if (call.sink_logits) {
      const auto* sinks = static_cast<const float*>(call.sink_logits.data);
      sink = sinks[head * call.sink_logits.strides[0]] * static_cast<double>(kLog2E);
    }
    std::array<float, kMaxChunks> weights;
    const double lse = merge_weights(parts, r, sink, weights);
    if (call.lse) {
      static_cast<float*>(call.lse.data)[token * call.lse.strides[0] + head * call.lse.strides[1]] =
          static_cast<float>(lse);
    }
    const std::int64_t offset = token * call.out.strides[0] + head * call.out.strides[1];
    for (std::size_t d = 0; d < dim; d += kLanes) {
      Floats sum = hn::Zero(kFloatTag);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        sum = hn::MulAdd(load(parts[i].out + r * stride + d), hn::Set(kFloatTag, weights[i]), sum);
      }
      if (call.out.dtype == DType::kFloat32) {
        store_row(sum, static_cast<float*>(call.out.data) + offset, d, dim);
      } else {
        store_row(sum, static_cast<T*>(call.out.data) + offset, d, dim);
      }
    }
  }
}

std::int64_t num_scratch_floats(const AttentionShape& shape, int max_tiles) {
  return static_cast<std::int64_t>(Scratch::num_floats(shape, max_tiles));
}

template <class T>
const TileFunctions* functions_of() {
  static constexpr TileFunctions functions{num_scratch_floats, attend<T>, store_tile<T>};
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
