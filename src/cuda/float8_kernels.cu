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

constexpr int kVectorElements = 8;  // that a thread takes at once
constexpr unsigned kWarpLanes = 32;
constexpr float kMaxFloat8 = 448, kLeastScale = 0x1p-126f;

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

// Of 8 bits: processors convert two elements at once.
template <bool kAligned>
struct Float8Vector : Vector<std::uint8_t, kAligned> {
  using Pair = __nv_fp8x2_storage_t;
  __device__ float2 pair(int i) const {
    const Pair bits = reinterpret_cast<const Pair*>(this->elements)[i];
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(bits, __NV_E4M3)));
  }
  __device__ void set_pair(int i, float2 x) {
    reinterpret_cast<Pair*>(this->elements)[i] =
        __nv_cvt_float2_to_fp8x2(x, __NV_SATFINITE, __NV_E4M3);
  }
};

// One vector of 8 bits as another type, times its scale.
template <class T, bool kAligned>
__device__ __forceinline__ void dequantise_vector(const std::byte* from, float scale,
                                                  std::byte* to) {
  Float8Vector<kAligned> bytes;
  bytes.load(from);
  Vector<T, kAligned> vector;
#pragma unroll
  for (int i = 0; i < kVectorElements; i += 2) {
    const float2 pair = bytes.pair(i / 2);
    from_float(pair.x * scale, vector.elements[i]);
    from_float(pair.y * scale, vector.elements[i + 1]);
  }
  vector.store(to);
}

// The largest magnitude of a vector, of the elements that are numbers.
__device__ inline float largest_of(const float (&elements)[kVectorElements]) {
  float largest = 0;
#pragma unroll
  for (const float x : elements) largest = fmaxf(largest, fabsf(x));
  return largest;
}
template <class T>
__device__ float largest_of(const T (&elements)[kVectorElements]) {  // two at once
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  const auto* const pairs = reinterpret_cast<const Pair*>(elements);
  Pair largest = __habs2(pairs[0]);
#pragma unroll
  for (int i = 1; i < kVectorElements / 2; ++i) largest = __hmax2(largest, __habs2(pairs[i]));
  return fmaxf(fmaxf(to_float(largest.x), to_float(largest.y)), 0.0f);  // 0: of no number
}
template <class T>
__device__ float largest_finite_of(const T (&elements)[kVectorElements]) {
  float largest = 0;
#pragma unroll
  for (const T x : elements) {
    const float magnitude = fabsf(to_float(x));
    if (magnitude < INFINITY) largest = fmaxf(largest, magnitude);
  }
  return largest;
}

// A head is the work of a power of 2 of lanes, side by side in a warp: they are a block's x. The
// warp's others are here too or have left: masks of a head's lanes alone take longer.
__device__ inline float largest_of_lanes(float x, int num_lanes) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    if (other < num_lanes) x = fmaxf(x, __shfl_xor_sync(~0u, x, other));
  }
  return x;
}

// A head's elements to 8 bits; its parts are the lanes that share it. kLong: a lane may have more
// than one vector.
template <class T, bool kAligned, bool kLong>
struct QuantisePart : MoveInOne {
  static constexpr int kTokensPerThread = 16;  // measured, docs/performance.md
  static constexpr bool kHasScales = true;
  __device__ static void store(const TokenPart& part, Value) {
    const TokenSide& side = part.side;
    const int num_lanes = side.parts_per_head;
    using Elements = Vector<T, kAligned>;
    Elements own;  // the first of the lane's vectors
    const int first_own = part.index * kVectorElements;
    if (first_own < side.head_dim) own.load(part.element + first_own * sizeof(T));
    const auto for_each_vector = [&](const auto& body) {
      if (first_own < side.head_dim) body(first_own, own);
      if constexpr (!kLong) return;
      const int step = num_lanes * kVectorElements;
      for (int first = first_own + step; first < side.head_dim; first += step) {
        Elements vector;
        vector.load(part.element + first * sizeof(T));
        body(first, vector);
      }
    };
    const auto largest_by = [&](const auto& largest_of_vector) {
      float largest = 0;
      for_each_vector([&](int, const Elements& vector) {
        largest = fmaxf(largest, largest_of_vector(vector.elements));
      });
      return largest_of_lanes(largest, num_lanes);
    };
    float scale;
    if (side.scales.per_token) {
      float largest = largest_by([](const auto& elements) { return largest_of(elements); });
      if (__any_sync(~0u, largest == INFINITY)) {  // which saturates, and scales nothing
        largest = largest_by([](const auto& elements) { return largest_finite_of(elements); });
      }
      scale = fmaxf(largest / kMaxFloat8, kLeastScale);
      if (part.index == 0) *part.scale = scale;
    } else {
      scale = *part.scale;
    }
    const float factor = 1 / scale;
    for_each_vector([&](int first, const Elements& vector) {
      Float8Vector<kAligned> bytes;
#pragma unroll
      for (int i = 0; i < kVectorElements; i += 2) {
        bytes.set_pair(i / 2, {to_float(vector.elements[i]) * factor,
                               to_float(vector.elements[i + 1]) * factor});
      }
      bytes.store(part.slot + first);
    });
  }
};

