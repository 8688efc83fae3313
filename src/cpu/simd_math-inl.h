// Vectors of float: loads and stores that convert, and 2^x. Compiled once for each target; include
// it after hwy/highway.h.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "float8.h"
#include "hwy/highway.h"
#include "seqattn/float8.h"
#include "seqattn/half.h"

#if defined(SEQATTN_CPU_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_SIMD_MATH_INL_H_
#undef SEQATTN_CPU_SIMD_MATH_INL_H_
#else
#define SEQATTN_CPU_SIMD_MATH_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Floats = hn::Vec<FloatTag>;
inline constexpr FloatTag kFloatTag{};
inline constexpr std::size_t kLanes = hn::MaxLanes(FloatTag());
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

#undef SEQATTN_HAS_F16_CONVERSION
#if HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SCALAR || \
    HWY_TARGET == HWY_EMU128
#define SEQATTN_HAS_F16_CONVERSION 0
#else
#define SEQATTN_HAS_F16_CONVERSION 1
#endif

using HalfTag = hn::Rebind<hwy::float16_t, FloatTag>;
using BitsTag = hn::Rebind<std::uint16_t, FloatTag>;
using ByteTag = hn::Rebind<std::uint8_t, FloatTag>;
using WideBitsTag = hn::Rebind<std::uint32_t, FloatTag>;
using SignedBitsTag = hn::RebindToSigned<FloatTag>;

HWY_INLINE hn::Vec<WideBitsTag> load_bits(const void* from) {
  return hn::PromoteTo(WideBitsTag(),
                       hn::LoadU(BitsTag(), static_cast<const std::uint16_t*>(from)));
}

// kLanes elements at any address.
HWY_INLINE Floats load(const float* from) { return hn::LoadU(kFloatTag, from); }

HWY_INLINE Floats load(const hwy::bfloat16_t* from) {
  return hn::BitCast(kFloatTag, hn::ShiftLeft<16>(load_bits(from)));
}

HWY_INLINE Floats load(const hwy::float16_t* from) {
#if SEQATTN_HAS_F16_CONVERSION
  return hn::PromoteTo(kFloatTag, hn::LoadU(HalfTag(), from));
#else
  // Highway's own emulation knows neither infinities nor NaN.
  const WideBitsTag wide;
  const auto bits = load_bits(from);
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(wide, 0x7fffu)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(wide, 0x8000u)));
  const Floats scaled = hn::Mul(hn::BitCast(kFloatTag, magnitude), hn::Set(kFloatTag, 0x1p112f));
  const Floats special = hn::BitCast(kFloatTag, hn::Or(magnitude, hn::Set(wide, 0x7f800000u)));
  const auto is_special = hn::Ge(scaled, hn::Set(kFloatTag, 65536.0f));
  return hn::Or(hn::IfThenElse(is_special, special, scaled), hn::BitCast(kFloatTag, sign));
#endif
}

HWY_INLINE Floats load(const Float8* from) {
  const WideBitsTag wide;
  const auto bits = hn::PromoteTo(wide, hn::LoadU(ByteTag(), &from->bits));
  const auto magnitude = hn::And(bits, hn::Set(wide, 0x7fu));
  const auto sign = hn::ShiftLeft<24>(hn::Xor(bits, magnitude));
  const auto shifted = hn::ShiftLeft<20>(magnitude);
  const Floats normal = hn::BitCast(kFloatTag, hn::Add(shifted, hn::Set(wide, 0x3c000000u)));
  // Below the smallest normal number, 2^-6, the mantissa counts steps of 2^-9 from 0 on. Through
  // normal floats: others may count as zeros, by a flag of the processor.
  const Floats smallest = hn::Set(kFloatTag, 0x1p-6f);
  const Floats steps =
      hn::Sub(hn::BitCast(kFloatTag, hn::Or(shifted, hn::BitCast(wide, smallest))), smallest);
  const Floats value = hn::IfThenElse(hn::Lt(normal, smallest), steps, normal);
  // Where the largest magnitude, 480 by its bits, stands for NaN.
  const auto is_number = hn::Lt(value, hn::Set(kFloatTag, 480.0f));
  const Floats nan = hn::Set(kFloatTag, std::numeric_limits<float>::quiet_NaN());
  return hn::Or(hn::IfThenElse(is_number, value, nan), hn::BitCast(kFloatTag, sign));
}

