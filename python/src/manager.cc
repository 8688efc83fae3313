#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "bind_pool.h"
#include "classes.h"
#include "collector.h"
#include "storage.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

void init(Manager* self, const Int& num_pages, const Int& page_size, const Int& num_heads,
          const Int& head_dim, const Any& dtype, const Any& device, const Any& kv_layout,
          const OptionalInt& head_dim_v, const Int& num_layers, const Any& kv_scaling) {
  KVCacheConfig config;
  config.num_pages = to_int64(num_pages, "num_pages");
  config.page_size = to_int(page_size, "page_size");
  config.num_heads = to_int(num_heads, "num_heads");
  config.head_dim = to_int(head_dim, "head_dim");
  if (!head_dim_v.is_none()) {
    config.head_dim_v = to_int(head_dim_v, "head_dim_v");
    // C++ has 0 for the keys' size; here that is what None says.
    require(config.head_dim_v >= 1, "head_dim_v: got ", config.head_dim_v,
            "; expected at least 1, or None for head_dim");
  }
  config.num_layers = to_int(num_layers, "num_layers");
  config.dtype = to_dtype(dtype);
  config.device = to_device(device);
  config.kv_layout = to_kv_layout(kv_layout);
  config.kv_scaling = to_kv_scaling(kv_scaling);
  const Framework framework = is_torch_dtype(dtype) ? Framework::kTorch : Framework::kNumpy;
  Manager manager;
  manager.framework = framework;
  manager.dtype = dtype;
  manager.device = device;
  make_storage(manager, config);
  new (self) Manager(std::move(manager));
}

void append_kv(const Manager& self, const Array& keys, const Array& values,
               const Any& flashinfer_data, const Ints& append_indptr, const Int& layer_index) {
  const PackedData& packed = to_packed_data(flashinfer_data);
  const Accepts accepts = with_float32(self.manager->config().dtype);
  const Import k = import_array(keys, "keys", self.framework, accepts);
  const Import v = import_array(values, "values", self.framework, accepts);
  const auto indptr = to_ints<std::int32_t>(append_indptr, "append_indptr_cpu");
  const int layer = to_int(layer_index, "layer");
  const Stream stream = self.stream();
  nb::gil_scoped_release release;
  self.manager->append_kv(k.view, v.view, packed.data, indptr, layer, stream);
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
  // Of 8 bits the values, in a type of their own.
  const DType dtype = has_scales(config.dtype) ? DType::kFloat32 : config.dtype;
  const auto tokens = [&](int head_dim) {
    return new_array(self.framework, config.device, dtype, {count, config.num_heads, head_dim});
  };
  const NewArray keys = tokens(config.head_dim), values = tokens(config.head_dim_v);
  self.manager->read_kv(pages, first, count, keys.view, values.view, layer, self.stream());
  return nb::make_tuple(keys.object, values.object);
}

void write_kv(const Manager& self, const Ints& page_indices, const Int& first_token,
              const Array& keys, const Array& values, const Int& layer_index) {
  const auto pages = to_ints<PageId>(page_indices, "page_indices");
  const std::int64_t first = to_int64(first_token, "first");
  const Accepts accepts = with_float32(self.manager->config().dtype);
  const Import k = import_array(keys, "keys", self.framework, accepts);
  const Import v = import_array(values, "values", self.framework, accepts);
  const int layer = to_int(layer_index, "layer");
  const std::int64_t count = k.view.rank == 0 ? 0 : k.view.shape[0];
  self.manager->write_kv(pages, first, count, k.view, v.view, layer, self.stream());
}

void set_kv_scales(const Manager& self, const Any& keys, const Any& values, const Int& layer) {
  const std::vector<float> key_scales = to_floats(keys, "key_scales");
  const std::vector<float> value_scales = to_floats(values, "value_scales");
  self.manager->set_kv_scales(key_scales, value_scales, to_int(layer, "layer"));
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
                   "A live view; with from_tensors the caller's own object. bfloat16 and "
                   "float8_e4m3fn as ml_dtypes where that is installed, else their bits as uint16 "
                   "and uint8.")
      .def_prop_ro("value_cache", &value_cache, nb::sig("def value_cache(self) -> typing.Any"),
                   "As key_cache, with head_dim_v.")
      .def_prop_ro(
          "kv_scaling",
          [=](const Manager& self) -> std::optional<std::string> {
            if (!has_scales(config(self).dtype)) return std::nullopt;
            return std::string(to_string(config(self).kv_scaling));
          },
          "\"fixed\" or \"per_token\" for a cache of float8_e4m3fn, else None.")
      .def_prop_ro(
          "pool",
          [](const Manager& self) {
            return Pool{nb::find(self), {}, {}, &self.page_pool()};
          },
          "The pool that the manager's pages come from.")
      .def_prop_ro(
          "bytes_per_page", [](const Manager& self) { return self.manager->bytes_per_page(); },
          "Bytes of keys and values that one page takes, over all layers, scales of tokens "
          "included.");
}

using Scales = TensorView (PagedKVCacheManager::*)(int);

