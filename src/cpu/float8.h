#pragma once

#include <cstdint>

namespace seqattn {

// An element of DType::kFloat8E4M3, as Highway has types for those of 16 bits.
struct Float8 {
  std::uint8_t bits;
};

}  // namespace seqattn
