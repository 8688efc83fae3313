#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ceil_div.h"
#include "cuda_check.h"
#include "page_kernels.h"

namespace seqattn {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

// What a plane is moved by.
struct Units {
  int bytes;    // 16, or those of an element
  int per_row;  // of one token of one head
  __host__ __device__ explicit Units(const Plane& plane) {
    const auto element = static_cast<int>(size_of(plane.dtype));
    const int row = plane.head_dim * element;
    const auto all = reinterpret_cast<std::uintptr_t>(plane.data) |
                     static_cast<std::uintptr_t>(plane.page_stride | plane.token_stride |
                                                 plane.head_stride | row);
    bytes = all % kVectorBytes == 0 ? kVectorBytes : element;
    per_row = row / bytes;
  }
};

__device__ inline void copy_unit(std::byte* to, const std::byte* from, int bytes) {
  switch (bytes) {
    case kVectorBytes:
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      break;
    case 4:
      *reinterpret_cast<std::uint32_t*>(to) = *reinterpret_cast<const std::uint32_t*>(from);
      break;
    case 2:
      *reinterpret_cast<std::uint16_t*>(to) = *reinterpret_cast<const std::uint16_t*>(from);
      break;
    default:
      *to = *from;
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_pages(const Plane* planes, const PageCopy* copies) {
  const Plane& plane = planes[blockIdx.y];
  const PageCopy copy = copies[blockIdx.x];
  if (copy.source == copy.target) return;
  const Units units(plane);
  const int count = plane.page_size * plane.num_heads * units.per_row;
  for (int i = blockIdx.z * kThreads + threadIdx.x; i < count; i += gridDim.z * kThreads) {
    const int unit = i % units.per_row, token = i / units.per_row % plane.page_size;
    const int head = i / units.per_row / plane.page_size;
    const std::int64_t offset =
        token * plane.token_stride + head * plane.head_stride + unit * units.bytes;
    copy_unit(plane.data + copy.target * plane.page_stride + offset,
              plane.data + copy.source * plane.page_stride + offset, units.bytes);
  }
}

// A thread takes one unit of a slot, of all heads of one plane, through all moves: it alone reads
// and writes there, so that the moves follow one another without a word to other threads.
__global__ void __launch_bounds__(kThreads)
    move_slots(const Plane* planes, const TokenMove* moves, std::int64_t num_moves) {
  const Plane& plane = planes[blockIdx.y];
  const Units units(plane);
  const int unit = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (unit >= plane.num_heads * units.per_row) return;
  std::byte* const base =
      plane.data + unit / units.per_row * plane.head_stride + unit % units.per_row * units.bytes;
  for (std::int64_t i = 0; i < num_moves; ++i) {
    const TokenMove move = moves[i];
    copy_unit(base + move.target_page * plane.page_stride + move.target_slot * plane.token_stride,
              base + move.source_page * plane.page_stride + move.source_slot * plane.token_stride,
              units.bytes);
  }
}

}  // namespace

void launch_copy_pages(const PageList& list, const Plane& sample, cudaStream_t stream) {
  const std::int64_t units =
      std::int64_t{sample.page_size} * sample.num_heads * Units(sample).per_row;
  const auto slices =
      static_cast<unsigned>(std::clamp<std::int64_t>(units / (2 * kThreads), 1, 64));
  const std::int64_t step = list.at_once ? list.num_copies : 1;
  for (std::int64_t i = 0; i < list.num_copies; i += step) {
    const dim3 grid(static_cast<unsigned>(step), static_cast<unsigned>(list.num_planes), slices);
    copy_pages<<<grid, kThreads, 0, stream>>>(list.planes, list.copies + i);
  }
  check_launch("copy_pages");
}

void launch_move_tokens(const MoveList& list, std::span<const Plane> planes, cudaStream_t stream) {
  int most = 0;
  for (const Plane& plane : planes) most = std::max(most, plane.num_heads * Units(plane).per_row);
  const dim3 grid(static_cast<unsigned>(ceil_div(most, kThreads)),
                  static_cast<unsigned>(list.num_planes));
  move_slots<<<grid, kThreads, 0, stream>>>(list.planes, list.moves, list.num_moves);
  check_launch("move_tokens");
}

}  // namespace seqattn
