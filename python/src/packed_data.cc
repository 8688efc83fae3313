#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "arguments.h"
#include "classes.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

using Field = std::span<const std::int32_t> (FlashInferPackedData::*)() const noexcept;

template <Field field, nb::object PackedData::*on_device>
nb::object export_field(const PackedData& self) {
  const nb::object& copy = self.*on_device;
  if (copy.is_valid()) return copy;
  return export_ints(self.framework, (self.data.*field)(), nb::find(self));
}

PackedData to_device_of(const PackedData& self, const Any& device_handle, bool non_blocking) {
  const Device device = to_device(device_handle);
  PackedData copy{self.data.to_device(device), self.framework};
  if (device.type == DeviceType::kCPU) return copy;
  const auto field = [&](std::span<const std::int32_t> values) {
    const nb::object array = export_ints(self.framework, values, nb::find(self));
    return copy_to_device(self.framework, array, device, non_blocking);
  };
  copy.indices = field(self.data.kv_page_indices());
  copy.indptr = field(self.data.kv_page_indptr());
  copy.last_page_len = field(self.data.kv_last_page_len());
  return copy;
}

// Windows as tuples of four, in the order of RowWindow's fields; trees as lists of parents.
nb::list windows_of(const PackedData& self) {
  nb::list list;
  for (const RowWindow& row : self.data.columns().windows) {
    list.append(nb::make_tuple(row.window, row.num_sink_tokens, row.num_dropped, row.first_query));
  }
  return list;
}

nb::object trees_of(const PackedData& self) { return nb::cast(self.data.columns().trees); }

template <class Body>
void for_each_row(nb::handle list, const char* name, const Body& body) {
  if (list.is_none()) return;
  const nb::object items = nb::steal(PyObject_GetIter(list.ptr()));
  if (!items.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
    PyErr_Clear();
    throw_type_error(
        concat(name, ": got ", class_name(list), "; expected a list with an entry for each row"));
  }
  for (const nb::handle item : items) body(item);
}

RowColumns to_columns(nb::handle windows, nb::handle trees) {
  RowColumns columns;
  for_each_row(windows, "windows", [&](nb::handle row) {
    const auto numbers = to_ints<std::int64_t>(row, "windows");
    require(numbers.size() == 4, "windows: got an entry of ", numbers.size(),
            " numbers; expected window, num_sink_tokens, num_dropped and first_query");
    columns.windows.push_back({numbers[0], numbers[1], numbers[2], numbers[3]});
  });
  for_each_row(trees, "trees", [&](nb::handle row) {
    columns.trees.push_back(to_ints<std::int32_t>(row, "trees"));
  });
  return columns;
}

void init(PackedData* self, const Ints& indices, const Ints& indptr, const Ints& last_page_len,
          const Any& windows, const Any& trees) {
  const bool torch =
      is_torch_tensor(indices) || is_torch_tensor(indptr) || is_torch_tensor(last_page_len);
  FlashInferPackedData data(to_ints<std::int32_t>(indices, "kv_page_indices"),
                            to_ints<std::int32_t>(indptr, "kv_page_indptr"),
                            to_ints<std::int32_t>(last_page_len, "kv_last_page_len"),
                            to_columns(windows, trees));
  new (self) PackedData{data, torch ? Framework::kTorch : Framework::kNumpy};
}

// The arrays in host memory, as the constructor takes them.
nb::tuple host_arrays(const PackedData& self) {
  const auto field = [&](std::span<const std::int32_t> values) {
    return export_ints(self.framework, values, nb::find(self));
  };
  return nb::make_tuple(field(self.data.kv_page_indices()), field(self.data.kv_page_indptr()),
                        field(self.data.kv_last_page_len()), windows_of(self), trees_of(self));
}

bool equal(const FlashInferPackedData& a, const FlashInferPackedData& b) {
  const auto same = [&](Field field) {
    const auto x = (a.*field)(), y = (b.*field)();
    return std::equal(x.begin(), x.end(), y.begin(), y.end());
  };
  return same(&FlashInferPackedData::kv_page_indices) &&
         same(&FlashInferPackedData::kv_page_indptr) &&
         same(&FlashInferPackedData::kv_last_page_len) && a.columns() == b.columns();
}

void bind_columns(nb::class_<PackedData>& cls) {
  cls.def_prop_ro("windows", &windows_of,
                  nb::sig("def windows(self) -> list[tuple[int, int, int, int]]"),
                  "Of each row window, num_sink_tokens, num_dropped (tokens between the sinks and "
                  "the rest) and first_query (the first slot that may ask); empty where no row "
                  "has a window.")
      .def_prop_ro("trees", &trees_of, nb::sig("def trees(self) -> list[list[int]]"),
                   "Of each row the parents of the draft tokens in its last slots; empty where no "
                   "row has a tree.");
}

}  // namespace

