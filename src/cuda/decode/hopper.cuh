#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "overlap.cuh"

// The instructions of sm_90 that decode_kernel.cuh is made of, each under the name of what it does.
// Addresses of shared memory are 32-bit numbers here, as the instructions take them.
namespace seqattn::decode {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- Barriers in shared memory (mbarrier), by address.

__device__ __forceinline__ std::uint32_t address_of(const std::uint64_t& barrier) {
  return shared_address(&barrier);
}

__device__ __forceinline__ void init_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// What init_barrier wrote becomes visible to the bulk copy engine too.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrivals of a warp at a barrier: of one lane, behind the others. racecheck takes what that lane
// did as ordered, not what the others did: for it every lane can arrive.
#ifdef SEQATTN_EVERY_LANE_ARRIVES
inline constexpr int kWarpArrivals = 32;
#else
inline constexpr int kWarpArrivals = 1;
#endif

// Whether the lane is to arrive; all lanes ask together.
__device__ __forceinline__ bool arrives_for_warp(int lane) {
  __syncwarp();
  return kWarpArrivals > 1 || lane == 0;
}

// Arrives, and lets the phase end no sooner than so many bytes have come by bulk copies.
__device__ __forceinline__ void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase with that parity.
__device__ __forceinline__ void wait(std::uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A position in a ring of kSlots slots, and the parity of the phase that their barriers, if they
// have any, are in there.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  int parity = 0;
  template <int kSteps = 1>
  __device__ void advance() {
    static_assert(kSteps <= kSlots);
    slot += kSteps;
    if (slot < kSlots) return;
    slot -= kSlots;
    parity ^= 1;
  }
  __device__ void advance_by(int steps) {
    const int to = slot + steps, rounds = to / kSlots;
    slot = to - rounds * kSlots;
    parity ^= rounds & 1;
  }
};

// True for one thread of a whole warp, of which the compiler knows that it is alone: bulk copies
// take their arguments from registers that a warp shares.
__device__ __forceinline__ bool is_elected() {
  std::uint32_t result;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, elected;\n"
      "}"
      : "=r"(result));
  return result != 0;
}

// --- Bulk copies into shared memory. They end at a barrier that expects their bytes.

// Streams: what one thread block reads, no other will.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A box of the 5-dimensional map, from element 0, `token`, block 0, `head`, `page`.
__device__ __forceinline__ void load_box(std::uint32_t to, const CUtensorMap* map,
                                         std::uint32_t barrier, int token, int head, int page,
                                         std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %3, %5, %6}], [%2], %7;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(0), "r"(token), "r"(head), "r"(page), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void load_bytes(std::uint32_t to, const void* from, int bytes,
                                           std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// What threads stored into shared memory comes before later bulk copies, and the reverse.
__device__ __forceinline__ void fence_bulk_copies() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

// --- Matrices of 8 x 8 16-bit elements in the registers of a warp.

using Fragment = std::uint32_t[4];

__device__ __forceinline__ void load_matrices(std::uint32_t address, Fragment& to) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_transposed(std::uint32_t address, Fragment& to) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ std::uint32_t transpose(std::uint32_t matrix) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

// sums[16 x 8] += a[16 x 16] b[16 x 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const Fragment& a,
                                             const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// --- Memory that thread blocks share.

// Adds, as a release of all that came before and an acquire of what other additions released.
__device__ __forceinline__ unsigned add_in_order(unsigned* to, unsigned x) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(x)
               : "memory");
  return before;
}

// From the second-level cache, where other blocks' stores are. Stays where it is written: the
// compiler does not move it behind a branch.
__device__ __forceinline__ float4 load_now(const float4* from) {
  float4 value;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

// --- Registers.

// By all threads of four warps: leaves each kCount registers, others for the block to take.
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// The same; waits until the block has so many for each.
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- Numbers.

__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float log2_fast(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

template <class T>
__device__ __forceinline__ T round_to(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return __float2half_rn(x);
  }
}

// Two elements of T in one register, `low` in the lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t result;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

// Four elements of 8 bits (e4m3), the first in the lowest byte, as pairs of f16: exactly.
__device__ __forceinline__ void widen(std::uint32_t bytes, std::uint32_t& first,
                                      std::uint32_t& second) {
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(first), "=r"(second)
      : "r"(bytes));
}

}  // namespace seqattn::decode
