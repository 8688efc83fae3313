#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend.h"
#include "ceil_div.h"
#include "cuda_check.h"
#include "launch.h"
#include "overlap.cuh"
#include "token_kernels.h"

// The kernel that moves tokens between planes and tensors, by a Move that says what is done with
// each, and its launch.
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

// Where a token lies: how far into each plane, in bytes, and into its scales, in floats, where the
// Move has scales.
struct TokenPlace {
  std::int64_t offsets[2];
  std::int64_t scales[2];
};

// With what its Move (below) says of launches.
struct TokenKernel {
  void (*function)(TokenSides, TokenTable, int tokens_per_block);
  int tokens_per_thread, sides_per_block;
};

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

template <bool kHasScales>
__device__ TokenPlace place_of(const TokenSides& sides, const TokenTable& table,
                               std::int32_t token) {
  const std::int32_t row = row_of(table, token);
  const std::int32_t position = table.begin[row] + (token - table.indptr[row]);
  const std::int32_t in_row = position / sides.page_size;
  const std::int64_t page = table.page_indices[table.page_begin[row] + in_row];
  const int slot = position - in_row * sides.page_size;
  TokenPlace place;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const TokenSide& side = sides.side[i];
    place.offsets[i] = page * side.page_stride + slot * side.token_stride;
    if constexpr (kHasScales) {
      place.scales[i] = page * side.scales.page_stride + slot * side.scales.token_stride;
    }
  }
  return place;
}

// A part of a head of one token. Of `slot` and `scale` nothing is known before the lookup.
struct TokenPart {
  const TokenSide& side;
  int index;           // of the head's parts
  std::byte* element;  // the head in the tensor
  std::byte* slot;     // the head in the plane
  float* scale;        // the head's, for a Move that kHasScales
};

__device__ inline int thread_of_block() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// For a Move whose `store` does it all.
struct MoveInOne {
  struct Value {};
  static constexpr int kBatch = 1, kSidesPerBlock = 1, kBlocksPerProcessor = 8;
  static constexpr bool kLoadsEarly = false, kHasScales = false;
  __device__ static Value load(const TokenPart&) { return {}; }
};

