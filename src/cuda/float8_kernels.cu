#include <cuda_fp8.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_check.h"
#include "elements.cuh"
#include "float8_kernels.h"
#include "token_table.cuh"

namespace seqattn {
namespace {

constexpr int kVectorElements = 8;    // that a thread takes at once
constexpr int kTokensPerThread = 32;  // parts are more work here than a block
constexpr float kMaxFloat8 = 448, kLeastScale = 0x1p-126f;

__device__ inline float from_float8(std::uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}

// Elements of one head, by vectors. kAligned: to their whole size, up to 16 bytes.
template <class T, bool kAligned>
struct Vector {
  alignas(16) T elements[kVectorElements];
  static constexpr int kBytes = sizeof(T) * kVectorElements;
  using Unit = std::conditional_t<kBytes == 8, uint2, uint4>;

  __device__ void load(const std::byte* from) {
    if constexpr (kAligned) {
#pragma unroll
      for (unsigned i = 0; i < kBytes / sizeof(Unit); ++i) {
        reinterpret_cast<Unit*>(elements)[i] = reinterpret_cast<const Unit*>(from)[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i) elements[i] = reinterpret_cast<const T*>(from)[i];
    }
  }
  __device__ void store(std::byte* to) const {
    if constexpr (kAligned) {
#pragma unroll
      for (unsigned i = 0; i < kBytes / sizeof(Unit); ++i) {
        reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(elements)[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i) reinterpret_cast<T*>(to)[i] = elements[i];
    }
  }
};

__device__ inline float* scale_at(const Plane::Scales& scales, std::int64_t page, int slot,
                                  int head) {
  return scales.data + page * scales.page_stride + slot * scales.token_stride +
         head * scales.head_stride;
}

// One vector of 8 bits as another type, times its scale.
template <class T, bool kAligned>
__device__ __forceinline__ void dequantise_vector(const std::byte* from, float scale,
                                                  std::byte* to) {
  Vector<std::uint8_t, kAligned> bytes;
  bytes.load(from);
  Vector<T, kAligned> vector;
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    from_float(from_float8(bytes.elements[i]) * scale, vector.elements[i]);
  }
  vector.store(to);
}

// A head is the work of a power of 2 of lanes, side by side in a warp: they are a block's x.
__device__ inline float largest_of_lanes(float x, int num_lanes) {
  const int lane = thread_of_block() & 31;
  const unsigned own = num_lanes == 32 ? ~0u : ((1u << num_lanes) - 1) << (lane & -num_lanes);
  for (int other = num_lanes / 2; other > 0; other /= 2) {
    x = fmaxf(x, __shfl_xor_sync(own, x, other));
  }
  return x;
}

// A head's elements to 8 bits; its parts are the lanes that share it.
template <class T, bool kAligned>
struct QuantisePart : MoveInOne {
  __device__ static void store(const TokenPart& part, Value) {
    const TokenSide& side = part.side;
    const int num_lanes = side.parts_per_head;
    const auto for_each_vector = [&](const auto& body) {
      for (int first = part.index * kVectorElements; first < side.head_dim;
           first += num_lanes * kVectorElements) {
        Vector<T, kAligned> vector;
        vector.load(part.element + first * sizeof(T));
        body(first, vector);
      }
    };
    float* const stored = scale_at(side.scales, part.place.page, part.place.slot, part.head);
    float scale;
    if (side.scales.per_token) {
      float largest = 0;
      for_each_vector([&](int, const Vector<T, kAligned>& vector) {
#pragma unroll
        for (const T x : vector.elements) {
          const float magnitude = fabsf(to_float(x));
          if (magnitude < INFINITY) largest = fmaxf(largest, magnitude);
        }
      });
      largest = largest_of_lanes(largest, num_lanes);
      scale = fmaxf(largest / kMaxFloat8, kLeastScale);
      if (part.index == 0) *stored = scale;
    } else {
      scale = *stored;
    }
    const float factor = 1 / scale;
    for_each_vector([&](int first, const Vector<T, kAligned>& vector) {
      Vector<std::uint8_t, kAligned> bytes;
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i) {
        bytes.elements[i] =
            __nv_cvt_float_to_fp8(to_float(vector.elements[i]) * factor, __NV_SATFINITE, __NV_E4M3);
      }
      bytes.store(part.slot + first);
    });
  }
};

template <class T, bool kAligned>
struct DequantisePart : MoveInOne {
  __device__ static void store(const TokenPart& part, Value) {
    const TokenSide& side = part.side;
    const float scale = *scale_at(side.scales, part.place.page, part.place.slot, part.head);
    for (int first = part.index * kVectorElements; first < side.head_dim;
         first += side.parts_per_head * kVectorElements) {
      dequantise_vector<T, kAligned>(part.slot + first, scale, part.element + first * sizeof(T));
    }
  }
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kTokenThreads)
    quantise(TokenSides sides, TokenTable table, int tokens_per_block) {
  move_parts<QuantisePart<T, kAligned>>(sides, table, tokens_per_block);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kTokenThreads)
    dequantise(TokenSides sides, TokenTable table, int tokens_per_block) {
  move_parts<DequantisePart<T, kAligned>>(sides, table, tokens_per_block);
}

template <class T>
__global__ void __launch_bounds__(kTokenThreads)
    widen_pages(Plane keys, Plane values, Plane key_copy, Plane value_copy,
                const std::int32_t* pages) {
  const Plane& from = blockIdx.y == 0 ? keys : values;
  const Plane& to = blockIdx.y == 0 ? key_copy : value_copy;
  const std::int64_t page = pages[blockIdx.x];
  const int per_head = from.head_dim / kVectorElements;
  const int count = from.page_size * from.num_heads * per_head;
  for (int i = blockIdx.z * kTokenThreads + threadIdx.x; i < count;
       i += gridDim.z * kTokenThreads) {
    const int first = i % per_head * kVectorElements;
    const int head = i / per_head % from.num_heads, token = i / per_head / from.num_heads;
    const std::byte* const bytes = from.data + page * from.page_stride + token * from.token_stride +
                                   head * from.head_stride + first;
    std::byte* const copy = to.data + blockIdx.x * to.page_stride + token * to.token_stride +
                            head * to.head_stride + first * sizeof(T);
    dequantise_vector<T, true>(bytes, *scale_at(from.scales, page, token, head), copy);
  }
}

// Kernels by the type of the tensor: float32, float16, bfloat16.
struct Kernels {
  TokenKernel of_floats, of_halves, of_bfloats;
  TokenKernel of(DType dtype) const {
    return dtype == DType::kFloat32 ? of_floats : dtype == DType::kFloat16 ? of_halves : of_bfloats;
  }
};

void launch(const Kernels& aligned, const Kernels& unaligned, std::span<const Plane> planes,
            std::span<const TensorView> tensors, const TokenTable& table, cudaStream_t stream) {
  const int longest = std::max(planes[0].head_dim, planes[1].head_dim);
  const unsigned vectors = static_cast<unsigned>(longest / kVectorElements);
  const int num_lanes = static_cast<int>(std::min(std::bit_ceil(vectors), 32u));
  const TokenSides both = make_sides(planes, tensors, [&](const Plane&) { return num_lanes; });
  const Kernels& kernels = both.is_aligned() ? aligned : unaligned;
  if (tensors[0].dtype == tensors[1].dtype) {
    launch_tokens(kernels.of(tensors[0].dtype), both, table, kTokensPerThread, stream);
    return;
  }
  for (const int i : {0, 1}) {
    launch_tokens(kernels.of(tensors[static_cast<std::size_t>(i)].dtype), both.only(i), table,
                  kTokensPerThread, stream);
  }
}

}  // namespace

void launch_quantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     const TokenTable& table, cudaStream_t stream) {
  launch({quantise<float, true>, quantise<__half, true>, quantise<__nv_bfloat16, true>},
         {quantise<float, false>, quantise<__half, false>, quantise<__nv_bfloat16, false>}, planes,
         tensors, table, stream);
}

void launch_dequantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                       const TokenTable& table, cudaStream_t stream) {
  launch({dequantise<float, true>, dequantise<__half, true>, dequantise<__nv_bfloat16, true>},
         {dequantise<float, false>, dequantise<__half, false>, dequantise<__nv_bfloat16, false>},
         planes, tensors, table, stream);
}

void launch_widen_pages(std::span<const Plane> planes, std::span<const Plane> copies,
                        const std::int32_t* pages, std::int64_t num_pages, cudaStream_t stream) {
  if (num_pages == 0) return;
  const int vectors =
      planes[0].page_size * planes[0].num_heads * planes[0].head_dim / kVectorElements;
  const auto slices = static_cast<unsigned>(std::clamp(vectors / (2 * kTokenThreads), 1, 64));
  const auto kernel =
      copies[0].dtype == DType::kFloat16 ? widen_pages<__half> : widen_pages<__nv_bfloat16>;
  kernel<<<dim3(static_cast<unsigned>(num_pages), 2, slices), kTokenThreads, 0, stream>>>(
      planes[0], planes[1], copies[0], copies[1], pages);
  check_launch("widen_pages");
}

}  // namespace seqattn