template <Scales kScales>
nb::object scales_of(nb::handle self, const Int& layer_index) {
  const auto& manager = nb::cast<const Manager&>(self);
  const TensorView view = (manager.manager.get()->*kScales)(to_int(layer_index, "layer"));
  nb::object live = export_array(manager.framework, view, self);
  if (!view.read_only) return live;
  if (manager.framework == Framework::kTorch) return live.attr("clone")();
  nb::object copy = live.attr("copy")();
  copy.attr("flags").attr("writeable") = false;
  return copy;
}

void bind_scales(nb::class_<Manager>& cls) {
  cls.def("set_kv_scales", &set_kv_scales, "key_scales"_a.none(), "value_scales"_a.none(),
          "layer"_a.none() = 0,
          nb::sig("def set_kv_scales(self, key_scales: float | collections.abc.Iterable[float], "
                  "value_scales: float | collections.abc.Iterable[float], layer: "
                  "typing.SupportsIndex = 0) -> None"),
          "Sets the scales of one layer, and of no other, of a float8_e4m3fn cache with kv_scaling "
          "\"fixed\", which are 1 until then: a number for all KV heads, or one for each. x is "
          "stored "
          "as x / scale and read as element * scale; the greatest magnitude over 448 makes use of "
          "the whole range.\n\n"
          "Raises InvalidArgumentError, having changed nothing, for another cache or count, a "
          "scale beyond 1.18e-38 to 7.59e35, and while pages are in use. On a device wait for what "
          "is "
          "enqueued first.")
      .def("key_scales", &scales_of<&PagedKVCacheManager::key_scales>, "layer"_a.none() = 0,
           nb::sig("def key_scales(self, layer: typing.SupportsIndex = 0) -> typing.Any"),
           "The scales of a layer's keys, float32: [num_heads], a copy (of numpy a read-only one); "
           "with kv_scaling \"per_token\" a live view, shaped as one layer of key_cache without "
           "its last "
           "dimension.\n\n"
           "Raises InvalidArgumentError for a cache without scales.")
      .def("value_scales", &scales_of<&PagedKVCacheManager::value_scales>, "layer"_a.none() = 0,
           nb::sig("def value_scales(self, layer: typing.SupportsIndex = 0) -> typing.Any"),
           "As key_scales, of the values.");
}

// What goes in and out of the storage.
void bind_tokens(nb::class_<Manager>& cls) {
  cls.def("append_kv", &append_kv, "keys"_a.none(), "values"_a.none(), "flashinfer_data"_a.none(),
          "append_indptr_cpu"_a.none(), "layer"_a.none() = 0,
          nb::sig("def append_kv(self, keys: typing.Any, values: typing.Any, flashinfer_data: "
                  "FlashInferPackedData, append_indptr_cpu: collections.abc.Iterable[int], layer: "
                  "typing.SupportsIndex = 0) -> None"),
          "Writes the last n_i = append_indptr_cpu[i + 1] - append_indptr_cpu[i] tokens of every "
          "row of flashinfer_data, which already counts them.\n\n"
          "keys [total_new_tokens, num_heads, head_dim] and values [.., head_dim_v], in the "
          "cache's dtype or float32; for float8_e4m3fn float32, float16 or bfloat16. Raises "
          "InvalidArgumentError, having written nothing, for "
          "tensors of another shape, dtype or device, more tokens than a row has, pages that are "
          "free, shared or not of this pool. Leaves the GIL.")
      .def("read_kv", &read_kv, "page_indices"_a.none(), "first"_a.none(), "count"_a.none(),
           "layer"_a.none() = 0,
           nb::sig("def read_kv(self, page_indices: collections.abc.Iterable[int], first: "
                   "typing.SupportsIndex, count: typing.SupportsIndex, layer: typing.SupportsIndex "
                   "= 0) -> tuple[typing.Any, typing.Any]"),
           "New arrays with tokens [first, first + count) of the sequence with these pages: keys "
           "[count, num_heads, head_dim] and values [count, num_heads, head_dim_v], in the cache's "
           "dtype; of float8_e4m3fn as float32, their scales in them.")
      .def(
          "write_kv", &write_kv, "page_indices"_a.none(), "first"_a.none(), "keys"_a.none(),
          "values"_a.none(), "layer"_a.none() = 0,
          nb::sig("def write_kv(self, page_indices: collections.abc.Iterable[int], first: "
                  "typing.SupportsIndex, keys: typing.Any, values: typing.Any, layer: "
                  "typing.SupportsIndex = 0) -> None"),
          "Writes tokens from `first` on of the sequence with these pages: keys [count, num_heads, "
          "head_dim] and values [count, num_heads, head_dim_v], of a dtype as append_kv takes.\n\n"
          "Raises InvalidArgumentError, having written nothing, for a range beyond the pages, a "
          "page to be written that is free, shared or listed twice, or tensors that do not fit.")
      .def(
          "copy_pages",
          [](const Manager& self, const Any& copies) {
            self.manager->copy_pages(to_page_copies(copies), self.stream());
          },
          "copies"_a.none(),
          nb::sig("def copy_pages(self, copies: "
                  "collections.abc.Iterable[tuple[typing.SupportsIndex, typing.SupportsIndex]]) -> "
                  "None"),
          "Copies pages (source, target) in every layer, in order.\n\n"
          "Raises InvalidArgumentError for an unknown or free page.")
      .def(
          "move_tokens",
          [](const Manager& self, const Any& moves) {
            self.manager->move_tokens(to_token_moves(moves), self.stream());
          },
          "moves"_a.none(),
          nb::sig("def move_tokens(self, moves: collections.abc.Iterable[tuple["
                  "typing.SupportsIndex, typing.SupportsIndex, typing.SupportsIndex, "
                  "typing.SupportsIndex]]) -> None"),
          "Copies token slots (source page, source slot, target page, target slot) in every layer, "
          "in order.\n\n"
          "Raises InvalidArgumentError for an unknown page or slot, and a target that is free or "
          "shared.");
}

}  // namespace