// Blocks whose threads a processor holds: it has 2,048 of them, or 1,536.
#if defined(__CUDA_ARCH__) && \
    ((__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1100)
inline constexpr int kMostBlocksPerProcessor = 6;
#else
inline constexpr int kMostBlocksPerProcessor = 8;
#endif

// Moves tokens from tensors to planes or back. A block's threads are [sides][tokens at once][heads]
// [parts of a head], the grid is [parts][sides][heads][tokens]: short blocks are quickest, and
// divide nothing to know what their threads have. A thread has one part of a head of one side (none
// behind the last of these), and of it one token after the other, kBatch at a time. A Move says
//   Value load(const TokenPart&)                what is to be moved
//   void store(const TokenPart&, const Value&)  does the rest
//   kBatch                                      how many are loaded before the first is stored
//   kTokensPerThread                            where that leaves blocks for all processors
//   kSidesPerBlock                              2: a block moves keys and values
//   kBlocksPerProcessor                         that are to have registers
//   kHasScales                                  of its planes
//   kLoadsEarly                                 whether `load` does without the lookup; then the
//                                               first loads and the lookups wait for memory
//                                               together
template <class Move>
__global__ void __launch_bounds__(kTokenThreads,
                                  std::min(Move::kBlocksPerProcessor, kMostBlocksPerProcessor))
    exchange_tokens(TokenSides sides, TokenTable table, int tokens_per_block) {
  __shared__ TokenPlace places[kMostTokens];
  let_successor_start();
  wait_for_predecessor();
  const auto num_tokens = static_cast<int>(
      table.num_tokens_device != nullptr ? *table.num_tokens_device : table.num_tokens);
  const int first = static_cast<int>(blockIdx.x) * tokens_per_block;
  if (first >= num_tokens) return;
  const int count = min(tokens_per_block, num_tokens - first);

  // Two sides are a bit of the block's number, or halves of the block.
  constexpr bool kBothSides = Move::kSidesPerBlock == 2;
  const int two_sides = sides.num_sides - 1;        // 1, or 0: one
  const int side_bit = kBothSides ? 0 : two_sides;  // how wide it is
  const int at_once = static_cast<int>(blockDim.z) >> (two_sides - side_bit);
  const bool is_second = kBothSides && static_cast<int>(threadIdx.z) >= at_once;
  const int which = is_second ? 1 : static_cast<int>(blockIdx.z) & side_bit;
  const TokenSide& side = sides.side[which];
  const int head = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const int index = static_cast<int>((blockIdx.z >> side_bit) * blockDim.x + threadIdx.x);
  int token = static_cast<int>(threadIdx.z) - (is_second ? at_once : 0);
  const bool has_any = token < count && head < sides.num_heads && index < side.parts_per_head;
  std::byte* tensor =
      side.tensor + (first + token) * side.tensor_token_stride + head * side.tensor_head_stride;
  std::byte* const plane = side.plane + head * side.head_stride;
  const std::int64_t tensor_step = at_once * side.tensor_token_stride;

  using Value = typename Move::Value;
  Value values[Move::kBatch];
  const auto for_batch = [&](bool has_places, const auto& body) {
#pragma unroll
    for (int i = 0; i < Move::kBatch; ++i) {
      const int at = token + i * at_once;
      if (at >= count) break;
      TokenPart part{side, index, tensor + i * tensor_step, nullptr, nullptr};
      if (has_places) part.slot = plane + places[at].offsets[which];
      if constexpr (Move::kHasScales) {
        const Plane::Scales& scales = side.scales;
        if (has_places) {
          part.scale = scales.data + places[at].scales[which] + head * scales.head_stride;
        }
      }
      body(part, values[i]);
    }
  };
  const auto load = [](const TokenPart& part, Value& value) { value = Move::load(part); };
  const auto store = [](const TokenPart& part, const Value& value) { Move::store(part, value); };

  if (Move::kLoadsEarly && has_any) for_batch(false, load);
  const auto threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
#pragma unroll 1
  for (int i = thread_of_block(); i < count; i += threads) {
    places[i] = place_of<Move::kHasScales>(sides, table, first + i);
  }
  __syncthreads();
  if (!has_any) return;
  if (!Move::kLoadsEarly) for_batch(true, load);
  while (true) {
    for_batch(true, store);
    token += Move::kBatch * at_once;
    if (token >= count) return;
    tensor += Move::kBatch * tensor_step;
    for_batch(true, load);
  }
}

template <class Move>
TokenKernel kernel_of() {
  return {exchange_tokens<Move>, Move::kTokensPerThread, Move::kSidesPerBlock};
}

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

// Where a thread's tokens do not leave blocks for all processors it takes fewer, but no less than
// two: blocks are work of their own. Those of a second side are not counted: with them 4k tokens
// to 8 bits are 5 % quicker, and 8k to 16k 1 to 2 % slower.
inline void launch_tokens(const TokenKernel& kernel, TokenSides sides, TokenTable table,
                          cudaStream_t stream) {
  constexpr int kManyBlocks = 1024, kFewTokensPerThread = 2;
  constexpr int kMostBlockDepth = 64;  // of any kernel
  const auto blocks_for = [](std::int64_t count, int each) {
    return static_cast<unsigned>(ceil_div(count, each));
  };
  const int sides_per_block = std::min(sides.num_sides, kernel.sides_per_block);
  const int threads = kTokenThreads / sides_per_block;
  int most_parts = 0;
  for (int i = 0; i < sides.num_sides; ++i) {
    most_parts = std::max(most_parts, sides.side[i].parts_per_head);
  }
  const int parts = std::min(most_parts, threads);
  const int heads = std::min(sides.num_heads, threads / parts);
  const int at_once = std::min({threads / (parts * heads), kMostBlockDepth / sides_per_block,
                                kMostTokens / kernel.tokens_per_thread});
  const unsigned head_blocks = blocks_for(sides.num_heads, heads);
  auto tokens_per_block = static_cast<int>(
      std::clamp<std::int64_t>(table.num_tokens * head_blocks / kManyBlocks,
                               kFewTokensPerThread * at_once, kernel.tokens_per_thread * at_once));
  const unsigned grid_sides = static_cast<unsigned>(sides.num_sides / sides_per_block);
  const dim3 grid(blocks_for(table.num_tokens, tokens_per_block), head_blocks,
                  blocks_for(most_parts, parts) * grid_sides);
  const dim3 block(static_cast<unsigned>(parts), static_cast<unsigned>(heads),
                   static_cast<unsigned>(at_once * sides_per_block));
  void* arguments[] = {&sides, &table, &tokens_per_block};
  check_cuda(launch(reinterpret_cast<const void*>(kernel.function), {grid, block}, arguments,
                    stream, table.overlap_launch),
             "write_tokens or read_tokens");
}

}  // namespace seqattn
