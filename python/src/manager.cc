#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <utility>

#include "arguments.h"
#include "bind_pool.h"
#include "classes.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

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

void init(Manager* self, const Int& num_pages, const Int& page_size, const Int& num_heads,
          const Int& head_dim, const Any& dtype, const Any& device, const std::string& kv_layout,
          const OptionalInt& head_dim_v, const Int& num_layers) {
  KVCacheConfig config;
  config.num_pages = to_int64(num_pages, "num_pages");
  config.page_size = to_int(page_size, "page_size");
  config.num_heads = to_int(num_heads, "num_heads");
  config.head_dim = to_int(head_dim, "head_dim");
  config.head_dim_v = head_dim_v.is_none() ? 0 : to_int(head_dim_v, "head_dim_v");
  config.num_layers = to_int(num_layers, "num_layers");
  config.dtype = to_dtype(dtype);
  config.device = to_device(device);
  config.kv_layout = to_kv_layout(kv_layout);
  auto manager = std::make_unique<PagedKVCacheManager>(config);
  new (self) Manager{is_torch_dtype(dtype) ? Framework::kTorch : Framework::kNumpy,
                     dtype,
                     device,
                     {},
                     {},
                     {},
                     std::move(manager)};
}

// The views of one tensor per layer: of a list of tensors, or of one.
std::vector<TensorView> import_layers(nb::handle tensors, std::string_view name,
                                      std::vector<Import>& imports) {
  std::vector<TensorView> views;
  const auto add = [&](nb::handle tensor) {
    imports.push_back(import_array(tensor, name, Access::kWrite));
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
  return is_list ? nb::object(tensors[0]) : nb::borrow(tensors);
}

std::unique_ptr<Manager> from_tensors(const Array& keys, const Array& values,
                                      const std::string& kv_layout) {
  auto self = std::make_unique<Manager>();
  const std::vector<TensorView> key_views = import_layers(keys, "keys", self->imports);
  const std::vector<TensorView> value_views = import_layers(values, "values", self->imports);
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
  self->manager = PagedKVCacheManager::from_tensors(key_views, value_views, config);

  const nb::object first = first_tensor(keys);
  self->framework = framework_of(first);
  const auto attribute = [&](const char* name, const std::string& otherwise) {
    return nb::getattr(first, name, nb::str(otherwise.c_str()));
  };
  self->dtype = attribute("dtype", std::string(to_string(config.dtype)));
  self->device = attribute("device", to_string(config.device));
  self->keys = keys;
  self->values = values;
  return self;
}

void append_kv(const Manager& self, const Array& keys, const Array& values,
               const PackedData& packed, const Ints& append_indptr, const Int& layer_index) {
  const Import k = import_array(keys, "keys"), v = import_array(values, "values");
  const auto indptr = to_ints<std::int32_t>(append_indptr, "append_indptr_cpu");
  const int layer = to_int(layer_index, "layer");
  nb::gil_scoped_release release;
  self.manager->append_kv(k.view, v.view, packed.data, indptr, layer);
}

nb::tuple read_kv(const Manager& self, const Ints& page_indices, const Int& first_token,
                  const Int& num_tokens, const Int& layer_index) {
  const auto pages = to_ints<PageId>(page_indices, "page_indices");
  const std::int64_t first = to_int64(first_token, "first"), count = to_int64(num_tokens, "count");
  const int layer = to_int(layer_index, "layer");
  const KVCacheConfig& config = self.manager->config();
  // Before memory for the tokens is asked for.
  const std::int64_t held = static_cast<std::int64_t>(pages.size()) * config.page_size;
  require(count >= 0 && count <= held, "count: got ", count, " tokens; expected 0 to ", held,
          ", what the listed pages hold");
  const NewArray keys =
      new_array(self.framework, config.dtype, {count, config.num_heads, config.head_dim});
  const NewArray values =
      new_array(self.framework, config.dtype, {count, config.num_heads, config.head_dim_v});
  self.manager->read_kv(pages, first, count, keys.view, values.view, layer);
  return nb::make_tuple(keys.object, values.object);
}

void bind_attributes(nb::class_<Manager>& cls) {
  const auto config = [](const Manager& self) -> const KVCacheConfig& {
    return self.manager->config();
  };
  cls.def_prop_ro(
         "num_heads", [=](const Manager& self) { return config(self).num_heads; }, "KV heads.")
      .def_prop_ro(
          "head_dim", [=](const Manager& self) { return config(self).head_dim; },
          "Elements of a key.")
      .def_prop_ro(
          "head_dim_v", [=](const Manager& self) { return config(self).head_dim_v; },
          "Elements of a value.")
      .def_prop_ro(
          "num_layers", [=](const Manager& self) { return config(self).num_layers; },
          "Layers that share the page table.")
      .def_prop_ro(
          "kv_layout",
          [=](const Manager& self) { return std::string(to_string(config(self).kv_layout)); },
          "\"NHD\" or \"HND\".")
      .def_prop_ro(
          "dtype", [](const Manager& self) { return self.dtype; },
          nb::sig("def dtype(self) -> typing.Any"), "The dtype as the caller gave it.")
      .def_prop_ro(
          "device", [](const Manager& self) { return self.device; },
          nb::sig("def device(self) -> typing.Any"), "The device as the caller gave it.")
      .def_prop_ro("key_cache", &key_cache, nb::sig("def key_cache(self) -> typing.Any"),
                   "[num_pages, page_size, num_heads, head_dim] (NHD) or [num_pages, num_heads, "
                   "page_size, head_dim] (HND), with num_layers in front where there are several. "
                   "A live view; with from_tensors the caller's own object.")
      .def_prop_ro("value_cache", &value_cache, nb::sig("def value_cache(self) -> typing.Any"),
                   "As key_cache, with head_dim_v.")
      .def_prop_ro(
          "bytes_per_page", [](const Manager& self) { return self.manager->bytes_per_page(); },
          "Bytes of keys and values that one page takes, over all layers.");
}

}  // namespace

