#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "layout_axes.h"
#include "message.h"
#include "scale_bytes.h"
#include "seqattn/float8.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "tensor_check.h"

// The scales of caches of 8-bit elements.
namespace seqattn {
namespace {

// Normal numbers that the greatest element may be multiplied by.
constexpr float kLeastScale = 1.18e-38f, kGreatestScale = 7.59e35f;
static_assert(kLeastScale >= std::numeric_limits<float>::min() &&
              kGreatestScale * kMaxFloat8E4M3 <= std::numeric_limits<float>::max());

// One for each KV head, out of as many or of one for all.
std::vector<float> one_per_head(std::string_view name, ListView<float> scales, int num_heads) {
  require(scales.size() == 1 || static_cast<int>(scales.size()) == num_heads, name, ": got ",
          scales.size(), " scales; expected 1, or one for each of ", num_heads, " heads");
  for (const float scale : scales) {
    require(scale >= kLeastScale && scale <= kGreatestScale, name, ": got ", scale,
            "; expected a number from ", kLeastScale, " to ", kGreatestScale);
  }
  if (scales.size() == 1) return std::vector<float>(static_cast<std::size_t>(num_heads), scales[0]);
  return {scales.begin(), scales.end()};
}

// Scales of tokens, where this tensor has them.
Plane::Scales scales_in(const TensorView& tensor, KVLayout layout) noexcept {
  const auto [token_axis, head_axis] = axes_of(layout);
  return {.data = static_cast<float*>(tensor.data),
          .page_stride = tensor.strides[0],
          .token_stride = tensor.strides[token_axis],
          .head_stride = tensor.strides[head_axis],
          .per_token = true};
}

}  // namespace

void PagedKVCacheManager::add_fixed_scales() {
  const auto count = static_cast<std::int64_t>(planes_.size()) * config_.num_heads;
  auto* data = static_cast<float*>(add_storage(count * kScaleBytes, "scales"));
  const std::vector<float> ones(static_cast<std::size_t>(count), 1.0f);
  backend_.copy_bytes(data, ones.data(), count * kScaleBytes, {});
  for (Plane& plane : planes_) {
    plane.scales = {.data = data, .head_stride = 1};
    data += config_.num_heads;
  }
}

void PagedKVCacheManager::add_token_scales() {
  TensorView scales = TensorView::contiguous(static_cast<void*>(nullptr), DType::kFloat32,
                                             slots_shape(config_), config_.device);
  const std::int64_t count = scales.num_elements();  // of a plane
  const auto num_planes = static_cast<std::int64_t>(planes_.size());
  auto* data = static_cast<float*>(add_storage(num_planes * count * kScaleBytes, "scales"));
  for (Plane& plane : planes_) {
    scales.data = data;
    plane.scales = scales_in(scales, config_.kv_layout);
    data += count;
  }
}

void PagedKVCacheManager::borrow_token_scales(std::span<const TensorView> keys,
                                              std::span<const TensorView> values) {
  const std::size_t expected = config_.kv_scaling == KVScaling::kPerToken ? planes_.size() / 2 : 0;
  require(keys.size() == expected && values.size() == expected, "from_tensors: got ", keys.size(),
          " tensors of key scales and ", values.size(), " of value scales; expected ", expected,
          " of each: one a layer with kv_scaling 'per_token', else none");
  const auto shape = slots_shape(config_);
  for (std::size_t i = 0; i < 2 * expected; ++i) {
    const bool is_key = i % 2 == 0;
    const TensorView& tensor = is_key ? keys[i / 2] : values[i / 2];
    const std::string name = concat(is_key ? "key" : "value", "_scales[", i / 2, "]");
    check_tensor(tensor, {.name = name,
                          .shape = shape,
                          .dtype = DType::kFloat32,
                          .device = config_.device,
                          .output = true,
                          .any_strides = true});
    require(reinterpret_cast<std::uintptr_t>(tensor.data) % alignof(float) == 0, name,
            ": got data at an address that is no multiple of ", alignof(float),
            "; expected aligned floats");
    planes_[i].scales = scales_in(tensor, config_.kv_layout);
  }
}

TensorView PagedKVCacheManager::scales_of(const char* call, int layer, std::int64_t plane) const {
  const Plane::Scales& scales = layer_planes(layer)[static_cast<std::size_t>(plane)].scales;
  require(scales.data != nullptr, call, ": a cache of ", seqattn::to_string(config_.dtype),
          " has no scales; expected one of float8_e4m3fn");
  void* const data = scales.data;
  if (!scales.per_token) {
    TensorView view =
        TensorView::contiguous(data, DType::kFloat32, {config_.num_heads}, config_.device);
    view.read_only = true;  // set_kv_scales knows when they may change
    return view;
  }
  const auto [token_axis, head_axis] = axes_of(config_.kv_layout);
  TensorView view =
      TensorView::contiguous(data, DType::kFloat32, slots_shape(config_), config_.device);
  view.strides[0] = scales.page_stride;
  view.strides[token_axis] = scales.token_stride;
  view.strides[head_axis] = scales.head_stride;
  return view;
}

TensorView PagedKVCacheManager::key_scales(int layer) { return scales_of("key_scales", layer, 0); }

TensorView PagedKVCacheManager::value_scales(int layer) {
  return scales_of("value_scales", layer, 1);
}

void PagedKVCacheManager::set_kv_scales(ListView<float> key_scales, ListView<float> value_scales,
                                        int layer) {
  const auto planes = layer_planes(layer);
  require(planes[0].scales.data != nullptr && !planes[0].scales.per_token,
          "set_kv_scales: ", "a cache of ", seqattn::to_string(config_.dtype), " and kv_scaling '",
          seqattn::to_string(config_.kv_scaling),
          "' has no scales to set; expected float8_e4m3fn and 'fixed'");
  const std::array scales{one_per_head("key_scales", key_scales, config_.num_heads),
                          one_per_head("value_scales", value_scales, config_.num_heads)};
  require(pool_.available_pages_count() == pool_.num_pages(),
          "set_kv_scales: ", pool_.num_pages() - pool_.available_pages_count(),
          " pages are in use, whose tokens may be under the scales so far; expected none: release "
          "the sequences, and clear prefix caches");
  for (std::size_t i = 0; i < scales.size(); ++i) {
    backend_.copy_bytes(planes[i].scales.data, scales[i].data(), config_.num_heads * kScaleBytes,
                        {});
  }
}

}  // namespace seqattn
