#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "seqattn/float8.h"
#include "seqattn/half.h"
#include "seqattn/types.h"

// Elements one by one, between doubles and the bytes of a type.
namespace seqattn::ref {

inline void encode(DType dtype, double value, std::byte* to) {
  const auto as_float = static_cast<float>(value);
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &as_float, sizeof as_float);
    return;
  }
  if (dtype == DType::kFloat8E4M3) {
    *to = static_cast<std::byte>(to_float8_e4m3(as_float));
    return;
  }
  const std::uint16_t bits =
      dtype == DType::kFloat16 ? to_float16(as_float) : to_bfloat16(as_float);
  std::memcpy(to, &bits, sizeof bits);
}

inline double decode(DType dtype, const std::byte* from) {
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  if (dtype == DType::kFloat8E4M3) return from_float8_e4m3(static_cast<std::uint8_t>(*from));
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return dtype == DType::kFloat16 ? from_float16(bits) : from_bfloat16(bits);
}

}  // namespace seqattn::ref
