#include "seqattn/half.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "random_source.h"

// Reference conversions here work by value in double, nothing by bit tricks.
namespace seqattn {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Format {
  int mantissa_bits;
  int min_exponent;  // of normal numbers
  int max_exponent;
  float (*decode)(std::uint16_t);
  std::uint16_t (*encode)(float);
};
constexpr Format kFloat16{10, -14, 15, from_float16, to_float16};
constexpr Format kBFloat16{7, -126, 127, from_bfloat16, to_bfloat16};

// The value of a bit pattern by the definition of IEEE 754.
double value_of(std::uint16_t bits, const Format& format) {
  const int exponent_field = (bits & 0x7fff) >> format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent_field == format.max_exponent - format.min_exponent + 2) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const int unit = format.min_exponent - format.mantissa_bits;
  if (exponent_field == 0) return sign * std::ldexp(mantissa, unit);
  return sign * std::ldexp((1 << format.mantissa_bits) + mantissa, unit + exponent_field - 1);
}

// The value nearest to x, ties to even, as std::nearbyint rounds multiples of the last place.
double rounded(double x, const Format& format) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double nearest = std::nearbyint(x / unit) * unit;
  const double limit = std::ldexp(1.0, format.max_exponent + 1);
  return std::abs(nearest) >= limit ? std::copysign(std::numeric_limits<double>::infinity(), x)
                                    : nearest;
}

void expect_every_pattern_round_trips(const Format& format) {
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double expected = value_of(bits, format);
    const float decoded = format.decode(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(decoded)) << i;
      ASSERT_TRUE(std::isnan(format.decode(format.encode(decoded)))) << i;
      continue;
    }
    ASSERT_EQ(decoded, expected) << i;
    ASSERT_EQ(std::signbit(decoded), (bits & 0x8000) != 0) << i;
    ASSERT_EQ(format.encode(decoded), bits) << i;
  }
}

TEST(Half, EveryFloat16RoundTrips) { expect_every_pattern_round_trips(kFloat16); }
TEST(Half, EveryBFloat16RoundTrips) { expect_every_pattern_round_trips(kBFloat16); }

// Between two neighbours lie their midpoint and the floats next to it.
void expect_midpoints_go_to_the_even_neighbour(const Format& format) {
  for (int i = 0; i < 0x7fff; ++i) {
    const auto low = static_cast<std::uint16_t>(i), high = static_cast<std::uint16_t>(i + 1);
    if (!std::isfinite(value_of(high, format))) continue;
    const auto middle = static_cast<float>((value_of(low, format) + value_of(high, format)) / 2);
    const std::uint16_t even = i % 2 == 0 ? low : high;
    ASSERT_EQ(format.encode(middle), even) << i;
    ASSERT_EQ(format.encode(-middle), even | 0x8000) << i;
    ASSERT_EQ(format.encode(std::nextafter(middle, 0.0f)), low) << i;
    ASSERT_EQ(format.encode(std::nextafter(middle, kInfinity)), high) << i;
  }
}

TEST(Half, TiesGoToTheEvenFloat16) { expect_midpoints_go_to_the_even_neighbour(kFloat16); }
TEST(Half, TiesGoToTheEvenBFloat16) { expect_midpoints_go_to_the_even_neighbour(kBFloat16); }

TEST(Half, AnyFloatRoundsToTheNearest) {
  auto random = testing::random_source(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    for (const Format& format : {kFloat16, kBFloat16}) {
      const float result = format.decode(format.encode(x));
      if (std::isnan(x)) {
        ASSERT_TRUE(std::isnan(result));
      } else {
        ASSERT_EQ(result, rounded(x, format)) << x;
        ASSERT_EQ(std::signbit(result), std::signbit(x)) << x;
      }
    }
  }
}

TEST(Half, Float16OverflowsToInfinity) {
  EXPECT_EQ(to_float16(65504), 0x7bff);
  EXPECT_EQ(to_float16(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(to_float16(65520), 0x7c00);
  EXPECT_EQ(to_float16(-65520), 0xfc00);
  EXPECT_EQ(to_float16(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(to_float16(kInfinity), 0x7c00);
  EXPECT_EQ(to_float16(-kInfinity), 0xfc00);
}

TEST(Half, BFloat16OverflowsOnlyPastItsLastHalfStep) {
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x7f7f7fffu)), 0x7f7f);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x7f7f8000u)), 0x7f80);
  EXPECT_EQ(to_bfloat16(-kInfinity), 0xff80);
}

TEST(Half, TheSmallestNumbersUnderflowByRounding) {
  EXPECT_EQ(to_float16(0x1p-24f), 0x0001);
  EXPECT_EQ(to_float16(0x1p-25f), 0x0000);      // a tie, and 0 is even
  EXPECT_EQ(to_float16(0x1.8p-24f), 0x0002);    // a tie, and 2 is even
  EXPECT_EQ(to_float16(0x1.002p-25f), 0x0001);  // just past the tie
  EXPECT_EQ(to_float16(-0x1p-30f), 0x8000);
  EXPECT_EQ(to_float16(0x1.ff8p-15f), 0x03ff);  // the largest subnormal
  EXPECT_EQ(to_float16(0x1.ffcp-15f), 0x0400);  // a tie that becomes normal
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::denorm_min()), 0x0000);
}

TEST(Half, NaNStaysNaNWhereverItsPayloadLies) {
  for (const std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u}) {
    const auto nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(from_float16(to_float16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(from_bfloat16(to_bfloat16(nan)))) << bits;
  }
  EXPECT_TRUE(std::isnan(from_float16(to_float16(-kNaN))));
}

// Usable in constant expressions.
static_assert(to_float16(1.0f) == 0x3c00 && from_float16(0x3c00) == 1.0f);
static_assert(to_bfloat16(1.0f) == 0x3f80 && from_bfloat16(0x3f80) == 1.0f);

}  // namespace
}  // namespace seqattn
