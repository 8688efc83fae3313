// Queries, keys and values on their way into float scratch. Compiled once for each target.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "products-inl.h"
#include "simd_math-inl.h"
#include "tile_state-inl.h"

#if defined(SEQATTN_CPU_UNPACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_UNPACK_INL_H_
#undef SEQATTN_CPU_UNPACK_INL_H_
#else
#define SEQATTN_CPU_UNPACK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

template <class T>
void load_row(const T* from, std::size_t dim, float scale, float* to) {
  const Floats factor = hn::Set(kFloatTag, scale);
  std::size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(hn::Mul(load(from + d), factor), to + d);
  if (d < dim) store(hn::Mul(load_some(from + d, dim - d), factor), to + d), d += kLanes;
  for (; d < padded_dim(static_cast<int>(dim)); d += kLanes) store(hn::Zero(kFloatTag), to + d);
}

// Calls body(elements), which begin that many behind the tensor's first, in their own type; none
// has 8 bits.
template <class Body>
HWY_INLINE void with_elements(const TensorView& tensor, std::int64_t offset, const Body& body) {
  switch (tensor.dtype) {
    case DType::kFloat32:
      return body(static_cast<float*>(tensor.data) + offset);
    case DType::kFloat16:
      return body(static_cast<hwy::float16_t*>(tensor.data) + offset);
    case DType::kBFloat16:
      return body(static_cast<hwy::bfloat16_t*>(tensor.data) + offset);
    case DType::kFloat8E4M3:
      break;
  }
}

// Where query row r of the tile begins in q.
inline std::int64_t query_offset(const AttentionCall& call, const QueryTile& tile, int r) {
  const int group = call.shape.group_size();
  const std::int64_t token = tile.row.q_begin + (tile.first_row + r) / group;
  const std::int64_t head = tile.kv_head * group + (tile.first_row + r) % group;
  return token * call.q.strides[0] + head * call.q.strides[1];
}

// Makes q . k a logit in base 2; with a soft cap: the argument of tanh.
inline float score_factor(const AttentionShape& shape) {
  return shape.sm_scale * (shape.logits_soft_cap > 0 ? 1 / shape.logits_soft_cap : kLog2E);
}

// Queries times that factor.
inline void load_queries(const AttentionCall& call, const TileProgress& progress,
                         const ScoreShape& shape, const Scratch& scratch) {
  const QueryTile& tile = progress.tile;
  const std::size_t dim = call.shape.head_dim;
  const std::size_t stride = padded_dim(call.shape.head_dim);
  const float scale = score_factor(call.shape);
  std::fill_n(progress.queries, shape.stride * stride, 0.0f);
  for (int r = 0; r < tile.num_rows; ++r) {
    const std::int64_t offset = query_offset(call, tile, r);
    float* row = shape.few() ? progress.queries + r * stride : scratch.row;
    with_elements(call.q, offset,
                  [&](const auto* from) HWY_ATTR { load_row(from, dim, scale, row); });
    if (shape.few()) continue;
    for (std::size_t d = 0; d < dim; ++d) progress.queries[d * shape.stride + r] = row[d];
  }
}

// Unpacks tokens to [count, unpacked_stride(dim)] floats; false where some are infinite or NaN.
template <class T>
bool load_tokens(const std::byte* const* tokens, NextLines& next, int count, std::size_t dim,
                 float* to) {
  const std::size_t stride = unpacked_stride(static_cast<int>(dim));
  const std::size_t padded = padded_dim(static_cast<int>(dim));
  Floats marks = hn::Zero(kFloatTag);  // x * 0 is NaN where x is not finite
  const auto put = [&](Floats value, std::size_t d) HWY_ATTR {
    store(value, to + d);
    marks = hn::MulAdd(value, hn::Zero(kFloatTag), marks);
  };
  for (int t = 0; t < count; ++t, to += stride) {
    const T* const from = reinterpret_cast<const T*>(tokens[t]);
    for (std::size_t line = 0; line < dim * sizeof(T); line += kLineBytes) next.prefetch_one();
    std::size_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) put(load(from + d), d);
    if (d < dim) put(load_some(from + d, dim - d), d), d += kLanes;
    for (; d < padded; d += kLanes) store(hn::Zero(kFloatTag), to + d);
  }
  return hn::AllTrue(kFloatTag, hn::Eq(marks, marks));
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
