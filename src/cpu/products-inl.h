// The two inner products of attention, register-blocked. Compiled once for each target.

#include <cstddef>

#include "hwy/highway.h"
#include "next_lines.h"
#include "simd_math-inl.h"

#if defined(SEQATTN_CPU_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_PRODUCTS_INL_H_
#undef SEQATTN_CPU_PRODUCTS_INL_H_
#else
#define SEQATTN_CPU_PRODUCTS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

// How many sums an inner loop keeps in registers, beside what they are made of.
#if HWY_MAX_BYTES >= 64 || HWY_ARCH_ARM_A64
inline constexpr int kSums = 24;  // of 32
#else
inline constexpr int kSums = 12;  // of 16
#endif

// Tiles of tokens are padded to a multiple of this, of which every inner loop takes a divisor at a
// time.
inline constexpr int kTokenStep = 12;

// The right factor of a product, row by row: floats at a fixed distance ...
struct DenseRows {
  using Element = float;
  const float* data;
  std::size_t stride;
  const float* row(std::size_t k) const { return data + k * stride; }
  static HWY_INLINE void prefetch_one() {}
};

// ... or tokens of pages in their own type, while the next tile's lines are prefetched.
template <class T>
struct TokenRows {
  using Element = T;
  const std::byte* const* tokens;
  NextLines next;
  const T* row(std::size_t k) const { return reinterpret_cast<const T*>(tokens[k]); }
  HWY_INLINE void prefetch_one() { next.prefetch_one(); }
};

// The left factor: element (i, k) at data[i * row + k * step].
struct LeftFactor {
  const float* data;
  std::size_t row;
  std::size_t step;
};

// Where a product goes: c[i * stride + j]. With `scale` it is added to scale[i] times what is
// there.
struct Product {
  float* c;
  std::size_t stride;
  const float* scale = nullptr;
};

// c[kRows, kVectors vectors] (+)= a[kRows, depth] b[depth, from `column` on]. With kSkipZeros a
// zero of `a` stands for "hidden" and does not multiply what may be NaN.
template <int kRows, int kVectors, bool kSkipZeros, class Right>
HWY_INLINE void multiply_block(LeftFactor a, Right& b, std::size_t column, std::size_t depth,
                               Product to) {
  Floats sums[kRows][kVectors];
  HWY_UNROLL(8)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = to.scale == nullptr ? hn::Zero(kFloatTag)
                                       : hn::Mul(load(to.c + i * to.stride + j * kLanes),
                                                 hn::Set(kFloatTag, to.scale[i]));
    }
  }
  // Of every row of b this block uses up so much; a line is due each time that adds up to one.
  constexpr std::size_t kBytes = kVectors * kLanes * sizeof(typename Right::Element);
  std::size_t used = 0;
  for (std::size_t k = 0; k < depth; ++k) {
    const auto* right = b.row(k) + column;
    for (used += kBytes; used >= kLineBytes; used -= kLineBytes) b.prefetch_one();
    Floats vectors[kVectors];
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) vectors[j] = load(right + j * kLanes);
    HWY_UNROLL(8)
    for (int i = 0; i < kRows; ++i) {
      const Floats left = hn::Set(kFloatTag, a.data[i * a.row + k * a.step]);
      HWY_UNROLL(8)
      for (int j = 0; j < kVectors; ++j) {
        Floats value = vectors[j];
        if (kSkipZeros) value = hn::IfThenElseZero(hn::Ne(left, hn::Zero(kFloatTag)), value);
        sums[i][j] = hn::MulAdd(value, left, sums[i][j]);
      }
    }
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) store(sums[i][j], to.c + i * to.stride + j * kLanes);
  }
}

template <int kRows, int kVectors, bool kSkipZeros, class Right>
HWY_INLINE std::size_t multiply_columns(LeftFactor a, std::size_t rows, Right& b,
                                        std::size_t column, std::size_t columns, std::size_t depth,
                                        Product to) {
  for (; column + kVectors * kLanes <= columns; column += kVectors * kLanes) {
    if (kVectors == 3 && column + 4 * kLanes == columns) break;  // two and two are better
    for (std::size_t i = 0; i < rows; i += kRows) {
      const float* const scale = to.scale == nullptr ? nullptr : to.scale + i;
      multiply_block<kRows, kVectors, kSkipZeros>(
          {a.data + i * a.row, a.row, a.step}, b, column, depth,
          {to.c + i * to.stride + column, to.stride, scale});
    }
  }
  return column;
}

