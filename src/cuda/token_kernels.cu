#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda_check.h"
#include "token_kernels.h"

namespace seqattn {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

// One plane and the tensor that it exchanges tokens with. Strides in bytes.
struct Side {
  std::byte* plane;
  std::int64_t page_stride, token_stride, head_stride;
  std::byte* tensor;
  std::int64_t tensor_token_stride, tensor_head_stride;
  int vectors_per_head;
};

struct Sides {
  Side side[2];
  int page_size;
  int num_heads;
  int vectors_per_token[2];
};

__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ std::int32_t row_of(const TokenTable& table, std::int32_t token) {
  // Decoding: a token a row, found without the loads of a search, which wait for each other.
  if (token < table.num_rows && table.indptr[token] == token && table.indptr[token + 1] > token) {
    return token;
  }
  std::int32_t low = 0, high = table.num_rows;  // indptr[low] <= token < indptr[high]
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (table.indptr[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// A block takes whole tokens, a thread one vector of them at a time. kAligned: vectors of 16 bytes
// (32 for float32 tensors); otherwise element by element.
template <class T, bool kFloatTensor, bool kWrite, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    move_tokens(Sides sides, TokenTable table, int tokens_per_block) {
  const std::int64_t num_tokens =
      table.num_tokens_device != nullptr ? *table.num_tokens_device : table.num_tokens;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tokens_per_block;
  const int per_token = sides.vectors_per_token[0] + sides.vectors_per_token[1];
  for (int i = threadIdx.x; i < tokens_per_block * per_token; i += kThreads) {
    const std::int64_t token = first + i / per_token;
    if (token >= num_tokens) return;
    const int vector = i % per_token;
    const int which = vector >= sides.vectors_per_token[0] ? 1 : 0;
    const int in_side = which == 0 ? vector : vector - sides.vectors_per_token[0];
    const Side& side = sides.side[which];
    const int head = in_side / side.vectors_per_head;
    const int begin = in_side % side.vectors_per_head * 8;

    const std::int32_t row = row_of(table, static_cast<std::int32_t>(token));
    const std::int64_t position = table.begin[row] + token - table.indptr[row];
    const std::int64_t page =
        table.page_indices[table.page_begin[row] + position / sides.page_size];
    T* slot = reinterpret_cast<T*>(side.plane + page * side.page_stride +
                                   position % sides.page_size * side.token_stride +
                                   head * side.head_stride) +
              begin;
    std::byte* other =
        side.tensor + token * side.tensor_token_stride + head * side.tensor_head_stride;
    if constexpr (kFloatTensor) {
      float* element = reinterpret_cast<float*>(other) + begin;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if constexpr (kWrite) {
          slot[k] = from_float<T>(element[k]);
        } else {
          element[k] = to_float(slot[k]);
        }
      }
    } else {
      T* element = reinterpret_cast<T*>(other) + begin;
      const T* from = kWrite ? element : slot;
      T* to = kWrite ? slot : element;
      if constexpr (kAligned) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k) to[k] = from[k];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_pages(const Plane* planes, const PageCopy* copies) {
  const Plane& plane = planes[blockIdx.y];
  const PageCopy copy = copies[blockIdx.x];
  if (copy.source == copy.target) return;
  const int per_row = plane.head_dim * 2 / kVectorBytes;
  const int count = plane.page_size * plane.num_heads * per_row;
  const bool aligned = (reinterpret_cast<std::uintptr_t>(plane.data) | plane.page_stride |
                        plane.token_stride | plane.head_stride) %
                           kVectorBytes ==
                       0;
  for (int i = blockIdx.z * kThreads + threadIdx.x; i < count; i += gridDim.z * kThreads) {
    const int vector = i % per_row, token = i / per_row % plane.page_size;
    const int head = i / per_row / plane.page_size;
    const std::int64_t offset =
        token * plane.token_stride + head * plane.head_stride + vector * kVectorBytes;
    const std::byte* from = plane.data + copy.source * plane.page_stride + offset;
    std::byte* to = plane.data + copy.target * plane.page_stride + offset;
    if (aligned) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int k = 0; k < kVectorBytes; k += 2) {
        *reinterpret_cast<std::uint16_t*>(to + k) =
            *reinterpret_cast<const std::uint16_t*>(from + k);
      }
    }
  }
}

// A thread takes one vector of a slot, of all heads of one plane, through all moves: it alone reads
// and writes there, so that the moves follow one another without a word to other threads.
__global__ void __launch_bounds__(kThreads)
    move_slots(const Plane* planes, const TokenMove* moves, std::int64_t num_moves) {
  const Plane& plane = planes[blockIdx.y];
  const int per_row = plane.head_dim * 2 / kVectorBytes;
  const int vector = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (vector >= plane.num_heads * per_row) return;
  const bool aligned = (reinterpret_cast<std::uintptr_t>(plane.data) | plane.page_stride |
                        plane.token_stride | plane.head_stride) %
                           kVectorBytes ==
                       0;
  std::byte* const base =
      plane.data + vector / per_row * plane.head_stride + vector % per_row * kVectorBytes;
  for (std::int64_t i = 0; i < num_moves; ++i) {
    const TokenMove move = moves[i];
    const std::byte* from =
        base + move.source_page * plane.page_stride + move.source_slot * plane.token_stride;
    std::byte* to =
        base + move.target_page * plane.page_stride + move.target_slot * plane.token_stride;
    if (aligned) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int k = 0; k < kVectorBytes; k += 2) {
        *reinterpret_cast<std::uint16_t*>(to + k) =
            *reinterpret_cast<const std::uint16_t*>(from + k);
      }
    }
  }
}

bool is_aligned(const Side& side) {
  return (reinterpret_cast<std::uintptr_t>(side.plane) |
          reinterpret_cast<std::uintptr_t>(side.tensor) |
          static_cast<std::uintptr_t>(side.page_stride | side.token_stride | side.head_stride |
                                      side.tensor_token_stride | side.tensor_head_stride)) %
             kVectorBytes ==
         0;
}

Sides make_sides(std::span<const Plane> planes, std::span<const TensorView> tensors) {
  Sides sides{};
  sides.page_size = planes[0].page_size;
  sides.num_heads = planes[0].num_heads;
  for (std::size_t i = 0; i < 2; ++i) {
    const Plane& plane = planes[i];
    const TensorView& tensor = tensors[i];
    const std::int64_t bytes = size_of(tensor.dtype);
    sides.side[i] = {plane.data,
                     plane.page_stride,
                     plane.token_stride,
                     plane.head_stride,
                     static_cast<std::byte*>(tensor.data),
                     tensor.strides[0] * bytes,
                     tensor.strides[1] * bytes,
                     plane.head_dim / 8};
    sides.vectors_per_token[i] = plane.num_heads * sides.side[i].vectors_per_head;
  }
  return sides;
}

template <class T, bool kWrite>
void launch_sides(const Sides& sides, bool is_float, const TokenTable& table, cudaStream_t stream) {
  const int per_token = sides.vectors_per_token[0] + sides.vectors_per_token[1];
  const int tokens_per_block = std::max(1, 2 * kThreads / per_token);
  const auto blocks =
      static_cast<unsigned>((table.num_tokens + tokens_per_block - 1) / tokens_per_block);
  const auto kernel = is_float ? move_tokens<T, true, kWrite, true>
                      : is_aligned(sides.side[0]) && is_aligned(sides.side[1])
                          ? move_tokens<T, false, kWrite, true>
                          : move_tokens<T, false, kWrite, false>;
  kernel<<<blocks, kThreads, 0, stream>>>(sides, table, tokens_per_block);
  check_launch(kWrite ? "write_tokens" : "read_tokens");
}

template <class T, bool kWrite>
void launch(std::span<const Plane> planes, std::span<const TensorView> tensors,
            const TokenTable& table, cudaStream_t stream) {
  const Sides sides = make_sides(planes, tensors);
  const bool is_float[] = {tensors[0].dtype == DType::kFloat32,
                           tensors[1].dtype == DType::kFloat32};
  if (is_float[0] == is_float[1]) {
    launch_sides<T, kWrite>(sides, is_float[0], table, stream);
    return;
  }
  for (int i = 0; i < 2; ++i) {
    Sides one = sides;
    one.vectors_per_token[1 - i] = 0;
    launch_sides<T, kWrite>(one, is_float[i], table, stream);
  }
}

}  // namespace

