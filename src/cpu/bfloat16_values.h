#pragma once

#include <cstddef>
#include <cstdint>

#include "bfloat16_unit.h"
#include "hwy/base.h"

// Weighted sums of values by dot products of bfloat16 pairs. bfloat16_products.h says what Dot is.
namespace seqattn::bfloat16_products {

// The right factor of the second product: what pack_values has made ...
template <class Dot>
struct PackedValues {
  const std::uint32_t* data;
  std::size_t dim;
  HWY_INLINE void load(std::size_t pair, std::size_t column, typename Dot::Pairs& low,
                       typename Dot::Pairs& high) {
    const std::uint32_t* const from = data + pair * dim + column;
    low = Dot::load_pairs(from);
    high = Dot::load_pairs(from + Dot::kLanes);
  }
};

// ... or tokens in their pages, while the next tile's are prefetched.
template <class Dot>
struct PagedValues {
  const std::byte* const* rows;
  NextLines next;
  HWY_INLINE void load(std::size_t pair, std::size_t column, typename Dot::Pairs& low,
                       typename Dot::Pairs& high) {
    next.prefetch_one();
    next.prefetch_one();
    low = Dot::load_pairs(rows[2 * pair] + 2 * column);
    high = Dot::load_pairs(rows[2 * pair + 1] + 2 * column);
    Dot::interleave(low, high);
  }
};

// kRows rows and kBlocks blocks of columns from `column` on.
template <class Dot, int kRows, int kBlocks, class Values>
HWY_INLINE void weigh_block(const std::uint32_t* weights, std::size_t weight_stride,
                            std::size_t num_pairs, Values& values, std::size_t column,
                            const WeightedSums& to) {
  static_assert(2 * kRows * kBlocks <= Dot::kSums);
  typename Dot::Floats low[kRows][kBlocks], high[kRows][kBlocks];
  HWY_UNROLL(6)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kBlocks; ++j) {
      const float* const from = to.data + i * to.stride + column + j * kBFloat16Block;
      low[i][j] = Dot::scale(Dot::load(from), to.rescale[i]);
      high[i][j] = Dot::scale(Dot::load(from + Dot::kLanes), to.rescale[i]);
    }
  }
  for (std::size_t pair = 0; pair < num_pairs; ++pair) {
    typename Dot::Pairs value_low[kBlocks], value_high[kBlocks];
    HWY_UNROLL(4)
    for (int j = 0; j < kBlocks; ++j) {
      values.load(pair, column + j * kBFloat16Block, value_low[j], value_high[j]);
    }
    HWY_UNROLL(6)
    for (int i = 0; i < kRows; ++i) {
      const typename Dot::Pairs weight = Dot::broadcast(weights + pair * weight_stride + i);
      HWY_UNROLL(4)
      for (int j = 0; j < kBlocks; ++j) {
        low[i][j] = Dot::dot(low[i][j], weight, value_low[j]);
        high[i][j] = Dot::dot(high[i][j], weight, value_high[j]);
      }
    }
  }
  HWY_UNROLL(6)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kBlocks; ++j) {
      float* const into = to.data + i * to.stride + column + j * kBFloat16Block;
      Dot::store(low[i][j], into);
      Dot::store(high[i][j], into + Dot::kLanes);
    }
  }
}

template <class Dot, int kRows, int kBlocks, class Values>
HWY_INLINE std::size_t weigh_columns(const ScoreBlock& weights, std::size_t num_pairs,
                                     Values& values, std::size_t column, std::size_t dim,
                                     const WeightedSums& to) {
  const auto* const pairs = reinterpret_cast<const std::uint32_t*>(weights.data);
  for (; column + kBlocks * kBFloat16Block <= dim; column += kBlocks * kBFloat16Block) {
    for (std::size_t r = 0; r < weights.num_rows; r += kRows) {
      weigh_block<Dot, kRows, kBlocks>(pairs + r, weights.stride, num_pairs, values, column,
                                       {to.data + r * to.stride, to.stride, to.rescale + r});
    }
  }
  return column;
}

