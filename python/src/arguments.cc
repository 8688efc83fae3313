#include "arguments.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "arrays.h"
#include "device_arrays.h"

namespace seqattn::python {
namespace {

using IntArray = nb::ndarray<nb::ro>;

template <class From, class T>
void copy_ints(const IntArray& array, std::string_view name, std::vector<T>& out) {
  const auto* data = static_cast<const From*>(array.data());
  if constexpr (std::is_same_v<From, T>) {
    if (array.stride(0) == 1) {
      out.assign(data, data + array.shape(0));
      return;
    }
  }
  out.reserve(array.shape(0));
  for (std::size_t i = 0; i < array.shape(0); ++i) {
    const From number = data[static_cast<std::int64_t>(i) * array.stride(0)];
    require(std::in_range<T>(number), name, ": got ", +number, " at entry ", i,
            "; expected a number that fits ", 8 * sizeof(T), " bits");
    out.push_back(static_cast<T>(number));
  }
}

template <class T>
std::vector<T> ints_of_array(const IntArray& array, std::string_view name) {
  require(array.device_type() == nb::device::cpu::value ||
              array.device_type() == nb::device::cuda_host::value,
          name, ": got data on a device; expected host memory: pass its host copy, tensor.cpu()");
  require(array.ndim() == 1, name, ": got ", array.ndim(), " dimensions; expected 1");
  std::vector<T> out;
  if (array.shape(0) == 0) return out;  // numpy.array([]) is one of floats
  const auto is = [dtype = array.dtype()](nb::dlpack::dtype other) { return dtype == other; };
  if (is(nb::dtype<std::int32_t>())) {
    copy_ints<std::int32_t>(array, name, out);
  } else if (is(nb::dtype<std::int64_t>())) {
    copy_ints<std::int64_t>(array, name, out);
  } else if (is(nb::dtype<std::int16_t>())) {
    copy_ints<std::int16_t>(array, name, out);
  } else if (is(nb::dtype<std::int8_t>())) {
    copy_ints<std::int8_t>(array, name, out);
  } else if (is(nb::dtype<std::uint8_t>())) {
    copy_ints<std::uint8_t>(array, name, out);
  } else if (is(nb::dtype<std::uint16_t>())) {
    copy_ints<std::uint16_t>(array, name, out);
  } else if (is(nb::dtype<std::uint32_t>())) {
    copy_ints<std::uint32_t>(array, name, out);
  } else if (is(nb::dtype<std::uint64_t>())) {
    copy_ints<std::uint64_t>(array, name, out);
  } else {
    throw_type_error(concat(name, ": got an array of ", dtype_name(array.dtype()),
                            "; expected one of integers"));
  }
  return out;
}

template <class T>
std::vector<T> ints_of_iterable(nb::handle list, std::string_view name) {
  nb::object items = nb::steal(PySequence_Fast(list.ptr(), ""));
  if (!items.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
    PyErr_Clear();
    throw_type_error(concat(name, ": got ", class_name(list), "; expected a list of integers"));
  }
  std::vector<T> out;
  out.reserve(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
  // The size is read anew each time and the item held: an item's __index__ may change the list.
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    const nb::object item = nb::borrow(PySequence_Fast_GET_ITEM(items.ptr(), i));
    out.push_back(narrow<T>(to_int64(item, name), name));
  }
  return out;
}

}  // namespace

void throw_type_error(const std::string& message) { nb::raise_type_error("%s", message.c_str()); }

std::string class_name(nb::handle object) {
  if (object.is_none()) return "None";
  auto name = nb::cast<std::string>(nb::inst_name(object));
  for (const std::string_view inner : {"seqattn._core.", "seqattn._types."}) {
    if (name.starts_with(inner)) name.replace(0, inner.size(), "seqattn.");  // where users find it
  }
  return name;
}

std::optional<std::int64_t> as_int64(nb::handle number) {
  if (!PyIndex_Check(number.ptr())) return {};
  const nb::object index = nb::steal(PyNumber_Index(number.ptr()));
  if (!index.is_valid()) nb::raise_python_error();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) return {};
  return value;
}

std::int64_t to_int64(nb::handle number, std::string_view name) {
  if (!PyIndex_Check(number.ptr())) {
    throw_type_error(concat(name, ": got ", class_name(number), "; expected an integer"));
  }
  const std::optional<std::int64_t> value = as_int64(number);
  require(value.has_value(), name, ": got a number beyond 64 bits; expected one that fits");
  return *value;
}