void launch_write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                         const TokenTable& table, cudaStream_t stream) {
  if (table.num_tokens == 0) return;
  planes[0].dtype == DType::kFloat16 ? launch<__half, true>(planes, tensors, table, stream)
                                     : launch<__nv_bfloat16, true>(planes, tensors, table, stream);
}

void launch_read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                        const TokenTable& table, cudaStream_t stream) {
  if (table.num_tokens == 0) return;
  planes[0].dtype == DType::kFloat16 ? launch<__half, false>(planes, tensors, table, stream)
                                     : launch<__nv_bfloat16, false>(planes, tensors, table, stream);
}

void launch_copy_pages(const PageList& list, const Plane& sample, cudaStream_t stream) {
  const std::int64_t vectors =
      std::int64_t{sample.page_size} * sample.num_heads * sample.head_dim * 2 / kVectorBytes;
  const auto slices =
      static_cast<unsigned>(std::clamp<std::int64_t>(vectors / (2 * kThreads), 1, 64));
  const std::int64_t step = list.at_once ? list.num_copies : 1;
  for (std::int64_t i = 0; i < list.num_copies; i += step) {
    const dim3 grid(static_cast<unsigned>(step), static_cast<unsigned>(list.num_planes), slices);
    copy_pages<<<grid, kThreads, 0, stream>>>(list.planes, list.copies + i);
  }
  check_launch("copy_pages");
}

void launch_move_tokens(const MoveList& list, std::span<const Plane> planes, cudaStream_t stream) {
  int most = 0;
  for (const Plane& plane : planes) {
    most = std::max(most, plane.num_heads * (plane.head_dim * 2 / kVectorBytes));
  }
  const dim3 grid(static_cast<unsigned>((most + kThreads - 1) / kThreads),
                  static_cast<unsigned>(list.num_planes));
  move_slots<<<grid, kThreads, 0, stream>>>(list.planes, list.moves, list.num_moves);
  check_launch("move_tokens");
}

}  // namespace seqattn
