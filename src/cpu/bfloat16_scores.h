#pragma once

#include <cstddef>
#include <cstdint>

#include "bfloat16_unit.h"
#include "hwy/base.h"

// Scores by dot products of bfloat16 pairs. bfloat16_products.h says what Dot is.
namespace seqattn::bfloat16_products {

// Few queries, token by token: a vector goes along the head's dimension, so that each sum's lanes
// have to be added up in the end.
template <class Dot, int kQueries>
HWY_INLINE void score_queries(const BFloat16Tokens& keys, NextLines& next,
                              const std::uint16_t* queries, float factor, float* scores,
                              std::size_t stride) {
  constexpr int kTokens = kQueries == 1 ? 12 : 6;  // divisors of kTokenStep
  for (std::size_t t = 0; t < keys.count; t += kTokens) {
    typename Dot::Floats sums[kTokens][4];
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      HWY_UNROLL(4)
      for (int j = 0; j < 4; ++j) sums[i][j] = Dot::zero();
    }
    for (std::size_t d = 0; d < keys.dim; d += 2 * Dot::kLanes) {
      typename Dot::Pairs tokens[kTokens];
      HWY_UNROLL(12)
      for (int i = 0; i < kTokens; ++i) {
        next.prefetch_one();
        tokens[i] = Dot::load_pairs(keys.rows[t + i] + 2 * d);
      }
      HWY_UNROLL(4)
      for (int j = 0; j < kQueries; ++j) {
        const typename Dot::Pairs query = Dot::load_pairs(queries + j * keys.dim + d);
        HWY_UNROLL(12)
        for (int i = 0; i < kTokens; ++i) sums[i][j] = Dot::dot(sums[i][j], tokens[i], query);
      }
    }
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      Dot::store_sums(sums[i][0], sums[i][1], sums[i][2], sums[i][3], factor,
                      scores + (t + i) * stride);
    }
  }
}

template <class Dot>
void score_few(const BFloat16Tokens& keys, const std::uint16_t* queries, float factor,
               const ScoreBlock& scores) {
  NextLines next = keys.next;
  for (std::size_t r = 0; r < scores.num_rows; r += 4) {
    const std::uint16_t* const from = queries + r * keys.dim;
    float* const to = scores.data + r;
    switch (scores.num_rows - r) {
      case 1:
        score_queries<Dot, 1>(keys, next, from, factor, to, scores.stride);
        break;
      case 2:
        score_queries<Dot, 2>(keys, next, from, factor, to, scores.stride);
        break;
      case 3:
        score_queries<Dot, 3>(keys, next, from, factor, to, scores.stride);
        break;
      default:
        score_queries<Dot, 4>(keys, next, from, factor, to, scores.stride);
    }
  }
}

// Many queries: a vector goes along the query rows, and keys are broadcast out of their pages.
template <class Dot, int kVectors>
HWY_INLINE void score_vectors(const BFloat16Tokens& keys, const std::uint32_t* queries,
                              float factor, float* scores, std::size_t stride) {
  constexpr int kTokens = kVectors <= 2 ? 12 : kVectors <= 4 ? 6 : 4;  // divisors of kTokenStep
  static_assert(kTokens * kVectors <= Dot::kSums);
  NextLines next = keys.next;
  for (std::size_t t = 0; t < keys.count; t += kTokens) {
    typename Dot::Floats sums[kTokens][kVectors];
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      HWY_UNROLL(6)
      for (int j = 0; j < kVectors; ++j) sums[i][j] = Dot::zero();
    }
    for (std::size_t d = 0; d < keys.dim; d += 2) {
      if (2 * d % kLineBytes == 0) {
        for (int i = 0; i < kTokens; ++i) next.prefetch_one();
      }
      const std::uint32_t* const from = queries + d / 2 * stride;
      typename Dot::Pairs rows[kVectors];
      HWY_UNROLL(6)
      for (int j = 0; j < kVectors; ++j) rows[j] = Dot::load_pairs(from + j * Dot::kLanes);
      HWY_UNROLL(12)
      for (int i = 0; i < kTokens; ++i) {
        const typename Dot::Pairs key = Dot::broadcast(keys.rows[t + i] + 2 * d);
        HWY_UNROLL(6)
        for (int j = 0; j < kVectors; ++j) sums[i][j] = Dot::dot(sums[i][j], key, rows[j]);
      }
    }
    HWY_UNROLL(12)
    for (int i = 0; i < kTokens; ++i) {
      HWY_UNROLL(6)
      for (int j = 0; j < kVectors; ++j) {
        Dot::store(Dot::scale(sums[i][j], factor), scores + (t + i) * stride + j * Dot::kLanes);
      }
    }
  }
}

template <class Dot>
void score_many(const BFloat16Tokens& keys, const std::uint32_t* queries, float factor,
                const ScoreBlock& scores) {
  switch (scores.stride / Dot::kLanes) {
    case 1:
      return score_vectors<Dot, 1>(keys, queries, factor, scores.data, scores.stride);
    case 2:
      return score_vectors<Dot, 2>(keys, queries, factor, scores.data, scores.stride);
    case 3:
      return score_vectors<Dot, 3>(keys, queries, factor, scores.data, scores.stride);
    case 4:
      return score_vectors<Dot, 4>(keys, queries, factor, scores.data, scores.stride);
    case 5:
      return score_vectors<Dot, 5>(keys, queries, factor, scores.data, scores.stride);
    default:
      return score_vectors<Dot, 6>(keys, queries, factor, scores.data, scores.stride);
  }
}

}  // namespace seqattn::bfloat16_products
