#pragma once

// In kernels whose launch may overlap the one before it on the stream (launch.h).
namespace seqattn {

// From here on the kernel before has ended, and what it wrote is there.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// By every block, or by its end: the kernel behind may start, and waits before it touches what
// this one does.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace seqattn