// count < kLanes elements; zeros in the other lanes.
template <class T>
HWY_INLINE Floats load_some(const T* from, std::size_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

HWY_INLINE void store(Floats value, float* to) { hn::StoreU(value, kFloatTag, to); }

// These round to nearest even, as half.h does.
HWY_INLINE void store(Floats value, hwy::bfloat16_t* to) {
  float lanes[kLanes];
  store(value, lanes);
  for (std::size_t i = 0; i < kLanes; ++i) to[i].bits = to_bfloat16(lanes[i]);
}

HWY_INLINE void store(Floats value, hwy::float16_t* to) {
#if SEQATTN_HAS_F16_CONVERSION
  hn::StoreU(hn::DemoteTo(HalfTag(), value), HalfTag(), to);
#else
  float lanes[kLanes];
  store(value, lanes);
  for (std::size_t i = 0; i < kLanes; ++i) {
    const std::uint16_t bits = to_float16(lanes[i]);
    std::memcpy(to + i, &bits, sizeof bits);
  }
#endif
}

// As float8.h does, which says why.
HWY_INLINE void store(Floats value, Float8* to) {
  const SignedBitsTag ints;
  const auto bits = hn::BitCast(ints, value);
  const auto magnitude = hn::And(bits, hn::Set(ints, 0x7fffffff));
  const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(ints, 0x80));
  const auto finite = hn::Min(magnitude, hn::Set(ints, 0x43e00000));  // 448
  const auto is_odd = hn::And(hn::ShiftRight<20>(finite), hn::Set(ints, 1));
  const auto rounded = hn::Add(hn::Add(finite, is_odd), hn::Set(ints, 0x7ffff - 0x3c000000));
  const auto normal = hn::ShiftRight<20>(rounded);
  const Floats shifted = hn::Add(hn::BitCast(kFloatTag, magnitude), hn::Set(kFloatTag, 0x1p14f));
  const auto steps = hn::Sub(hn::BitCast(ints, shifted), hn::Set(ints, 0x46800000));
  auto code = hn::IfThenElse(hn::Lt(magnitude, hn::Set(ints, 0x3c800000)), steps, normal);
  code = hn::IfThenElse(hn::Gt(magnitude, hn::Set(ints, 0x7f800000)), hn::Set(ints, 0x7f), code);
  hn::StoreU(hn::DemoteTo(ByteTag(), hn::Or(code, sign)), ByteTag(), &to->bits);
}

template <class T>
HWY_INLINE void store_some(Floats value, T* to, std::size_t count) {
  T padded[kLanes];
  store(value, padded);
  std::memcpy(to, padded, count * sizeof(T));
}

// 2^x for x <= 0, within 1.2e-7 of itself; exactly 0 below -126, so that -inf gives 0; NaN for NaN.
// The polynomial is the minimax one of 2^f, f in [-0.5, 0.5], relative error 2e-9.
HWY_INLINE Floats exp2(Floats x) {
  const hn::RebindToSigned<FloatTag> ints;
  // Floats from 2^23 to 2^24 are integers: the sum's last bits hold x, rounded, plus 127, which is
  // the exponent's field of 2^x.
  const Floats rounder = hn::Set(kFloatTag, 12582912.0f + 127);
  const Floats rounded = hn::Add(x, rounder);
  const Floats f = hn::Sub(x, hn::Sub(rounded, rounder));
  Floats p = hn::Set(kFloatTag, 1.53458022e-4f);
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 1.33999309e-3f));
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 9.61848907e-3f));
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 5.55032864e-2f));
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 2.40226462e-1f));
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 6.93147182e-1f));
  p = hn::MulAdd(p, f, hn::Set(kFloatTag, 1.0f));
  const Floats scale = hn::BitCast(kFloatTag, hn::ShiftLeft<23>(hn::BitCast(ints, rounded)));
  // What is far below gives anything in there.
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(kFloatTag, -126.0f)), hn::Mul(p, scale));
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
