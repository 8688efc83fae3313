#include "device_arrays.h"

#include <utility>

namespace seqattn::python {
namespace {

nb::object from_device_module(const char* name) {
  return nb::module_::import_("seqattn._device").attr(name);
}

nb::tuple to_tuple(ListView<std::int64_t> shape) {
  nb::list sizes;
  for (const std::int64_t size : shape) sizes.append(size);
  return nb::tuple(sizes);
}

nb::str to_name(DType dtype) {
  const std::string_view name = to_string(dtype);
  return nb::str(name.data(), name.size());
}

}  // namespace

Stream current_stream(Framework framework, Device device) {
  if (device.type == DeviceType::kCPU) return {};
  const nb::object handle =
      from_device_module("current_stream")(framework == Framework::kTorch, device.index);
  return {reinterpret_cast<void*>(nb::cast<std::uintptr_t>(handle))};
}

Device current_cuda_device() { return cuda(nb::cast<int>(from_device_module("current_device")())); }

NewArray new_device_array(Framework framework, Device device, DType dtype,
                          ListView<std::int64_t> shape) {
  nb::object array = from_device_module("empty")(framework == Framework::kTorch, to_tuple(shape),
                                                 to_name(dtype), device.index);
  const TensorView view =
      import_array(array, "new array", framework, kEveryFloat, Access::kWrite).view;
  return {std::move(array), view};
}

nb::object torch_zeros(DType dtype, ListView<std::int64_t> shape, Device device) {
  return from_device_module("torch_zeros")(to_tuple(shape), to_name(dtype), device.index);
}

nb::object with_dtype(nb::handle cupy_array, DType dtype) {
  return from_device_module("with_dtype")(cupy_array, to_name(dtype));
}

void require_cupy(Device device) { from_device_module("cupy_for")(device.index); }

nb::object copy_to_device(Framework framework, nb::handle host_array, Device device,
                          bool non_blocking) {
  return from_device_module("to_device")(framework == Framework::kTorch, host_array, device.index,
                                         non_blocking);
}

}  // namespace seqattn::python
