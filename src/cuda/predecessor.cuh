#pragma once

namespace seqattn {

// In a kernel whose launch may overlap the one before it on the stream (launch.h): from here on
// that one has ended, and what it wrote is there.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace seqattn
