#include "storage.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "arguments.h"

namespace seqattn::python {
namespace {

// The storage of all layers as one tensor: of one layer as it is, else with the layer in front.
TensorView all_layers(PagedKVCacheManager& manager, TensorView (PagedKVCacheManager::*cache)(int)) {
  const TensorView first = (manager.*cache)(0);
  const int num_layers = manager.config().num_layers;
  if (num_layers == 1) return first;
  TensorView all = first;
  all.rank = first.rank + 1;
  all.shape[0] = num_layers;
  all.strides[0] = first.num_elements();  // own storage is one allocation without gaps
  for (int i = 0; i < first.rank; ++i) {
    all.shape[i + 1] = first.shape[i];
    all.strides[i + 1] = first.strides[i];
  }
  return all;
}

// Layer by layer what all_layers joins.
std::vector<TensorView> one_a_layer(const TensorView& all, int num_layers) {
  if (num_layers == 1) return {all};
  std::vector<TensorView> views;
  for (int layer = 0; layer < num_layers; ++layer) {
    TensorView view = all;
    view.rank = all.rank - 1;
    std::copy(all.shape.begin() + 1, all.shape.end(), view.shape.begin());
    std::copy(all.strides.begin() + 1, all.strides.end(), view.strides.begin());
    view.data = static_cast<char*>(all.data) + layer * all.strides[0] * size_of(all.dtype);
    views.push_back(view);
  }
  return views;
}

// Of keys or values, and of the scales of their tokens.
std::vector<std::int64_t> scales_shape(const KVCacheConfig& config) {
  std::vector<std::int64_t> shape{config.num_pages, config.page_size, config.num_heads};
  if (config.kv_layout == KVLayout::kHND) std::swap(shape[1], shape[2]);
  return shape;
}
std::vector<std::int64_t> cache_shape(const KVCacheConfig& config, int head_dim) {
  std::vector<std::int64_t> shape = scales_shape(config);
  shape.push_back(head_dim);
  return shape;
}

bool has_token_scales(const KVCacheConfig& config) {
  return config.kv_scaling == KVScaling::kPerToken;
}

// Throws what a manager of this config would throw, without asking for memory: one over tensors
// without pages is made.
void check_config(KVCacheConfig config) {
  config.num_pages = std::min<std::int64_t>(config.num_pages, 0);
  const auto no_pages = [&](DType dtype, const std::vector<std::int64_t>& shape) {
    TensorView view{
        .dtype = dtype, .device = config.device, .rank = static_cast<int>(shape.size())};
    std::ranges::copy(shape, view.shape.begin());
    return std::vector(static_cast<std::size_t>(std::max(config.num_layers, 0)), view);
  };
  std::vector<TensorView> scales;
  if (has_token_scales(config)) scales = no_pages(DType::kFloat32, scales_shape(config));
  PagedKVCacheManager::from_tensors(no_pages(config.dtype, cache_shape(config, config.head_dim)),
                                    no_pages(config.dtype, cache_shape(config, config.head_dim_v)),
                                    config, scales, scales);
}

void make_torch_storage(Manager& self, KVCacheConfig config) {
  if (config.head_dim_v == 0) config.head_dim_v = config.head_dim;
  check_config(config);  // before torch is asked for a device that may not be there
  const auto zeros = [&](DType dtype, std::vector<std::int64_t> shape) {
    if (config.num_layers > 1) shape.insert(shape.begin(), config.num_layers);
    nb::object tensor = torch_zeros(dtype, shape, config.device);
    self.imports.push_back(
        import_array(tensor, "storage", Framework::kTorch, kEveryCache, Access::kWrite));
    return tensor;
  };
  self.keys = zeros(config.dtype, cache_shape(config, config.head_dim));
  self.values = zeros(config.dtype, cache_shape(config, config.head_dim_v));
  const auto layers = [&](std::size_t import) {
    return one_a_layer(self.imports[import].view, config.num_layers);
  };
  std::vector<TensorView> scales[2];
  for (std::size_t i = 0; i < 2 && has_token_scales(config); ++i) {
    zeros(DType::kFloat32, scales_shape(config));  // the import holds it
    scales[i] = layers(2 + i);
  }
  self.manager =
      PagedKVCacheManager::from_tensors(layers(0), layers(1), config, scales[0], scales[1]);
}

// The views of one tensor per layer: of a list of tensors, or of one.
std::vector<TensorView> import_layers(nb::handle tensors, std::string_view name,
                                      Framework framework, Accepts accepts,
                                      std::vector<Import>& imports) {
  std::vector<TensorView> views;
  const auto add = [&](nb::handle tensor) {
    imports.push_back(import_array(tensor, name, framework, accepts, Access::kWrite));
    views.push_back(imports.back().view);
  };
  if (nb::isinstance<nb::list>(tensors) || nb::isinstance<nb::tuple>(tensors)) {
    for (const nb::handle tensor : tensors) add(tensor);
  } else {
    add(tensors);
  }
  require(!views.empty(), name, ": got no tensor; expected one a layer");
  return views;
}

nb::object first_tensor(nb::handle tensors) {
  const bool is_list = nb::isinstance<nb::list>(tensors) || nb::isinstance<nb::tuple>(tensors);
  if (!is_list) return nb::borrow(tensors);
  return nb::len(tensors) > 0 ? nb::object(tensors[0]) : nb::none();
}

}  // namespace

void make_storage(Manager& self, const KVCacheConfig& config) {
  if (self.framework == Framework::kTorch && config.device.type == DeviceType::kCUDA) {
    make_torch_storage(self, config);
  } else {
    self.manager = std::make_unique<PagedKVCacheManager>(config);
  }
}

std::unique_ptr<Manager> from_tensors(const Array& keys, const Array& values, const Any& kv_layout,
                                      const Any& key_scales, const Any& value_scales) {
  auto self = std::make_unique<Manager>();
  const nb::object first = first_tensor(keys);
  self->framework = framework_of(first);
  const auto import = [&](const Any& tensors, const char* name, Accepts accepts) {
    return import_layers(tensors, name, self->framework, accepts, self->imports);
  };
  const std::vector<TensorView> key_views = import(keys, "keys", kEveryCache);
  const std::vector<TensorView> value_views = import(values, "values", kEveryCache);
  const TensorView &k = key_views.front(), &v = value_views.front();
  require(k.rank == 4 && v.rank == 4, "keys, values: got ", k.to_string(), " and ", v.to_string(),
          "; expected one tensor a layer, [num_pages, page_size, num_heads, head_dim] for NHD or "
          "[num_pages, num_heads, page_size, head_dim] for HND");
  KVCacheConfig config;
  config.kv_layout = to_kv_layout(kv_layout);
  const bool is_nhd = config.kv_layout == KVLayout::kNHD;
  config.num_pages = k.shape[0];
  config.page_size = narrow<int>(k.shape[is_nhd ? 1 : 2], "page_size");
  config.num_heads = narrow<int>(k.shape[is_nhd ? 2 : 1], "num_heads");
  config.head_dim = narrow<int>(k.shape[3], "head_dim");
  config.head_dim_v = narrow<int>(v.shape[3], "head_dim_v");
  config.num_layers = narrow<int>(static_cast<std::int64_t>(key_views.size()), "num_layers");
  config.dtype = k.dtype;
  config.device = k.device;
  std::vector<TensorView> scales[2];
  require(
      key_scales.is_none() == value_scales.is_none(),
      "key_scales, value_scales: got one of them alone; expected both, for scales of tokens, or "
      "neither");
  if (!key_scales.is_none()) {
    config.kv_scaling = KVScaling::kPerToken;
    scales[0] = import(key_scales, "key_scales", kFloat32Only);
    scales[1] = import(value_scales, "value_scales", kFloat32Only);
  }
  self->manager =
      PagedKVCacheManager::from_tensors(key_views, value_views, config, scales[0], scales[1]);

  const auto attribute = [&](const char* name, const std::string& otherwise) {
    return nb::getattr(first, name, nb::str(otherwise.c_str()));
  };
  self->dtype = attribute("dtype", std::string(to_string(config.dtype)));
  self->device = attribute("device", to_string(config.device));
  self->keys = keys;
  self->values = values;
  return self;
}

nb::object key_cache(const Manager& self) {
  if (self.keys.is_valid()) return self.keys;
  return export_array(self.framework, all_layers(*self.manager, &PagedKVCacheManager::key_cache),
                      nb::find(self));
}

nb::object value_cache(const Manager& self) {
  if (self.values.is_valid()) return self.values;
  return export_array(self.framework, all_layers(*self.manager, &PagedKVCacheManager::value_cache),
                      nb::find(self));
}

}  // namespace seqattn::python
