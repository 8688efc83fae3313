#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "bfloat16_scores.h"
#include "bfloat16_unit.h"
#include "bfloat16_values.h"

// The functions of a BFloat16Unit over vectors of 16 pairs or floats, `Dot`:
//
//   Floats, Pairs, kLanes = 16; kSums: how many an inner loop keeps in registers
//   zero(), load(const float*), scale(Floats, float), store(Floats, float*)
//   load_pairs(const void*), store_pairs(Pairs, void*)
//   broadcast(const void*): one pair, everywhere
//   store_rounded(Floats, Floats, std::uint16_t*)
//   dot(Floats sums, Pairs, Pairs): sums[i] + a[2i] b[2i] + a[2i + 1] b[2i + 1]
//   store_sums(Floats a, b, c, d, float factor, float* to): factor x the sum of each one's lanes
//   finite(Pairs, bool& all): zeros for infinities and NaN, and then `all` becomes false
//   pair_up(Floats even, Floats odd): pairs of the rounded floats
//   split(stride, Floats& x, Floats& y): of 32 / stride tokens, the even ones to x, the odd ones y
//   interleave(Pairs& x, Pairs& y): 32 elements each of two tokens become 32 pairs
//
// Include it where the compiler may use the instructions of Dot.
namespace seqattn::bfloat16_products {

template <class Dot>
void round(const float* from, std::size_t count, std::uint16_t* to) {
  for (std::size_t i = 0; i < count; i += 2 * Dot::kLanes) {
    Dot::store_rounded(Dot::load(from + i), Dot::load(from + i + Dot::kLanes), to + i);
  }
}

template <class Dot>
constexpr BFloat16Unit unit_of(std::string_view name) {
  return {name,
          round<Dot>,
          score_few<Dot>,
          score_many<Dot>,
          weigh_tokens<Dot>,
          weigh_packed<Dot>,
          pack_values<Dot>};
}

}  // namespace seqattn::bfloat16_products
