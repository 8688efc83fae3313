#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "next_lines.h"

// The two products of attention by a CPU's own dot products: of pairs of bfloat16, summed up in
// float32. Keys and values go in as the cache holds them; queries and the weights of the softmax
// are rounded to bfloat16, to nearest even. The instructions take subnormal numbers for zeros.
//
// A *pair* is two bfloat16s in 32 bits, the first one low: of two neighbouring elements of a query
// or key for scores, of two neighbouring tokens for weights and values.
namespace seqattn {

// head_dim and head_dim_v have to be multiples of this: a vector of pairs.
inline constexpr std::size_t kBFloat16Block = 32;

// Keys, or values, as they lie in pages: `count` rows of `dim` elements, an even number of them.
struct BFloat16Tokens {
  const std::byte* const* rows;
  std::size_t count;
  std::size_t dim;
  NextLines next;  // is prefetched meanwhile
};

// Scores, and in the end weights, [tokens, stride], of which the first num_rows columns count. Few
// rows have a stride of 4 or 8, more a multiple of 16.
struct ScoreBlock {
  float* data;
  std::size_t num_rows;
  std::size_t stride;
};

// Outputs: data[r, 0 .. dim) <- rescale[r] x data[r, 0 .. dim) + what is new.
struct WeightedSums {
  float* data;
  std::size_t stride;
  const float* rescale;
};

struct BFloat16Unit {
  std::string_view name;  // "avx512_bf16"
  // count: a multiple of kBFloat16Block.
  void (*round)(const float* from, std::size_t count, std::uint16_t* to);
  // scores[t, r] = scale x key t . query r; queries are [num_rows, dim] for few rows, else pairs
  // [dim / 2, stride].
  void (*score_few)(const BFloat16Tokens& keys, const std::uint16_t* queries, float scale,
                    const ScoreBlock& scores);
  void (*score_many)(const BFloat16Tokens& keys, const std::uint32_t* queries, float scale,
                     const ScoreBlock& scores);
  // Both round the weights first, in place: pairs [tokens / 2, stride] then.
  void (*weigh_tokens)(const ScoreBlock& weights, const BFloat16Tokens& values,
                       const WeightedSums& sums);
  // `packed`, pairs [tokens / 2, dim], is what pack_values has made.
  void (*weigh_packed)(const ScoreBlock& weights, const BFloat16Tokens& values,
                       const std::uint32_t* packed, const WeightedSums& sums);
  // Packs zeros in the place of infinities and NaN; returns whether there were none.
  bool (*pack_values)(const BFloat16Tokens& values, std::uint32_t* packed);
};

// That of this CPU, or null.
const BFloat16Unit* bfloat16_unit() noexcept;

// Takes the place of the CPU's own one for what is made from now on; null ends that.
void set_bfloat16_unit_for_test(const BFloat16Unit* unit) noexcept;

}  // namespace seqattn