template <class T, bool kAligned, bool kLong>
struct DequantisePart : MoveInOne {
  static constexpr int kTokensPerThread = 16;
  static constexpr bool kHasScales = true;
  __device__ static void store(const TokenPart& part, Value) {
    const TokenSide& side = part.side;
    const float scale = *part.scale;
    for (int first = part.index * kVectorElements; first < side.head_dim;
         first += side.parts_per_head * kVectorElements) {
      dequantise_vector<T, kAligned>(part.slot + first, scale, part.element + first * sizeof(T));
      if constexpr (!kLong) return;
    }
  }
};

// Keys and values, as they are and to be.
struct WideningPlanes {
  Plane from[2], to[2];
};

template <class T>
__global__ void __launch_bounds__(kTokenThreads)
    widen_pages(WideningPlanes planes, const std::int32_t* pages) {
  const Plane &from = planes.from[blockIdx.y], &to = planes.to[blockIdx.y];
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
    const float scale =
        from.scales.data[page * from.scales.page_stride + token * from.scales.token_stride +
                         head * from.scales.head_stride];
    dequantise_vector<T, true>(bytes, scale, copy);
  }
}

// Kernels by the type of the tensor: float32, float16, bfloat16.
struct Kernels {
  TokenKernel of_floats, of_halves, of_bfloats;
  TokenKernel of(DType dtype) const {
    return dtype == DType::kFloat32 ? of_floats : dtype == DType::kFloat16 ? of_halves : of_bfloats;
  }
};

template <template <class T, bool kAligned, bool kLong> class Move, bool kAligned, bool kLong>
Kernels kernels() {
  return {kernel_of<Move<float, kAligned, kLong>>(), kernel_of<Move<__half, kAligned, kLong>>(),
          kernel_of<Move<__nv_bfloat16, kAligned, kLong>>()};
}

template <template <class T, bool kAligned, bool kLong> class Move>
void launch(std::span<const Plane> planes, std::span<const TensorView> tensors,
            const TokenTable& table, cudaStream_t stream) {
  const int longest = std::max(planes[0].head_dim, planes[1].head_dim);
  const auto vectors = static_cast<unsigned>(longest / kVectorElements);
  const int num_lanes = static_cast<int>(std::min(std::bit_ceil(vectors), kWarpLanes));
  const TokenSides both = make_sides(planes, tensors, [&](const Plane&) { return num_lanes; });
  const Kernels of_type = !both.is_aligned()     ? kernels<Move, false, true>()
                          : vectors > kWarpLanes ? kernels<Move, true, true>()
                                                 : kernels<Move, true, false>();
  if (tensors[0].dtype == tensors[1].dtype) {
    launch_tokens(of_type.of(tensors[0].dtype), both, table, stream);
    return;
  }
  for (const int i : {0, 1}) {
    launch_tokens(of_type.of(tensors[static_cast<std::size_t>(i)].dtype), both.only(i), table,
                  stream);
  }
}

}  // namespace

void launch_quantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     const TokenTable& table, cudaStream_t stream) {
  launch<QuantisePart>(planes, tensors, table, stream);
}

void launch_dequantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                       const TokenTable& table, cudaStream_t stream) {
  launch<DequantisePart>(planes, tensors, table, stream);
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
      WideningPlanes{{planes[0], planes[1]}, {copies[0], copies[1]}}, pages);
  check_launch("widen_pages");
}

}  // namespace seqattn
