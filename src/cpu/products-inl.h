// The two inner products of attention, register-blocked. Compiled once for each target.

#include <cstddef>

#include "hwy/highway.h"
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

// With 32 registers, 6 x 4 sums and what they are made of fit; with 16, 6 x 2.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_ARCH_ARM_A64
inline constexpr int kWideBlock = 4;
inline constexpr int kDotTokens = 4;
#else
inline constexpr int kWideBlock = 2;
inline constexpr int kDotTokens = 2;
#endif

// Into the second-level cache: what comes next must not push out what is in use.
HWY_INLINE void prefetch(const std::byte* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// The right factor of a product, row by row: floats at a fixed distance ...
struct DenseRows {
  const float* data;
  std::size_t stride;
  const float* row(std::size_t k) const { return data + k * stride; }
  void prefetch_next(std::size_t, std::size_t, std::size_t) const {}
};

// ... or tokens of pages in their own type, while the next tile's are prefetched.
template <class T>
struct TokenRows {
  const std::byte* const* tokens;
  const std::byte* const* next;
  const T* row(std::size_t k) const { return reinterpret_cast<const T*>(tokens[k]); }
  void prefetch_next(std::size_t k, std::size_t column, std::size_t columns) const {
    prefetch(next[k] + column * sizeof(T), columns * sizeof(T));
  }
};

// The left factor: element (i, k) at data[i * row + k * step].
struct LeftFactor {
  const float* data;
  std::size_t row;
  std::size_t step;
};

// c[kRows, kVectors vectors] (+)= a[kRows, depth] b[depth, from `column` on]. With kSkipZeros a
// zero of `a` stands for "hidden" and does not multiply what may be NaN.
template <int kRows, int kVectors, bool kSkipZeros, class Right>
HWY_INLINE void multiply_block(LeftFactor a, const Right& b, std::size_t column, std::size_t depth,
                               bool accumulate, float* c, std::size_t c_stride) {
  Floats sums[kRows][kVectors];
  HWY_UNROLL(8)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : hn::Zero(kFloatTag);
    }
  }
  for (std::size_t k = 0; k < depth; ++k) {
    const auto* right = b.row(k) + column;
    b.prefetch_next(k, column, kVectors * kLanes);
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
    for (int j = 0; j < kVectors; ++j) store(sums[i][j], c + i * c_stride + j * kLanes);
  }
}

template <int kRows, int kVectors, bool kSkipZeros, class Right>
HWY_INLINE std::size_t multiply_columns(LeftFactor a, std::size_t rows, const Right& b,
                                        std::size_t column, std::size_t columns, std::size_t depth,
                                        bool accumulate, float* c, std::size_t c_stride) {
  for (; column + kVectors * kLanes <= columns; column += kVectors * kLanes) {
    for (std::size_t i = 0; i < rows; i += kRows) {
      multiply_block<kRows, kVectors, kSkipZeros>({a.data + i * a.row, a.row, a.step}, b, column,
                                                  depth, accumulate, c + i * c_stride + column,
                                                  c_stride);
    }
  }
  return column;
}

// c[rows, columns] (+)= a b: rows are rounded up to kRows; columns are whole vectors.
template <int kRows, bool kSkipZeros, class Right>
HWY_NOINLINE void multiply(LeftFactor a, std::size_t rows, const Right& b, std::size_t columns,
                           std::size_t depth, bool accumulate, float* c, std::size_t c_stride) {
  std::size_t column = multiply_columns<kRows, kWideBlock, kSkipZeros>(
      a, rows, b, 0, columns, depth, accumulate, c, c_stride);
  if (kWideBlock > 2) {
    column = multiply_columns<kRows, 2, kSkipZeros>(a, rows, b, column, columns, depth, accumulate,
                                                    c, c_stride);
  }
  multiply_columns<kRows, 1, kSkipZeros>(a, rows, b, column, columns, depth, accumulate, c,
                                         c_stride);
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

// scores[t * stride + r] = token t . query r, for whole vectors of `dim` elements; tokens are
// rounded up to kDotTokens, queries [rows, dim_stride] to 4.
template <class T>
HWY_NOINLINE void dot_tokens(const TokenRows<T>& keys, std::size_t num_tokens, const float* queries,
                             std::size_t rows, std::size_t dim_stride, std::size_t dim,
                             float* scores, std::size_t stride) {
  for (std::size_t t = 0; t < num_tokens; t += kDotTokens) {
    for (int i = 0; i < kDotTokens; ++i) keys.prefetch_next(t + i, 0, dim);
    for (std::size_t r = 0; r < rows; r += 4) {
      Floats sums[kDotTokens][4];
      HWY_UNROLL(8)
      for (int i = 0; i < kDotTokens; ++i) {
        HWY_UNROLL(8)
        for (int j = 0; j < 4; ++j) sums[i][j] = hn::Zero(kFloatTag);
      }
      for (std::size_t d = 0; d < dim; d += kLanes) {
        Floats tokens[kDotTokens];
        HWY_UNROLL(8)
        for (int i = 0; i < kDotTokens; ++i) tokens[i] = load(keys.row(t + i) + d);
        HWY_UNROLL(8)
        for (int j = 0; j < 4; ++j) {
          const Floats query = load(queries + (r + j) * dim_stride + d);
          HWY_UNROLL(8)
          for (int i = 0; i < kDotTokens; ++i) {
            sums[i][j] = hn::MulAdd(tokens[i], query, sums[i][j]);
          }
        }
      }
      HWY_UNROLL(8)
      for (int i = 0; i < kDotTokens; ++i) {
        store_lane_sums(sums[i][0], sums[i][1], sums[i][2], sums[i][3],
                        scores + (t + i) * stride + r);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
