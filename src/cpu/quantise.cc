#include "quantise.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quantise.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {
namespace {

constexpr auto kStep = static_cast<std::int64_t>(kLanes);

template <class T>
float largest(const void* from_bytes, std::int64_t count) {
  const auto* from = static_cast<const T*>(from_bytes);
  const Floats infinity = hn::Set(kFloatTag, std::numeric_limits<float>::infinity());
  Floats max = hn::Zero(kFloatTag);
  const auto meet = [&](Floats value) HWY_ATTR {
    const Floats magnitude = hn::Abs(value);
    max = hn::Max(max, hn::IfThenElseZero(hn::Lt(magnitude, infinity), magnitude));
  };
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep) meet(load(from + i));
  if (i < count) meet(load_some(from + i, static_cast<std::size_t>(count - i)));
  return hn::GetLane(hn::MaxOfLanes(kFloatTag, max));
}

template <class From, class To>
void multiply(const void* from_bytes, void* to_bytes, std::int64_t count, float factor) {
  const auto* from = static_cast<const From*>(from_bytes);
  auto* to = static_cast<To*>(to_bytes);
  const Floats factors = hn::Set(kFloatTag, factor);
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep) store(hn::Mul(load(from + i), factors), to + i);
  if (i < count) {
    const auto rest = static_cast<std::size_t>(count - i);
    store_some(hn::Mul(load_some(from + i, rest), factors), to + i, rest);
  }
}

template <class T>
const Quantisation* of() {
  static constexpr Quantisation functions{largest<T>, multiply<T, Float8>, multiply<Float8, T>};
  return &functions;
}

const Quantisation* find_quantisation(DType other) {
  switch (other) {
    case DType::kFloat32:
      return of<float>();
    case DType::kFloat16:
      return of<hwy::float16_t>();
    case DType::kBFloat16:
      return of<hwy::bfloat16_t>();
    case DType::kFloat8E4M3:
      break;
  }
  return nullptr;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqattn {

HWY_EXPORT(find_quantisation);

const Quantisation& quantisation(DType other) {
  return *HWY_DYNAMIC_DISPATCH(find_quantisation)(other);
}

float token_scale(float largest) { return std::max(largest / kMaxFloat8E4M3, 0x1p-126f); }

}  // namespace seqattn
#endif
