#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace seqattn {

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
};

// Launches a kernel that waits for its predecessor on the stream itself (griddepcontrol.wait), as
// far as the device can: `overlap` lets its blocks start, and read tables that a plan has uploaded
// by a copy, which no kernel overlaps, while the last blocks of the predecessor still run. Needs
// compute capability 9.0.
inline cudaError_t launch(const void* kernel, const LaunchShape& shape, void** arguments,
                          cudaStream_t stream, bool overlap) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace seqattn
