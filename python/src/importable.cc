#include <cstddef>
#include <cstdint>

#include "arrays.h"
#include "device_arrays.h"

namespace seqattn::python {
namespace {

bool is_instance_of(nb::handle object, const char* module_name, const char* type) {
  const nb::object module = loaded_module(module_name);
  return module.is_valid() && nb::hasattr(module, type) &&
         nb::isinstance(object, nb::getattr(module, type));
}

// The array in the form that nanobind imports best: a memoryview where there is one, since old
// numpy refuses to export read-only arrays by DLPack and is slow at it; for numpy's bfloat16
// (ml_dtypes), which neither way carries, that of its bits as uint16; else the object itself.
nb::object portable(nb::handle array) {
  if (!PyObject_CheckBuffer(array.ptr())) return nb::borrow(array);
  nb::object view = nb::steal(PyMemoryView_FromObject(array.ptr()));
  if (view.is_valid()) return view;
  PyErr_Clear();
  const nb::object dtype = nb::getattr(array, "dtype", nb::none());
  const nb::object name = nb::getattr(dtype, "name", nb::none());
  if (!nb::hasattr(array, "view") || !name.equal(nb::str("bfloat16"))) return nb::borrow(array);
  view = nb::steal(PyMemoryView_FromObject(nb::object(array.attr("view")("uint16")).ptr()));
  if (view.is_valid()) return view;
  PyErr_Clear();  // CuPy's has a buffer in name only
  return nb::borrow(array);
}

// What `make` returns, or none where it raises.
template <class Make>
nb::object or_none(const Make& make) {
  try {
    return make();
  } catch (nb::python_error& e) {
    if (!e.matches(PyExc_Exception)) throw;
    return {};
  }
}

// By the function, not by the method __dlpack__, which makes streams wait for one another (in a
// stream that is being captured, an error) and refuses tensors that require a gradient.
nb::object torch_capsule(nb::handle tensor) {
  return or_none([&] {
    return nb::object(
        loaded_module("torch").attr("utils").attr("dlpack").attr("to_dlpack")(tensor));
  });
}

// The device that the object says its DLPack tensor is on; a CPU where it does not say.
Device dlpack_device(nb::handle array) {
  constexpr int kDLCUDA = 2, kDLCUDAManaged = 13;  // DLDeviceType
  if (!nb::hasattr(array, "__dlpack_device__")) return cpu();
  const nb::object device = or_none([&] { return array.attr("__dlpack_device__")(); });
  int type = 0, index = 0;
  if (!device.is_valid() || !nb::isinstance<nb::tuple>(device) || nb::len(device) != 2 ||
      !nb::try_cast(nb::object(device[0]), type) || (type != kDLCUDA && type != kDLCUDAManaged)) {
    return cpu();
  }
  return nb::try_cast(nb::object(device[1]), index) ? cuda(index) : cpu();
}

// A capsule whose data is ready on the stream.
nb::object device_capsule(nb::handle array, Stream stream) {
  constexpr std::uintptr_t kDefaultStream = 1;  // in DLPack, where 0 means nothing
  const auto handle = reinterpret_cast<std::uintptr_t>(stream.handle);
  const nb::int_ number(handle == 0 ? kDefaultStream : handle);
  const auto capsule = [&](nb::handle source) {
    return or_none(
        [&] { return nb::object(source.attr("__dlpack__")(nb::arg("stream") = number)); });
  };
  nb::object result = capsule(array);
  if (result.is_valid()) return result;
  // CuPy exports no bfloat16, but the bits.
  const nb::object dtype = nb::getattr(array, "dtype", nb::none());
  const nb::object name = nb::getattr(dtype, "name", nb::none());
  if (!nb::hasattr(array, "view") || !name.equal(nb::str("bfloat16"))) return {};
  const nb::object bits = or_none([&] { return array.attr("view")("uint16"); });
  return bits.is_valid() ? capsule(bits) : nb::object();
}

}  // namespace

nb::object loaded_module(const char* name) {
  const nb::str key(name);
  nb::object module = nb::steal(PyImport_GetModule(key.ptr()));
  if (!module.is_valid() && PyErr_Occurred() != nullptr) nb::raise_python_error();
  return module;
}

bool is_torch_tensor(nb::handle object) { return is_instance_of(object, "torch", "Tensor"); }
bool is_torch_dtype(nb::handle object) { return is_instance_of(object, "torch", "dtype"); }

nb::object float8_bits(nb::handle object) {
  const nb::object dtype = nb::getattr(object, "dtype", nb::none());
  if (is_torch_tensor(object)) {
    const nb::object torch = loaded_module("torch");
    const nb::object float8 = nb::getattr(torch, "float8_e4m3fn", nb::none());  // old ones: none
    if (float8.is_none() || !dtype.is(float8)) return {};
    return object.attr("view")(torch.attr("uint8"));
  }
  // The size first: numpy makes the name up each time it is asked for.
  const nb::object size = nb::getattr(dtype, "itemsize", nb::none());
  if (!size.equal(nb::int_(1)) || !nb::hasattr(object, "view")) return {};
  if (!nb::getattr(dtype, "name", nb::none()).equal(nb::str("float8_e4m3fn"))) return {};
  return object.attr("view")("uint8");
}

nb::object importable(nb::handle object, Framework framework) {
  if (is_torch_tensor(object)) {
    nb::object capsule = torch_capsule(object);
    return capsule.is_valid() ? capsule : nb::borrow(object);
  }
  nb::object source = portable(object);
  if (!source.is(object)) return source;  // has a buffer: host memory
  const Device device = dlpack_device(object);
  if (device.type == DeviceType::kCPU) return source;
  nb::object capsule =
      or_none([&] { return device_capsule(object, current_stream(framework, device)); });
  return capsule.is_valid() ? capsule : source;
}

}  // namespace seqattn::python
