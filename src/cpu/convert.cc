#include "convert.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "convert.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {
namespace {

template <class From, class To>
void convert(const void* from_bytes, void* to_bytes, std::int64_t count) {
  const auto* from = static_cast<const From*>(from_bytes);
  auto* to = static_cast<To*>(to_bytes);
  constexpr auto kStep = static_cast<std::int64_t>(kLanes);
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep) store(load(from + i), to + i);
  if (i < count) {
    const auto rest = static_cast<std::size_t>(count - i);
    store_some(load_some(from + i, rest), to + i, rest);
  }
}

template <class From>
Conversion conversion_from(DType to) {
  switch (to) {
    case DType::kFloat32:
      return convert<From, float>;
    case DType::kFloat16:
      return convert<From, hwy::float16_t>;
    case DType::kBFloat16:
      return convert<From, hwy::bfloat16_t>;
    case DType::kFloat8E4M3:
      break;
  }
  return nullptr;
}

}  // namespace

Conversion find_conversion(DType from, DType to) {
  switch (from) {
    case DType::kFloat32:
      return conversion_from<float>(to);
    case DType::kFloat16:
      return conversion_from<hwy::float16_t>(to);
    case DType::kBFloat16:
      return conversion_from<hwy::bfloat16_t>(to);
    case DType::kFloat8E4M3:
      break;
  }
  return nullptr;
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqattn {
namespace {

template <std::size_t kSize>
void copy(const void* from, void* to, std::int64_t count) {
  std::memcpy(to, from, kSize * static_cast<std::size_t>(count));
}

}  // namespace

HWY_EXPORT(find_conversion);

Conversion conversion(DType from, DType to) {
  if (from == to) return size_of(from) == 4 ? copy<4> : size_of(from) == 2 ? copy<2> : copy<1>;
  return HWY_DYNAMIC_DISPATCH(find_conversion)(from, to);
}

}  // namespace seqattn
#endif
