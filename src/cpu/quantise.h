#pragma once

#include <cstdint>

#include "seqattn/types.h"

// Between elements of 8 bits with a scale and those of a type without.
namespace seqattn {

struct Quantisation {
  // The greatest magnitude of so many elements that are finite; 0 without any.
  float (*largest)(const void* from, std::int64_t count);
  // to[i] = from[i] * factor, to nearest, ties to even, saturating.
  void (*quantise)(const void* from, void* to, std::int64_t count, float factor);
  // to[i] = from[i] * scale.
  void (*dequantise)(const void* from, void* to, std::int64_t count, float scale);
};

// `other` is the type without scales. The instruction set is this machine's best.
const Quantisation& quantisation(DType other);

// The scale of a token's head whose greatest magnitude is this: 448, the greatest number of 8 bits,
// stands for it. Never so small that its reciprocal were infinite; for zeros it is that least one,
// so that a token that adds nothing does not count among those that do.
float token_scale(float largest);

}  // namespace seqattn