// Rows are rounded up to kRows.
template <class Dot, int kRows, class Values>
HWY_NOINLINE void weigh_rows(const ScoreBlock& weights, std::size_t num_pairs, Values values,
                             std::size_t dim, const WeightedSums& to) {
  constexpr int kWidest = kRows <= 3 ? 4 : 2;
  std::size_t column = weigh_columns<Dot, kRows, kWidest>(weights, num_pairs, values, 0, dim, to);
  if (kWidest > 2) {
    column = weigh_columns<Dot, kRows, 2>(weights, num_pairs, values, column, dim, to);
  }
  weigh_columns<Dot, kRows, 1>(weights, num_pairs, values, column, dim, to);
}

// Weights become pairs, at the front of their own memory: nothing is overwritten unread.
template <class Dot>
HWY_INLINE void pair_weights(const ScoreBlock& weights, std::size_t num_tokens) {
  const std::size_t stride = weights.stride;
  if (stride < Dot::kLanes) {
    for (std::size_t i = 0; i < num_tokens * stride; i += 2 * Dot::kLanes) {
      typename Dot::Floats x = Dot::load(weights.data + i);
      typename Dot::Floats y = Dot::load(weights.data + i + Dot::kLanes);
      Dot::split(stride, x, y);
      Dot::store_pairs(Dot::pair_up(x, y), weights.data + i / 2);
    }
    return;
  }
  for (std::size_t pair = 0; pair < num_tokens / 2; ++pair) {
    for (std::size_t c = 0; c < stride; c += Dot::kLanes) {
      const float* const even = weights.data + 2 * pair * stride + c;
      Dot::store_pairs(Dot::pair_up(Dot::load(even), Dot::load(even + stride)),
                       weights.data + pair * stride + c);
    }
  }
}

template <class Dot, class Values>
HWY_INLINE void weigh(const ScoreBlock& weights, std::size_t num_tokens, const Values& values,
                      std::size_t dim, const WeightedSums& to) {
  pair_weights<Dot>(weights, num_tokens);
  const std::size_t rows = weights.num_rows, num_pairs = num_tokens / 2;
  if (rows > 8) {
    weigh_rows<Dot, 6>(weights, num_pairs, values, dim, to);
  } else if (rows == 1) {
    weigh_rows<Dot, 1>(weights, num_pairs, values, dim, to);
  } else if (rows == 2) {
    weigh_rows<Dot, 2>(weights, num_pairs, values, dim, to);
  } else if (rows == 3 || rows == 6) {
    weigh_rows<Dot, 3>(weights, num_pairs, values, dim, to);
  } else {
    weigh_rows<Dot, 4>(weights, num_pairs, values, dim, to);
  }
}

template <class Dot>
void weigh_tokens(const ScoreBlock& weights, const BFloat16Tokens& values, const WeightedSums& to) {
  weigh<Dot>(weights, values.count, PagedValues<Dot>{values.rows, values.next}, values.dim, to);
}

template <class Dot>
void weigh_packed(const ScoreBlock& weights, const BFloat16Tokens& values,
                  const std::uint32_t* packed, const WeightedSums& to) {
  weigh<Dot>(weights, values.count, PackedValues<Dot>{packed, values.dim}, values.dim, to);
}

template <class Dot>
bool pack_values(const BFloat16Tokens& values, std::uint32_t* packed) {
  bool all_finite = true;
  NextLines next = values.next;
  for (std::size_t t = 0; t < values.count; t += 2) {
    for (std::size_t d = 0; d < values.dim; d += kBFloat16Block, packed += kBFloat16Block) {
      next.prefetch_one();
      next.prefetch_one();
      auto low = Dot::finite(Dot::load_pairs(values.rows[t] + 2 * d), all_finite);
      auto high = Dot::finite(Dot::load_pairs(values.rows[t + 1] + 2 * d), all_finite);
      Dot::interleave(low, high);
      Dot::store_pairs(low, packed);
      Dot::store_pairs(high, packed + Dot::kLanes);
    }
  }
  return all_finite;
}

}  // namespace seqattn::bfloat16_products
