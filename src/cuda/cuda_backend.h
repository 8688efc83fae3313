#pragma once

#include "backend.h"

namespace seqattn {

// The backend of one CUDA device: storage by cudaMalloc, own kernels for tokens and pages,
// FlashInfer's kernels for attention. Throws UnsupportedError where there is no such device.
Backend& cuda_backend(int device_index);

}  // namespace seqattn