template <class T>
std::vector<T> to_ints(nb::handle list, std::string_view name) {
  // Bytes would be read as numbers, and a set has no order to go by.
  if (PyBytes_Check(list.ptr()) || PyByteArray_Check(list.ptr()) || PyAnySet_Check(list.ptr())) {
    throw_type_error(concat(name, ": got ", class_name(list), "; expected a list of integers"));
  }
  const bool is_plain = PyList_CheckExact(list.ptr()) || PyTuple_CheckExact(list.ptr());
  IntArray array;
  if (!is_plain && nb::ndarray_check(list) &&
      nb::try_cast(importable(list, framework_of(list)), array, false)) {
    return ints_of_array<T>(array, name);
  }
  return ints_of_iterable<T>(list, name);
}
template std::vector<std::int32_t> to_ints(nb::handle, std::string_view);
template std::vector<std::int64_t> to_ints(nb::handle, std::string_view);

KVLayout to_kv_layout(nb::handle layout_name) {
  if (!nb::isinstance<nb::str>(layout_name)) {
    throw_type_error(
        concat("kv_layout: got ", class_name(layout_name), "; expected \"NHD\" or \"HND\""));
  }
  const auto name = nb::cast<std::string>(layout_name);
  for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
    if (name == to_string(layout)) return layout;
  }
  throw InvalidArgumentError(concat("Unsupported kv_layout: ", name, "; expected NHD or HND"));
}

KVScaling to_kv_scaling(nb::handle scaling_name) {
  if (!nb::isinstance<nb::str>(scaling_name)) {
    throw_type_error(concat("kv_scaling: got ", class_name(scaling_name),
                            "; expected \"fixed\" or \"per_token\""));
  }
  const auto name = nb::cast<std::string>(scaling_name);
  for (const KVScaling scaling : {KVScaling::kFixed, KVScaling::kPerToken}) {
    if (name == to_string(scaling)) return scaling;
  }
  throw InvalidArgumentError(
      concat("kv_scaling: got '", name, "'; expected 'fixed' or 'per_token'"));
}

float to_float(double value, std::string_view name) {
  const bool fits = value == 0 || !std::isfinite(value) ||
                    (std::abs(value) >= std::numeric_limits<float>::denorm_min() &&
                     std::abs(value) <= std::numeric_limits<float>::max());
  require(fits, name, ": got ", value, "; expected 0 or a number that float32 can hold");
  return static_cast<float>(value);
}

std::vector<float> to_floats(nb::handle value, std::string_view name) {
  double number = 0;
  // A tensor of no dimensions is a number, and iterable by name only.
  if (nb::try_cast(value, number)) return {to_float(number, name)};
  const bool is_ordered = !nb::isinstance<nb::str>(value) && !nb::isinstance<nb::bytes>(value) &&
                          !PyAnySet_Check(value.ptr());
  if (!is_ordered || !nb::hasattr(value, "__iter__")) {
    throw_type_error(
        concat(name, ": got ", class_name(value), "; expected a number or a list of numbers"));
  }
  std::vector<float> numbers;
  for (const nb::handle element : nb::iter(value)) {
    if (!nb::try_cast(element, number)) {
      throw_type_error(concat(name, ": got ", class_name(element), "; expected a number"));
    }
    numbers.push_back(to_float(number, name));
  }
  return numbers;
}

Device to_device(nb::handle device) {
  constexpr std::string_view kExpected =
      "; expected \"cpu\", \"cuda:<index>\", the index of a CUDA device or a torch device";
  const bool is_index = PyIndex_Check(device.ptr());
  const bool has_type = nb::hasattr(device, "type") && nb::hasattr(device, "index");
  if (!is_index && !nb::isinstance<nb::str>(device) && !has_type) {
    throw_type_error(concat("device: got ", class_name(device), kExpected));
  }
  std::string text = nb::cast<std::string>(nb::str(device));
  if (is_index) text.insert(0, "cuda:");
  if (text == "cpu" || text == "cpu:0") return cpu();
  if (text == "cuda") return current_cuda_device();
  int index = -1;
  if (text.starts_with("cuda:")) {
    const char* const end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + 5, end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end) index = -1;
  }
  require(index >= 0, "device: got ", text, kExpected);
  return cuda(index);
}

}  // namespace seqattn::python
