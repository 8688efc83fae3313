#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend.h"
#include "cuda_check.h"
#include "token_kernels.h"

// How kernels that move tokens between planes and tensors find what a thread has to move.
namespace seqattn {

inline constexpr int kTokenThreads = 256;  // a block
inline constexpr int kMostTokens = 256;    // of a block
inline constexpr int kVectorBytes = 16;

// One plane and the tensor that it exchanges tokens with. Strides in bytes.
struct TokenSide {
  std::byte* plane;
  std::int64_t page_stride, token_stride, head_stride;
  std::byte* tensor;
  std::int64_t tensor_token_stride, tensor_head_stride;
  int head_dim;
  int parts_per_head;  // that threads take one by one
  Plane::Scales scales;

  bool is_aligned() const {  // to vectors
    return (reinterpret_cast<std::uintptr_t>(plane) | reinterpret_cast<std::uintptr_t>(tensor) |
            static_cast<std::uintptr_t>(page_stride | token_stride | head_stride |
                                        tensor_token_stride | tensor_head_stride)) %
               kVectorBytes ==
           0;
  }
};

struct TokenSides {
  TokenSide side[2];
  int num_sides;  // 1: the first alone
  int page_size, num_heads;
  bool is_aligned() const { return side[0].is_aligned() && side[1].is_aligned(); }
  TokenSides only(int which) const {
    TokenSides one = *this;
    one.side[0] = side[which];
    one.num_sides = 1;
    return one;
  }
};

// Where a token lies: a page, and a slot of it.
struct TokenPlace {
  std::int64_t page;
  int slot;
};

#ifdef __CUDACC__

__device__ inline std::int32_t row_of(const TokenTable& table, std::int32_t token) {
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

__device__ inline TokenPlace place_of(const TokenTable& table, std::int32_t token, int page_size) {
  const std::int32_t row = row_of(table, token);
  const std::int32_t position = table.begin[row] + (token - table.indptr[row]);
  const std::int32_t page = position / page_size;
  return {table.page_indices[table.page_begin[row] + page], position - page * page_size};
}

// A part of a head of one token. Of `place` and `slot` nothing is known before the lookup.
struct TokenPart {
  const TokenSide& side;
  int head, index;     // of the head's parts
  std::byte* element;  // the head in the tensor
  TokenPlace place;
  std::byte* slot;  // the head in the plane
};

__device__ inline int thread_of_block() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// For a Move whose `store` does it all.
struct MoveInOne {
  struct Value {};
  static constexpr int kBatch = 1;
  static constexpr bool kLoadsEarly = false;
  __device__ static Value load(const TokenPart&) { return {}; }
};

// Moves what this thread has of the block's tokens. A block's threads are [sides][tokens at once]
// [heads][parts of a head], the grid is [heads][tokens]: short blocks are quickest, and divide
// nothing to know what their threads have. Of its side and head (none behind the last head) a
// thread takes one part after the other, and of each its tokens, kBatch at a time. A Move says
//   Value load(const TokenPart&)                what is to be moved
//   void store(const TokenPart&, const Value&)  does the rest
//   kBatch                                      how many are loaded before the first is stored
//   kLoadsEarly                                 whether `load` does without the lookup; then the
//                                               first loads and the lookups wait for memory
//                                               together
template <class Move>
__device__ __forceinline__ void move_parts(const TokenSides& sides, const TokenTable& table,
                                           int tokens_per_block) {
  __shared__ TokenPlace places[kMostTokens];
  const auto num_tokens = static_cast<int>(
      table.num_tokens_device != nullptr ? *table.num_tokens_device : table.num_tokens);
  const int first = static_cast<int>(blockIdx.x) * tokens_per_block;
  if (first >= num_tokens) return;
  const int count = min(tokens_per_block, num_tokens - first);
  const int at_once = static_cast<int>(blockDim.z) >> (sides.num_sides - 1);
  const bool is_second = static_cast<int>(threadIdx.z) >= at_once;
  const TokenSide& side = sides.side[is_second ? 1 : 0];
  const int first_token = static_cast<int>(threadIdx.z) - (is_second ? at_once : 0);
  const int head = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const bool has_any = head < sides.num_heads && first_token < count;
  std::byte* const tensor =
      side.tensor + first * side.tensor_token_stride + head * side.tensor_head_stride;
  std::byte* const plane = side.plane + head * side.head_stride;

  using Value = typename Move::Value;
  Value values[Move::kBatch];
  const auto for_batch = [&](int index, int begin, bool has_places, const auto& body) {
#pragma unroll
    for (int i = 0; i < Move::kBatch; ++i) {
      const int token = begin + i * at_once;
      if (token >= count) break;
      TokenPart part{side, head, index, tensor + token * side.tensor_token_stride, {}, nullptr};
      if (has_places) {
        part.place = places[token];
        part.slot =
            plane + part.place.page * side.page_stride + part.place.slot * side.token_stride;
      }
      body(part, values[i]);
    }
  };
  const auto load = [](const TokenPart& part, Value& value) { value = Move::load(part); };
  const auto store = [](const TokenPart& part, const Value& value) { Move::store(part, value); };

  const int first_part = static_cast<int>(threadIdx.x);
  const bool loads_early = Move::kLoadsEarly && has_any && first_part < side.parts_per_head;
  if (loads_early) for_batch(first_part, first_token, false, load);
  const auto threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
#pragma unroll 1
  for (int i = thread_of_block(); i < count; i += threads) {
    places[i] = place_of(table, first + i, sides.page_size);
  }
  __syncthreads();
  if (!has_any) return;
  bool is_loaded = loads_early;
  for (int index = first_part; index < side.parts_per_head; index += static_cast<int>(blockDim.x)) {
    for (int begin = first_token; begin < count; begin += at_once * Move::kBatch) {
      if (!is_loaded) for_batch(index, begin, true, load);
      for_batch(index, begin, true, store);
      is_loaded = false;
    }
  }
}

#endif

// Keys and values of a launch; parts_of(plane) says how many parts a head has.
template <class PartsOf>
TokenSides make_sides(std::span<const Plane> planes, std::span<const TensorView> tensors,
                      const PartsOf& parts_of) {
  TokenSides sides{};
  sides.num_sides = 2;
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
                     plane.head_dim,
                     parts_of(plane),
                     plane.scales};
  }
  return sides;
}

