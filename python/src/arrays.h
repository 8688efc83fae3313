#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "seqattn/tensor_view.h"

// Arrays that cross the border, by DLPack or the buffer protocol and never with a copy.
namespace seqattn::python {

// The framework of the arrays that a call returns. On a device CuPy stands in for numpy.
enum class Framework { kNumpy, kTorch };

// A module that is loaded, or none: torch and CuPy are never imported by us first.
nb::object loaded_module(const char* name);
bool is_torch_tensor(nb::handle object);
bool is_torch_dtype(nb::handle object);
inline Framework framework_of(nb::handle array) {
  return is_torch_tensor(array) ? Framework::kTorch : Framework::kNumpy;
}

// A torch dtype, a numpy dtype or scalar type (ml_dtypes and JAX included), or a name.
DType to_dtype(nb::handle dtype);

using Array = Any;  // an array argument, and None where it is optional

enum class Access { kRead, kWrite };

// The dtypes that an array argument accepts besides float32.
struct Accepts {
  bool float16 = false, bfloat16 = false;
  bool float8 = false;  // which only caches hold
};
inline constexpr Accepts kFloat32Only{}, kEveryFloat{true, true}, kEveryCache{true, true, true};
// What goes into or comes out of a cache of that dtype.
constexpr Accepts with_float32(DType dtype) {
  if (has_scales(dtype)) return kEveryFloat;
  return {dtype == DType::kFloat16, dtype == DType::kBFloat16};
}

// "float32", "uint16": the name of any dtype.
std::string dtype_name(nb::dlpack::dtype dtype);

// A borrowed tensor of the caller's, held for as long as this object lives. To be made and
// destroyed with the GIL.
struct Import {
  nb::ndarray<nb::ro> array;
  TensorView view;
};

// Throws TypeError for what is no array, InvalidArgumentError for a dtype that is not accepted (for
// bfloat16 its bits as uint16 are), UnsupportedError for an unknown device, and
// InvalidArgumentError for a read-only array that would be written. `name` opens the message.
//
// Torch's tensors cross without a word to any stream. Other arrays on a device are handed over for
// `framework`'s current stream there, as DLPack has it: a producer that works on another stream
// makes that one wait.
Import import_array(nb::handle object, std::string_view name, Framework framework, Accepts accepts,
                    Access access = Access::kRead);
// "No tensor" for None.
Import import_optional(nb::handle object, std::string_view name, Framework framework,
                       Accepts accepts, Access access = Access::kRead);
// The bits of an array of float8_e4m3fn as uint8; none for any other object.
nb::object float8_bits(nb::handle object);
// What nanobind imports best in the object's stead, as import_array does it.
nb::object importable(nb::handle object, Framework framework);

// Appends the elements of a bool or uint8 array in host memory, row-major.
struct MaskShape {
  std::int64_t rows = 0, columns = 0;
};
void append_mask(nb::handle object, std::string_view name, std::optional<MaskShape> expected,
                 std::vector<std::uint8_t>& out);

// The view as an array of the framework; `owner` lives as long as the array. Throws
// UnsupportedError for numpy and a device where CuPy is not loaded.
nb::object export_array(Framework framework, const TensorView& view, nb::handle owner);
// int32 values: a read-only view for numpy; a copy for torch, which knows no read-only tensors.
nb::object export_ints(Framework framework, std::span<const std::int32_t> values, nb::handle owner);
// int32 values, read-only, always numpy.
nb::object export_counts(std::span<const std::int32_t> values, nb::handle owner);

// A new array of the framework, not initialised; on a device from the framework's own allocator.
// Throws as export_array does.
struct NewArray {
  nb::object object;
  TensorView view;
};
NewArray new_array(Framework framework, Device device, DType dtype, ListView<std::int64_t> shape);

}  // namespace seqattn::python
