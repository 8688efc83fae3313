#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "cuda_check.h"
#include "float8_kernels.h"
#include "token_kernels.h"
#include "token_table.cuh"

namespace seqattn {
namespace {

constexpr int kPartElements = 8;  // of a conversion

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

// Bytes as they are: a part is one Unit.
template <class Unit, bool kWrite>
__global__ void __launch_bounds__(kTokenThreads)
    move_units(TokenSides sides, TokenTable table, int tokens_per_block) {
  for_each_part(
      sides, table, tokens_per_block,
      [](const TokenSide&, TokenPlace, int, int part, std::byte* slot, std::byte* element) {
        const std::byte* const from = kWrite ? element : slot;
        std::byte* const to = kWrite ? slot : element;
        reinterpret_cast<Unit*>(to)[part] = reinterpret_cast<const Unit*>(from)[part];
      });
}

// Between elements of a plane and float32: a part is 8 of them.
template <class T, bool kWrite>
__global__ void __launch_bounds__(kTokenThreads)
    convert_tokens(TokenSides sides, TokenTable table, int tokens_per_block) {
  for_each_part(
      sides, table, tokens_per_block,
      [](const TokenSide&, TokenPlace, int, int part, std::byte* slot, std::byte* element) {
        T* const elements = reinterpret_cast<T*>(slot) + part * kPartElements;
        float* const floats = reinterpret_cast<float*>(element) + part * kPartElements;
#pragma unroll
        for (int k = 0; k < kPartElements; ++k) {
          if constexpr (kWrite) {
            elements[k] = from_float<T>(floats[k]);
          } else {
            floats[k] = to_float(elements[k]);
          }
        }
      });
}

using Kernel = void (*)(TokenSides, TokenTable, int);

void launch_sides(Kernel kernel, const TokenSides& sides, const TokenTable& table,
                  cudaStream_t stream) {
  const TokenGrid grid(sides, table.num_tokens);
  kernel<<<grid.blocks, kTokenThreads, 0, stream>>>(sides, table, grid.tokens_per_block);
  check_launch("write_tokens or read_tokens");
}

// The largest unit that all addresses and rows are multiples of.
template <bool kWrite>
void launch_units(std::span<const Plane> planes, std::span<const TensorView> tensors,
                  const TokenTable& table, cudaStream_t stream) {
  const auto with_units = [&](std::int64_t unit) {
    return make_sides(planes, tensors, [unit](const Plane& plane) {
      return static_cast<int>(plane.head_dim * size_of(plane.dtype) / unit);
    });
  };
  const auto rows_are_whole = [&](std::int64_t unit) {
    return std::all_of(planes.begin(), planes.end(), [unit](const Plane& plane) {
      return plane.head_dim * size_of(plane.dtype) % unit == 0;
    });
  };
  const TokenSides vectors = with_units(kVectorBytes);
  if (rows_are_whole(kVectorBytes) && vectors.is_aligned()) {
    launch_sides(move_units<uint4, kWrite>, vectors, table, stream);
    return;
  }
  const std::int64_t element = size_of(planes[0].dtype);
  const Kernel kernel = element == 4   ? move_units<std::uint32_t, kWrite>
                        : element == 2 ? move_units<std::uint16_t, kWrite>
                                       : move_units<std::uint8_t, kWrite>;
  launch_sides(kernel, with_units(element), table, stream);
}

template <bool kWrite>
void launch(std::span<const Plane> planes, std::span<const TensorView> tensors,
            const TokenTable& table, cudaStream_t stream) {
  if (table.num_tokens == 0) return;
  if (planes[0].scales.data != nullptr) {
    kWrite ? launch_quantise(planes, tensors, table, stream)
           : launch_dequantise(planes, tensors, table, stream);
    return;
  }
  const bool converts[] = {tensors[0].dtype != planes[0].dtype,
                           tensors[1].dtype != planes[1].dtype};
  if (!converts[0] && !converts[1]) {
    launch_units<kWrite>(planes, tensors, table, stream);
    return;
  }
  const Kernel convert = planes[0].dtype == DType::kFloat16 ? convert_tokens<__half, kWrite>
                                                            : convert_tokens<__nv_bfloat16, kWrite>;
  TokenSides sides = make_sides(planes, tensors,
                                [](const Plane& plane) { return plane.head_dim / kPartElements; });
  for (int i = 0; i < 2; ++i) {
    if (!converts[i]) sides.parts_per_token[i] = 0;
  }
  launch_sides(convert, sides, table, stream);
  if (converts[0] && converts[1]) return;
  // The other side is of the cache's own type.
  TokenSides units = make_sides(planes, tensors, [](const Plane& plane) { return plane.head_dim; });
  for (int i = 0; i < 2; ++i) {
    if (converts[i]) units.parts_per_token[i] = 0;
  }
  launch_sides(move_units<std::uint16_t, kWrite>, units, table, stream);
}

}  // namespace

void launch_write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                         const TokenTable& table, cudaStream_t stream) {
  launch<true>(planes, tensors, table, stream);
}

void launch_read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                        const TokenTable& table, cudaStream_t stream) {
  launch<false>(planes, tensors, table, stream);
}

}  // namespace seqattn