using TokenKernel = void (*)(TokenSides, TokenTable, int tokens_per_block);

#ifdef __CUDACC__

// A thread takes `tokens_per_thread` tokens where that leaves blocks for all processors, else
// fewer, but no less than two: blocks are work of their own.
inline void launch_tokens(TokenKernel kernel, const TokenSides& sides, const TokenTable& table,
                          int tokens_per_thread, cudaStream_t stream) {
  constexpr int kManyBlocks = 1024, kFewTokensPerThread = 2;
  constexpr int kMostBlockDepth = 64;  // of any kernel
  const int threads = kTokenThreads / sides.num_sides;
  int most_parts = 0;
  for (int i = 0; i < sides.num_sides; ++i) {
    most_parts = std::max(most_parts, sides.side[i].parts_per_head);
  }
  const int parts = std::min(most_parts, threads);
  const int heads = std::min(sides.num_heads, threads / parts);
  const int at_once = std::min({threads / (parts * heads), kMostBlockDepth / sides.num_sides,
                                kMostTokens / tokens_per_thread});
  const int head_blocks = (sides.num_heads + heads - 1) / heads;
  const auto tokens_per_block = static_cast<int>(
      std::clamp<std::int64_t>(table.num_tokens * head_blocks / kManyBlocks,
                               kFewTokensPerThread * at_once, tokens_per_thread * at_once));
  const dim3 grid(
      static_cast<unsigned>((table.num_tokens + tokens_per_block - 1) / tokens_per_block),
      static_cast<unsigned>(head_blocks));
  const dim3 block(static_cast<unsigned>(parts), static_cast<unsigned>(heads),
                   static_cast<unsigned>(at_once * sides.num_sides));
  kernel<<<grid, block, 0, stream>>>(sides, table, tokens_per_block);
  check_launch("write_tokens or read_tokens");
}

#endif

}  // namespace seqattn
