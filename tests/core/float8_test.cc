#include "seqattn/float8.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "random_source.h"

// Reference conversions here work by value in double, nothing by bit tricks.
namespace seqattn {
namespace {

// The value of a bit pattern by the definition of the format.
double value_of(int bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  const double sign = (bits & 0x80) != 0 ? -1 : 1;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

// The pattern nearest to a number, found among all of them; of two as near the even one.
int nearest(double x) {
  int best = 0;
  for (int bits = 1; bits < 0x7f; ++bits) {
    const double difference = std::abs(value_of(bits) - std::abs(x));
    const double least = std::abs(value_of(best) - std::abs(x));
    if (difference < least || (difference == least && bits % 2 == 0)) best = bits;
  }
  return best | (std::signbit(x) ? 0x80 : 0);
}

TEST(Float8, DecodesEveryPattern) {
  for (int bits = 0; bits < 256; ++bits) {
    const float decoded = from_float8_e4m3(static_cast<std::uint8_t>(bits));
    const double expected = value_of(bits);
    EXPECT_EQ(std::isnan(decoded), std::isnan(expected)) << bits;
    if (std::isnan(expected)) continue;
    EXPECT_EQ(decoded, expected) << bits;
    EXPECT_EQ(std::signbit(decoded), (bits & 0x80) != 0) << bits;
    EXPECT_EQ(to_float8_e4m3(decoded), bits);
  }
}

TEST(Float8, RoundsToNearestEven) {
  auto random = testing::random_source(41);
  for (int i = 0; i < 20000; ++i) {
    // Exponents from far below the least to far above the greatest number.
    const double unit = std::ldexp(1.0, static_cast<int>(random() % 26) - 15);
    const auto x = static_cast<float>(unit * (1 + static_cast<double>(random() % 4096) / 4096) *
                                      (random() % 2 == 0 ? 1 : -1));
    ASSERT_EQ(to_float8_e4m3(x), nearest(x)) << x;
  }
  for (int bits = 0; bits < 0x7e; ++bits) {  // halfway, and a hair to either side
    const auto middle = static_cast<float>((value_of(bits) + value_of(bits + 1)) / 2);
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      ASSERT_EQ(to_float8_e4m3(x), nearest(x)) << x;
      ASSERT_EQ(to_float8_e4m3(-x), nearest(-x)) << x;
    }
  }
}

TEST(Float8, SaturatesAndKeepsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {448.0f, 449.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(to_float8_e4m3(x), 0x7e);
    EXPECT_EQ(to_float8_e4m3(-x), 0xfe);
  }
  EXPECT_TRUE(std::isnan(from_float8_e4m3(to_float8_e4m3(std::nanf("")))));
  EXPECT_EQ(to_float8_e4m3(0.0f), 0);
  EXPECT_EQ(to_float8_e4m3(-0.0f), 0x80);
  EXPECT_EQ(to_float8_e4m3(std::numeric_limits<float>::denorm_min()), 0);
  static_assert(from_float8_e4m3(to_float8_e4m3(kMaxFloat8E4M3)) == kMaxFloat8E4M3);
}

}  // namespace
}  // namespace seqattn
