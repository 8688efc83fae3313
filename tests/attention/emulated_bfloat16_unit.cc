#include <array>
#include <cmath>
#include <cstring>

#include "bfloat16_products.h"
#include "bfloat16_units.h"
#include "seqattn/half.h"

namespace seqattn::testing {
namespace {

// What bfloat16_products.h asks for, one lane after the other.
struct EmulatedDot {
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kSums = 24;
  using Floats = std::array<float, kLanes>;
  using Pairs = std::array<std::uint16_t, 2 * kLanes>;

  template <class T>
  static T read(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static Floats zero() { return {}; }
  static Floats load(const float* from) { return read<Floats>(from); }
  static void store(const Floats& value, float* to) { std::memcpy(to, &value, sizeof value); }
  static Floats scale(Floats value, float factor) {
    for (float& x : value) x *= factor;
    return value;
  }
  static Pairs load_pairs(const void* from) { return read<Pairs>(from); }
  static void store_pairs(const Pairs& value, void* to) { std::memcpy(to, &value, sizeof value); }
  static Pairs broadcast(const void* from) {
    Pairs pairs;
    for (std::size_t i = 0; i < kLanes; ++i) std::memcpy(&pairs[2 * i], from, sizeof(float));
    return pairs;
  }
  static void store_rounded(const Floats& first, const Floats& second, std::uint16_t* to) {
    for (std::size_t i = 0; i < kLanes; ++i) {
      to[i] = to_bfloat16(first[i]);
      to[kLanes + i] = to_bfloat16(second[i]);
    }
  }
  static Floats dot(Floats sums, const Pairs& a, const Pairs& b) {
    for (std::size_t i = 0; i < 2 * kLanes; ++i) {
      sums[i / 2] += from_bfloat16(a[i]) * from_bfloat16(b[i]);
    }
    return sums;
  }
  static void store_sums(const Floats& a, const Floats& b, const Floats& c, const Floats& d,
                         float factor, float* to) {
    for (const Floats* const lanes : {&a, &b, &c, &d}) {
      float sum = 0;
      for (const float x : *lanes) sum += x;
      *to++ = factor * sum;
    }
  }
  static Pairs finite(Pairs value, bool& all) {
    for (std::uint16_t& x : value) {
      if (std::isfinite(from_bfloat16(x))) continue;
      all = false;
      x = 0;
    }
    return value;
  }
  static Pairs pair_up(const Floats& even, const Floats& odd) {
    Pairs pairs;
    for (std::size_t i = 0; i < kLanes; ++i) {
      pairs[2 * i] = to_bfloat16(even[i]);
      pairs[2 * i + 1] = to_bfloat16(odd[i]);
    }
    return pairs;
  }
  static void split(std::size_t stride, Floats& x, Floats& y) {
    const std::array both{x, y};
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::size_t even = i / stride * 2 * stride + i % stride;
      x[i] = both[even / kLanes][even % kLanes];
      y[i] = both[(even + stride) / kLanes][(even + stride) % kLanes];
    }
  }
  static void interleave(Pairs& x, Pairs& y) {
    const Pairs first = x, second = y;
    for (std::size_t i = 0; i < 2 * kLanes; ++i) {
      Pairs& to = i < kLanes ? x : y;
      to[2 * i % (2 * kLanes)] = first[i];
      to[2 * i % (2 * kLanes) + 1] = second[i];
    }
  }
};

}  // namespace

const BFloat16Unit& emulated_bfloat16_unit() {
  static constexpr BFloat16Unit unit = bfloat16_products::unit_of<EmulatedDot>("emulated");
  return unit;
}

}  // namespace seqattn::testing
