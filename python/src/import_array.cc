#include <algorithm>
#include <cstddef>
#include <string>

#include "arguments.h"
#include "arrays.h"
#include "seqattn/dlpack.h"

namespace seqattn::python {
namespace {

using ReadOnlyArray = nb::ndarray<nb::ro>;

bool is_jax_array(nb::handle object) {
  const std::string module =
      nb::cast<std::string>(nb::str(nb::getattr(object.type(), "__module__", nb::str(""))));
  return module.starts_with("jax");
}

// Why a tensor of torch or an array of numpy does not come across, where that can be told.
std::string reason_of(nb::handle object) {
  const auto text = [&](const char* attribute) {
    return nb::cast<std::string>(nb::str(nb::getattr(object, attribute, nb::str(""))));
  };
  if (is_torch_tensor(object)) {
    if (text("layout") != "torch.strided") {
      return "a tensor of layout " + text("layout") + "; expected a dense one: tensor.to_dense()";
    }
    if (text("device") == "meta") return "a tensor on device meta, which holds no data";
  }
  const nb::object dtype = nb::getattr(object, "dtype", nb::none());
  const nb::object is_native = nb::getattr(dtype, "isnative", nb::none());
  if (is_native.is(Py_False)) {
    return "an array of dtype " + nb::cast<std::string>(nb::str(dtype)) +
           "; expected the byte order of this machine: "
           "array.astype(array.dtype.newbyteorder(\"=\"))";
  }
  return {};
}

[[noreturn]] void throw_no_array(nb::handle object, std::string_view name) {
  const std::string reason = reason_of(object);
  if (!reason.empty()) throw_type_error(concat(name, ": got ", reason));
  throw_type_error(concat(name, ": got ", class_name(object),
                          "; expected an array of numpy, torch, JAX, CuPy or any other that "
                          "exports it by DLPack or the buffer protocol"));
}

// Sizes of 1 leave their stride open, and producers set what they like; kernels on a device want
// multiples of 16 bytes.
void set_open_strides(TensorView& view) {
  std::uint64_t stride = 1;  // unsigned: nobody has looked at the sizes yet
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.shape[i] <= 1) view.strides[i] = static_cast<std::int64_t>(stride);
    stride = static_cast<std::uint64_t>(view.strides[i]) *
             static_cast<std::uint64_t>(std::max<std::int64_t>(view.shape[i], 1));
  }
}

ReadOnlyArray import_with(nb::handle object, std::string_view name, Framework framework,
                          Access access) {
  if (!nb::ndarray_check(object)) throw_no_array(object, name);
  // Its memory holds the numbers with the other sign.
  require(!is_torch_tensor(object) || !nb::cast<bool>(object.attr("is_neg")()), name,
          ": got a torch tensor with the negative bit; expected tensor.resolve_neg()");
  const nb::object source = importable(object, framework);
  ReadOnlyArray array;
  if (access == Access::kRead) {
    if (!nb::try_cast(source, array, false)) throw_no_array(object, name);
    return array;
  }
  nb::ndarray<> writable;
  const bool imported = !is_jax_array(object) && nb::try_cast(source, writable, false);
  if (imported) return ReadOnlyArray(writable);
  if (!nb::try_cast(source, array, false)) throw_no_array(object, name);
  throw InvalidArgumentError(
      concat(name, ": got a read-only array; expected one that may be written"));
}

nb::dlpack::dltensor tensor_of(const ReadOnlyArray& array) {
  nb::dlpack::dltensor tensor;
  tensor.data = array.data_handle();
  tensor.device = {array.device_type(), array.device_id()};
  tensor.ndim = static_cast<std::int32_t>(array.ndim());
  tensor.dtype = array.dtype();
  tensor.shape = const_cast<std::int64_t*>(array.shape_ptr());
  tensor.strides = const_cast<std::int64_t*>(array.stride_ptr());
  tensor.byte_offset = array.byte_offset();
  return tensor;
}

bool is_in_host_memory(const ReadOnlyArray& array) {
  return array.device_type() == nb::device::cpu::value ||
         array.device_type() == nb::device::cuda_host::value;
}

const char* names_of(Accepts accepts) {
  if (accepts.float8) {
    return "float32, float16, bfloat16 (its bits as uint16 will do) or float8_e4m3fn";
  }
  if (accepts.float16 && accepts.bfloat16) {
    return "float32, float16 or bfloat16 (its bits as uint16 will do)";
  }
  if (accepts.bfloat16) return "float32 or bfloat16 (its bits as uint16 will do)";
  return accepts.float16 ? "float32 or float16" : "float32";
}

void append_row(const std::uint8_t* row, std::int64_t size, std::int64_t stride,
                std::vector<std::uint8_t>& out) {
  for (std::int64_t i = 0; i < size; ++i) out.push_back(row[i * stride]);
}

}  // namespace

std::string dtype_name(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  const auto named = [&](const char* name) { return name + std::to_string(dtype.bits); };
  switch (static_cast<Code>(dtype.code)) {
    case Code::Int:
      return named("int");
    case Code::UInt:
      return named("uint");
    case Code::Float:
      return named("float");
    case Code::Bfloat:
      return named("bfloat");
    case Code::Complex:
      return named("complex");
    case Code::Bool:
      return "bool";
    default:
      return "DLPack type code " + std::to_string(dtype.code);
  }
}

