#pragma once

// In kernels whose launch may overlap the one before it on the stream (launch.h).
namespace seqattn {

// From here on the kernel before has ended, and what it wrote is there; and those before that one,
// if some block of it waited as well. Where all its blocks may end without (FA2's padding, a merge
// of nothing), it is not launched to overlap, or that one in front of it is not.
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