const PackedData& to_packed_data(nb::handle flashinfer_data) {
  const PackedData* packed = nullptr;
  if (!nb::try_cast(flashinfer_data, packed, false) || packed == nullptr) {
    throw_type_error(concat("flashinfer_data: got ", class_name(flashinfer_data),
                            "; expected a FlashInferPackedData"));
  }
  return *packed;
}

void bind_packed_data(nb::module_& m) {
  nb::class_<PackedData> cls(
      m, "FlashInferPackedData",
      "A batch as CSR arrays, the form that paged attention kernels read. Immutable.\n\n"
      "Made by CacheDescriptor.pack_for_flashinfer, or from arrays or lists in host memory "
      "(tensor.cpu()). Raises "
      "InvalidArgumentError unless kv_page_indptr starts at 0, never falls and ends at the number "
      "of indices, and kv_last_page_len is positive where a row has pages and 0 where it has "
      "none.\n\n"
      "Data that a descriptor packed is tied to its pool (pool_id): the pages must be live there. "
      "Copies are tied to it too; what comes out of a pickle is tied to none, as arrays of the "
      "caller's own are, and lies in host memory.");
  cls.def("__init__", &init, "kv_page_indices"_a.none(), "kv_page_indptr"_a.none(),
          "kv_last_page_len"_a.none(), "windows"_a = nb::none(), "trees"_a = nb::none(),
          nb::sig("def __init__(self, kv_page_indices: collections.abc.Iterable[int], "
                  "kv_page_indptr: collections.abc.Iterable[int], kv_last_page_len: "
                  "collections.abc.Iterable[int], windows: collections.abc.Iterable[tuple[int, "
                  "int, int, int]] | None = None, trees: "
                  "collections.abc.Iterable[collections.abc.Iterable[int]] | None = None) -> "
                  "None"))
      .def_prop_ro("kv_page_indices",
                   &export_field<&FlashInferPackedData::kv_page_indices, &PackedData::indices>,
                   nb::sig("def kv_page_indices(self) -> typing.Any"),
                   "int32 [total_pages]: the pages of row 0, then of row 1, ... A read-only numpy "
                   "view, or a torch tensor of its own.")
      .def_prop_ro("kv_page_indptr",
                   &export_field<&FlashInferPackedData::kv_page_indptr, &PackedData::indptr>,
                   nb::sig("def kv_page_indptr(self) -> typing.Any"),
                   "int32 [batch_size + 1]: row i owns kv_page_indices[indptr[i]:indptr[i + 1]].")
      .def_prop_ro(
          "kv_last_page_len",
          &export_field<&FlashInferPackedData::kv_last_page_len, &PackedData::last_page_len>,
          nb::sig("def kv_last_page_len(self) -> typing.Any"),
          "int32 [batch_size]: tokens on the row's last page, 0 without pages.")
      .def_prop_ro(
          "batch_size", [](const PackedData& self) { return self.data.batch_size(); }, "Rows.")
      .def_prop_ro(
          "pool_id", [](const PackedData& self) { return self.data.pool_id(); },
          "PagePool.id of the pool whose descriptor packed this, or 0 for the caller's own arrays.")
      .def(
          "kv_len",
          [](const PackedData& self, const Int& row, const Int& page_size) {
            return self.data.kv_len(to_int64(row, "row"), to_int(page_size, "page_size"));
          },
          "row"_a.none(), "page_size"_a.none(),
          nb::sig("def kv_len(self, row: typing.SupportsIndex, page_size: typing.SupportsIndex) -> "
                  "int"),
          "The tokens of a row. Raises InvalidArgumentError for a row that is not there.")
      .def("__copy__", [](const PackedData& self) { return self; })
      .def(
          "__deepcopy__", [](const PackedData& self, const Any&) { return self; }, "memo"_a)
      .def(
          "__reduce__",
          [](const PackedData& self) {
            return nb::make_tuple(nb::type<PackedData>(), host_arrays(self));
          },
          nb::sig("def __reduce__(self) -> tuple[typing.Any, ...]"))
      .def("to_device", &to_device_of, "device"_a.none(), "non_blocking"_a = true,
           nb::sig("def to_device(self, device: typing.Any, non_blocking: bool = True) -> "
                   "FlashInferPackedData"),
           "A copy whose three arrays lie on the device: torch tensors, as FlashInfer's wrappers "
           "take them, or CuPy arrays.\n\n"
           "It keeps the host's copy, which plan and append_kv read. Raises UnsupportedError where "
           "this build has no such device, or where arrays would be CuPy's and CuPy is not loaded.")
      .def(
          "__eq__",
          [](const PackedData& self, const PackedData& other) {
            return equal(self.data, other.data);
          },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"),
          "Whether the arrays, windows and trees hold the same.")
      .def("__hash__",
           [](const PackedData& self) {
             return nb::hash(
                 nb::make_tuple(self.data.batch_size(), self.data.kv_page_indices().size()));
           })
      .def("__repr__", [](const PackedData& self) { return self.data.to_string(); });
  bind_columns(cls);
}

}  // namespace seqattn::python
