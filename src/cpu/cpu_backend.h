#pragma once

#include "backend.h"

namespace seqattn {

// The backend of Device{kCPU, 0}: SIMD kernels chosen at run time, OpenMP threads.
Backend& cpu_backend();

}  // namespace seqattn