// c[rows, columns] (+)= a b: rows are rounded up to kRows; columns are whole vectors.
template <int kRows, bool kSkipZeros, class Right>
HWY_NOINLINE void multiply(LeftFactor a, std::size_t rows, Right b, std::size_t columns,
                           std::size_t depth, Product to) {
  constexpr int kMost = kSums / kRows;
  constexpr int kWidth = kMost >= 8 ? 8 : kMost >= 4 ? 4 : kMost;
  std::size_t column =
      multiply_columns<kRows, kWidth, kSkipZeros>(a, rows, b, 0, columns, depth, to);
  if (kWidth > 4) {
    column = multiply_columns<kRows, 4, kSkipZeros>(a, rows, b, column, columns, depth, to);
  }
  if (kWidth > 2) {
    column = multiply_columns<kRows, 2, kSkipZeros>(a, rows, b, column, columns, depth, to);
  }
  multiply_columns<kRows, 1, kSkipZeros>(a, rows, b, column, columns, depth, to);
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void store_lane_sums(Floats a, Floats b, Floats c, Floats d, float* to) {
  store(a, to);
  store(b, to + 1);
  store(c, to + 2);
  store(d, to + 3);
}
#else
// Adds up a vector's blocks of four lanes.
template <class Tag, class Vector>
HWY_INLINE void store_block_sum(Tag tag, Vector blocks, float* to) {
  if constexpr (hn::MaxLanes(Tag()) > 4) {
    const hn::Half<Tag> half;
    store_block_sum(half, hn::Add(hn::LowerHalf(half, blocks), hn::UpperHalf(half, blocks)), to);
  } else {
    hn::StoreU(blocks, tag, to);
  }
}

// The sums of four vectors' lanes, to to[0 .. 4).
HWY_INLINE void store_lane_sums(Floats a, Floats b, Floats c, Floats d, float* to) {
  // Pairs of lanes, then pairs of pairs: each block of four lanes becomes [a b c d].
  const hn::Repartition<double, FloatTag> pairs;
  const auto ab = hn::BitCast(
      pairs, hn::Add(hn::InterleaveLower(kFloatTag, a, b), hn::InterleaveUpper(kFloatTag, a, b)));
  const auto cd = hn::BitCast(
      pairs, hn::Add(hn::InterleaveLower(kFloatTag, c, d), hn::InterleaveUpper(kFloatTag, c, d)));
  const Floats lower = hn::BitCast(kFloatTag, hn::InterleaveLower(pairs, ab, cd));
  const Floats upper = hn::BitCast(kFloatTag, hn::InterleaveUpper(pairs, ab, cd));
  store_block_sum(kFloatTag, hn::Add(lower, upper), to);
}
#endif

// How many tokens meet so many queries at once: a divisor of kTokenStep.
constexpr int tokens_at_once(int num_queries) {
  int most = kSums / num_queries < kTokenStep ? kSums / num_queries : kTokenStep;
  while (kTokenStep % most != 0) --most;
  return most;
}

// scores[t * stride + r] = token t . query r, for whole vectors of `dim` elements, so many queries
// and as many tokens as registers hold the sums of; tokens are rounded up to that.
template <int kQueries, class T>
HWY_INLINE void dot_block(TokenRows<T>& keys, std::size_t num_tokens, const float* queries,
                          std::size_t dim_stride, std::size_t dim, bool prefetches, float* scores,
                          std::size_t stride) {
  constexpr int kTokens = tokens_at_once(kQueries);
  for (std::size_t t = 0; t < num_tokens; t += kTokens) {
    Floats sums[kTokens][4];
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      HWY_UNROLL(4)
      for (int j = 0; j < 4; ++j) sums[i][j] = hn::Zero(kFloatTag);
    }
    const T* rows[kTokens];
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) rows[i] = keys.row(t + i);
    for (std::size_t d = 0; d < dim; d += kLanes) {
      if (prefetches && d * sizeof(T) % kLineBytes == 0) {
        HWY_UNROLL(12)
        for (int i = 0; i < kTokens; ++i) keys.prefetch_one();
      }
      Floats tokens[kTokens];
      HWY_UNROLL(12)
      for (int i = 0; i < kTokens; ++i) tokens[i] = load(rows[i] + d);
      HWY_UNROLL(4)
      for (int j = 0; j < kQueries; ++j) {
        const Floats query = load(queries + j * dim_stride + d);
        HWY_UNROLL(12)
        for (int i = 0; i < kTokens; ++i) sums[i][j] = hn::MulAdd(tokens[i], query, sums[i][j]);
      }
    }
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      store_lane_sums(sums[i][0], sums[i][1], sums[i][2], sums[i][3], scores + (t + i) * stride);
    }
  }
}

// Likewise for queries [rows, dim_stride], of which four at a time meet the tokens. The lines that
// come next are prefetched while the first ones do.
template <class T>
HWY_NOINLINE void dot_tokens(TokenRows<T> keys, std::size_t num_tokens, const float* queries,
                             std::size_t rows, std::size_t dim_stride, std::size_t dim,
                             float* scores, std::size_t stride) {
  for (std::size_t r = 0; r < rows; r += 4) {
    const float* const from = queries + r * dim_stride;
    float* const to = scores + r;
    switch (rows - r) {
      case 1:
        dot_block<1>(keys, num_tokens, from, dim_stride, dim, r == 0, to, stride);
        break;
      case 2:
        dot_block<2>(keys, num_tokens, from, dim_stride, dim, r == 0, to, stride);
        break;
      case 3:
        dot_block<3>(keys, num_tokens, from, dim_stride, dim, r == 0, to, stride);
        break;
      default:
        dot_block<4>(keys, num_tokens, from, dim_stride, dim, r == 0, to, stride);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