void bind_manager(nb::module_& m) {
  nb::class_<Manager> cls(
      m, "PagedKVCacheManager",
      "A page pool and its storage: keys and values of all layers under one page table.\n\n"
      "dtype: float32, float16 or bfloat16, as a torch or numpy dtype or a name. With a torch "
      "dtype every array that comes back is a torch tensor, else a numpy array.\n"
      "device: \"cpu\", \"cuda:0\", a torch device, or an int, the index of a CUDA device.\n"
      "kv_layout: \"NHD\" or \"HND\". head_dim_v: elements of a value, head_dim unless given.\n\n"
      "Raises InvalidArgumentError for sizes out of range, UnsupportedError for a device that this "
      "build cannot serve, MemoryError.");
  cls.def("__init__", &init, "num_pages"_a, "page_size"_a, "num_heads"_a, "head_dim"_a, "dtype"_a,
          "device"_a, "kv_layout"_a = "NHD", nb::kw_only(), "head_dim_v"_a = nb::none(),
          "num_layers"_a = 1);
  cls.def_static("from_tensors", &from_tensors, "keys"_a, "values"_a, nb::kw_only(),
                 "kv_layout"_a = "NHD",
                 "A manager over the caller's own tensors, one or a list of one a layer, shaped as "
                 "key_cache.\n\nThey are borrowed, held and never cleared; every page starts free. "
                 "Raises InvalidArgumentError for tensors that do not agree or are read-only.");
  bind_pool_members(cls);
  bind_attributes(cls);
  cls.def(
         "get_memory_tensors",
         [](const Manager& self) { return nb::make_tuple(key_cache(self), value_cache(self)); },
         nb::sig("def get_memory_tensors(self) -> tuple[typing.Any, typing.Any]"),
         "(key_cache, value_cache).")
      .def("append_kv", &append_kv, "keys"_a, "values"_a, "flashinfer_data"_a,
           "append_indptr_cpu"_a, "layer"_a = 0,
           "Writes the last n_i = append_indptr_cpu[i + 1] - append_indptr_cpu[i] tokens of every "
           "row of flashinfer_data, which already counts them.\n\n"
           "keys [total_new_tokens, num_heads, head_dim] and values [.., head_dim_v], in the "
           "cache's dtype or float32. Raises InvalidArgumentError, having written nothing, for "
           "tensors of another shape, dtype or device, more tokens than a row has, pages that are "
           "free, shared or not of this pool. Leaves the GIL.")
      .def("read_kv", &read_kv, "page_indices"_a, "first"_a, "count"_a, "layer"_a = 0,
           nb::sig("def read_kv(self, page_indices: collections.abc.Iterable[int], first: "
                   "typing.SupportsIndex, count: typing.SupportsIndex, layer: typing.SupportsIndex "
                   "= 0) -> tuple[typing.Any, typing.Any]"),
           "New arrays with tokens [first, first + count) of the sequence with these pages: keys "
           "[count, num_heads, head_dim] and values [count, num_heads, head_dim_v].")
      .def(
          "copy_pages",
          [](const Manager& self, const Any& copies) {
            self.manager->copy_pages(to_page_copies(copies));
          },
          "copies"_a,
          "Copies pages (source, target) in every layer, in order.\n\n"
          "Raises InvalidArgumentError for an unknown or free page.")
      .def("__repr__", [](const Manager& self) { return self.manager->to_string(); });
}

}  // namespace seqattn::python