DType to_dtype(nb::handle dtype) {
  std::string name;
  if (dtype.is_none()) {  // which is float64 to numpy
    throw_type_error("dtype: got None; expected a torch or numpy dtype or a name, \"float16\"");
  } else if (is_torch_dtype(dtype)) {
    name = nb::cast<std::string>(nb::str(dtype)).substr(std::string_view("torch.").size());
  } else if (nb::isinstance<nb::str>(dtype)) {
    name = nb::cast<std::string>(nb::str(dtype));
  } else {
    try {
      const nb::object parsed = nb::module_::import_("numpy").attr("dtype")(dtype);
      name = nb::cast<std::string>(nb::str(parsed.attr("name")));
    } catch (nb::python_error& e) {
      if (!e.matches(PyExc_TypeError) && !e.matches(PyExc_ValueError)) throw;
      throw_type_error(concat("dtype: got ", class_name(dtype),
                              "; expected a torch or numpy dtype or a name such as \"float16\""));
    }
  }
  if (name == "float32" || name == "float") return DType::kFloat32;
  if (name == "float16" || name == "half") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float8_e4m3fn") return DType::kFloat8E4M3;
  throw InvalidArgumentError(
      concat("dtype: got ", name, "; expected float32, float16, bfloat16 or float8_e4m3fn"));
}

Import import_array(nb::handle object, std::string_view name, Framework framework, Accepts accepts,
                    Access access) {
  // DLPack of many versions and the buffer protocol know no 8 bits.
  const nb::object bits8 = float8_bits(object);
  require(!bits8.is_valid() || accepts.float8, name,
          ": got float8_e4m3fn, which is for caches alone; expected ", names_of(accepts));
  Import result{import_with(bits8.is_valid() ? nb::handle(bits8) : object, name, framework, access),
                {}};
  nb::dlpack::dltensor tensor = tensor_of(result.array);
  if (bits8.is_valid()) {
    // As a tensor of bytes, and then of what they mean.
    tensor.dtype = nb::dlpack::dtype{kDLFloat8E4M3FN, 8, 1};
  }
  if (tensor.dtype == nb::dtype<std::uint16_t>()) {
    tensor.dtype.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  }
  using Code = nb::dlpack::dtype_code;
  const auto code = static_cast<Code>(tensor.dtype.code);
  const int bits = tensor.dtype.bits;
  const bool is_accepted = (code == Code::Float && bits == 32) ||
                           (code == Code::Float && bits == 16 && accepts.float16) ||
                           (code == Code::Bfloat && bits == 16 && accepts.bfloat16) ||
                           bits8.is_valid();
  require(tensor.dtype.lanes == 1 && is_accepted, name, ": got ", dtype_name(result.array.dtype()),
          "; expected ", names_of(accepts));
  require(tensor.ndim >= 1 && tensor.ndim <= TensorView::kMaxRank, name, ": got ", tensor.ndim,
          " dimensions; expected 1 to ", TensorView::kMaxRank);
  result.view = from_dlpack(tensor, access == Access::kRead);
  set_open_strides(result.view);
  return result;
}

Import import_optional(nb::handle object, std::string_view name, Framework framework,
                       Accepts accepts, Access access) {
  return object.is_none() ? Import{} : import_array(object, name, framework, accepts, access);
}

void append_mask(nb::handle object, std::string_view name, std::optional<MaskShape> expected,
                 std::vector<std::uint8_t>& out) {
  // Old versions of torch do not export bool.
  const nb::object torch = loaded_module("torch");
  const bool is_torch_bool = is_torch_tensor(object) && object.attr("dtype").is(torch.attr("bool"));
  const ReadOnlyArray array =
      import_with(is_torch_bool ? object.attr("view")(torch.attr("uint8")) : nb::borrow(object),
                  name, framework_of(object), Access::kRead);
  const bool is_byte =
      array.dtype() == nb::dtype<bool>() || array.dtype() == nb::dtype<std::uint8_t>();
  require(is_byte, name, ": got ", dtype_name(array.dtype()), "; expected bool or uint8");
  require(is_in_host_memory(array), name,
          ": got data on a device; expected host memory: pass its host copy, tensor.cpu()");
  const auto* data = static_cast<const std::uint8_t*>(array.data());
  if (!expected) {
    require(array.ndim() == 1, name, ": got ", array.ndim(), " dimensions; expected 1");
    append_row(data, static_cast<std::int64_t>(array.shape(0)), array.stride(0), out);
    return;
  }
  const auto [rows, columns] = *expected;
  require(array.ndim() == 2, name, ": got ", array.ndim(), " dimensions; expected [", rows, ", ",
          columns, "]");
  require(array.shape_ptr()[0] == rows && array.shape_ptr()[1] == columns, name, ": got [",
          array.shape(0), ", ", array.shape(1), "]; expected [", rows, ", ", columns, "]");
  for (std::int64_t i = 0; i < rows; ++i) {
    append_row(data + i * array.stride(0), columns, array.stride(1), out);
  }
}

}  // namespace seqattn::python
