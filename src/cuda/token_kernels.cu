#include <algorithm>
#include <cstdint>

#include "elements.cuh"
#include "float8_kernels.h"
#include "token_kernels.h"
#include "token_table.cuh"

namespace seqattn {
namespace {

constexpr int kPartElements = 8;  // of a conversion

// Bytes as they are: a part is one Unit. Its figures are measured, docs/performance.md.
template <class Unit, bool kWrite>
struct MoveUnit {
  using Value = Unit;
  static constexpr int kBatch = 2, kTokensPerThread = 6;
  static constexpr int kSidesPerBlock = 2, kBlocksPerProcessor = 5;
  static constexpr bool kLoadsEarly = kWrite, kHasScales = false;
  __device__ static Unit load(const TokenPart& part) {
    return reinterpret_cast<const Unit*>(kWrite ? part.element : part.slot)[part.index];
  }
  __device__ static void store(const TokenPart& part, const Unit& unit) {
    reinterpret_cast<Unit*>(kWrite ? part.slot : part.element)[part.index] = unit;
  }
};

// Between elements of a plane and float32: a part is 8 of them.
template <class T, bool kWrite>
struct ConvertPart : MoveInOne {
  static constexpr int kTokensPerThread = 8;
  __device__ static void store(const TokenPart& part, Value) {
    T* const elements = reinterpret_cast<T*>(part.slot) + part.index * kPartElements;
    float* const floats = reinterpret_cast<float*>(part.element) + part.index * kPartElements;
#pragma unroll
    for (int k = 0; k < kPartElements; ++k) {
      if constexpr (kWrite) {
        from_float(floats[k], elements[k]);
      } else {
        floats[k] = to_float(elements[k]);
      }
    }
  }
};

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
    launch_tokens(kernel_of<MoveUnit<uint4, kWrite>>(), vectors, table, stream);
    return;
  }
  const std::int64_t element = size_of(planes[0].dtype);
  const TokenKernel kernel = element == 4   ? kernel_of<MoveUnit<std::uint32_t, kWrite>>()
                             : element == 2 ? kernel_of<MoveUnit<std::uint16_t, kWrite>>()
                                            : kernel_of<MoveUnit<std::uint8_t, kWrite>>();
  launch_tokens(kernel, with_units(element), table, stream);
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
  const TokenKernel convert = planes[0].dtype == DType::kFloat16
                                  ? kernel_of<ConvertPart<__half, kWrite>>()
                                  : kernel_of<ConvertPart<__nv_bfloat16, kWrite>>();
  const TokenSides parts = make_sides(
      planes, tensors, [](const Plane& plane) { return plane.head_dim / kPartElements; });
  if (converts[0] && converts[1]) {
    launch_tokens(convert, parts, table, stream);
    return;
  }
  // One side is of the cache's own type.
  const TokenSides elements =
      make_sides(planes, tensors, [](const Plane& plane) { return plane.head_dim; });
  launch_tokens(convert, parts.only(converts[0] ? 0 : 1), table, stream);
  launch_tokens(kernel_of<MoveUnit<std::uint16_t, kWrite>>(), elements.only(converts[0] ? 1 : 0),
                table, stream);
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