void bind_manager(nb::module_& m) {
  nb::class_<Manager> cls(
      m, "PagedKVCacheManager", nb::type_slots(traverse_and_clear_slots<Manager>),
      "A page pool and its storage: keys and values of all layers under one page table.\n\n"
      "dtype: float32, float16, bfloat16 or float8_e4m3fn, as a torch or numpy dtype or a name. "
      "With a torch "
      "dtype every array that comes back is a torch tensor, else a numpy array.\n"
      "device: \"cpu\", \"cuda:0\", a torch device, or an int, the index of a CUDA device; "
      "\"cuda\" is "
      "the current one.\n"
      "kv_layout: \"NHD\" or \"HND\". head_dim_v: elements of a value, head_dim unless given.\n"
      "kv_scaling, of float8_e4m3fn: \"fixed\" (scales of set_kv_scales, beyond which values "
      "saturate) or \"per_token\" (scales of each token and KV head, which append_kv derives). "
      "What goes in and comes out is float32, float16 or bfloat16. A torch without that dtype "
      "names "
      "it: arrays that come back are numpy's then.\n\n"
      "Raises InvalidArgumentError for sizes out of range, UnsupportedError for a device that this "
      "build cannot serve, MemoryError.\n\n"
      "On a CUDA device: float16, bfloat16 and float8_e4m3fn. With a torch dtype the storage is "
      "torch's, counted "
      "by "
      "its allocator (which raises its own error when memory falls short), and every call works on "
      "torch's current stream of the device. Otherwise CuPy stands in for numpy, provided that it "
      "is "
      "imported before an array is asked for: its current stream (the default stream without it), "
      "and its arrays. Calls return before the device is done. Whoever uses several streams has to "
      "order them, also when pages that one of them used are reused.");
  cls.def("__init__", &init, "num_pages"_a.none(), "page_size"_a.none(), "num_heads"_a.none(),
          "head_dim"_a.none(), "dtype"_a.none(), "device"_a.none(), "kv_layout"_a.none() = "NHD",
          nb::kw_only(), "head_dim_v"_a = nb::none(), "num_layers"_a.none() = 1,
          "kv_scaling"_a.none() = "fixed",
          nb::sig("def __init__(self, num_pages: typing.SupportsIndex, page_size: "
                  "typing.SupportsIndex, num_heads: typing.SupportsIndex, head_dim: "
                  "typing.SupportsIndex, dtype: typing.Any, device: typing.Any, kv_layout: str = "
                  "'NHD', *, head_dim_v: typing.SupportsIndex | None = None, num_layers: "
                  "typing.SupportsIndex = 1, kv_scaling: str = 'fixed') -> None"));
  cls.def_static(
      "from_tensors", &from_tensors, "keys"_a.none(), "values"_a.none(), nb::kw_only(),
      "kv_layout"_a.none() = "NHD", "key_scales"_a = nb::none(), "value_scales"_a = nb::none(),
      nb::sig("def from_tensors(keys: typing.Any, values: typing.Any, *, kv_layout: str "
              "= 'NHD', key_scales: typing.Any = None, value_scales: typing.Any = None) "
              "-> PagedKVCacheManager"),
      "A manager over the caller's own tensors, one or a list of one a layer, shaped as "
      "key_cache; with key_scales and value_scales, float32 and likewise without the last "
      "dimension, kv_scaling is \"per_token\". Without them that of float8_e4m3fn is \"fixed\", "
      "with "
      "scales 1 until set_kv_scales.\n\nThey are borrowed, held and never cleared; every page "
      "starts free. "
      "Raises InvalidArgumentError for tensors that do not agree or are read-only.");
  bind_pool_members(cls);
  bind_attributes(cls);
  cls.def(
         "get_memory_tensors",
         [](const Manager& self) { return nb::make_tuple(key_cache(self), value_cache(self)); },
         nb::sig("def get_memory_tensors(self) -> tuple[typing.Any, typing.Any]"),
         "(key_cache, value_cache). Not their scales: those of float8_e4m3fn with kv_scaling "
         "\"per_token\" are key_scales(layer) and value_scales(layer).")
      .def("__repr__", [](const Manager& self) { return self.manager->to_string(); });
  bind_tokens(cls);
  bind_scales(cls);
}

}  // namespace seqattn::python
