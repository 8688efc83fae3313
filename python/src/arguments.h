#pragma once

#include <nanobind/nanobind.h>

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "seqattn/error.h"
#include "seqattn/types.h"

// Arguments of Python calls: numbers, lists of numbers, dtypes, devices, layouts.
namespace seqattn::python {

namespace nb = nanobind;

inline bool is_anything(PyObject*) { return true; }

// Arguments of the bound functions, named as the stubs print them. They are converted by the
// functions below, which say what is wrong with a value where nanobind would only say that some
// argument is.
class Int : public nb::object {
  NB_OBJECT_DEFAULT(Int, nb::object, "typing.SupportsIndex", is_anything)
};
class OptionalInt : public nb::object {
  NB_OBJECT_DEFAULT(OptionalInt, nb::object, "typing.SupportsIndex", is_anything)
};
class Ints : public nb::object {
  NB_OBJECT_DEFAULT(Ints, nb::object, "collections.abc.Iterable[int]", is_anything)
};
class Any : public nb::object {
  NB_OBJECT_DEFAULT(Any, nb::object, "typing.Any", is_anything)
};

// The parts, one after the other, as operator<< prints them.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    throw InvalidArgumentError(concat(parts...));
  }
}

[[noreturn]] void throw_type_error(const std::string& message);
std::string class_name(nb::handle object);

// Throws InvalidArgumentError for a number that 64 bits do not hold, TypeError for what is none.
std::int64_t to_int64(nb::handle number, std::string_view name);

// The number, or nothing for one that 64 bits do not hold and for what is none.
std::optional<std::int64_t> as_int64(nb::handle number);

template <std::signed_integral T>
T narrow(std::int64_t number, std::string_view name) {
  require(number >= std::numeric_limits<T>::min() && number <= std::numeric_limits<T>::max(), name,
          ": got ", number, "; expected a number that fits ", 8 * sizeof(T), " bits");
  return static_cast<T>(number);
}

inline int to_int(nb::handle number, std::string_view name) {
  return narrow<int>(to_int64(number, name), name);
}

// A list, tuple, integer array of any framework in host memory, or any other iterable of integers
// that has an order and is no text or bytes. An array without elements is good whatever its dtype.
// Throws InvalidArgumentError for numbers that do not fit, arrays of another rank or on a device;
// TypeError for what is no list of integers.
template <class T>
std::vector<T> to_ints(nb::handle list, std::string_view name);
extern template std::vector<std::int32_t> to_ints(nb::handle, std::string_view);
extern template std::vector<std::int64_t> to_ints(nb::handle, std::string_view);

inline SeqId to_seq_id(nb::handle id) { return to_int64(id, "seq_id"); }
inline std::vector<SeqId> to_seq_ids(nb::handle ids) { return to_ints<SeqId>(ids, "seq_ids"); }

// "HND" and "NHD"; InvalidArgumentError for other strings, TypeError for what is none.
KVLayout to_kv_layout(nb::handle name);
KVScaling to_kv_scaling(nb::handle name);
// Throws InvalidArgumentError for a number that float32 would turn into 0 or infinity.
float to_float(double value, std::string_view name);
// A number, or some in order.
std::vector<float> to_floats(nb::handle value, std::string_view name);

// A string, an int (the index of a CUDA device) or an object with `type` and `index`, such as
// torch's. "cuda" alone is the current device of torch or CuPy.
Device to_device(nb::handle device);

}  // namespace seqattn::python
