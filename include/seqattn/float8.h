#pragma once

#include <bit>
#include <cstdint>
#include <limits>

// 8-bit floats as their bits, as half.h has the 16-bit ones: e4m3fn, of 4 bits of exponent and 3 of
// mantissa, whose greatest number is 448 and which has NaN but no infinities (Micikevicius et al.
// 2022).
namespace seqattn {

inline constexpr float kMaxFloat8E4M3 = 448;

constexpr float from_float8_e4m3(std::uint8_t bits) noexcept {
  // Through normal numbers alone: others may count as zeros, by a flag of the processor.
  const std::uint32_t magnitude = bits & 0x7fu;
  const float value = magnitude == 0x7fu ? std::numeric_limits<float>::quiet_NaN()
                      : magnitude < 8    ? static_cast<float>(magnitude) * 0x1p-9f
                                         : std::bit_cast<float>((magnitude << 20) + 0x3c000000u);
  return (bits & 0x80u) != 0 ? -value : value;
}

// Rounds to nearest, ties to even; saturates: what is beyond 448 in magnitude, infinities too,
// keeps its sign and becomes 448. NaN stays NaN.
constexpr std::uint8_t to_float8_e4m3(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // >= 448
  if (magnitude < 0x3c800000u) {
    // Below 2^-6, the smallest normal: adding 2^14 leaves the rounded count of steps of 2^-9 in the
    // mantissa.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<std::uint8_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<std::uint8_t>(sign | ((rounded - 0x3c000000u) >> 20));
}

}  // namespace seqattn
