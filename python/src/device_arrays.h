#pragma once

#include <nanobind/nanobind.h>

#include "arrays.h"

// What torch and CuPy do where a cache is on a device (seqattn/_device.py).
namespace seqattn::python {

// The stream that the framework's own calls go to on that device, so that ours follow them.
Stream current_stream(Framework framework, Device device);

// The device that "cuda" without an index means.
Device current_cuda_device();

// new_array on a device.
NewArray new_device_array(Framework framework, Device device, DType dtype,
                          ListView<std::int64_t> shape);

// A tensor of torch's with a cache of zeros. Throws what torch throws where memory falls short.
nb::object torch_zeros(DType dtype, ListView<std::int64_t> shape, Device device);

// A copy of a host array.
nb::object copy_to_device(Framework framework, nb::handle host_array, Device device,
                          bool non_blocking);

// Throws UnsupportedError, saying what to do, where CuPy is not loaded.
void require_cupy(Device device);
// A CuPy array of bits as bfloat16, where CuPy knows that.
nb::object with_dtype(nb::handle cupy_array, DType dtype);

}  // namespace seqattn::python
