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
  int page_size;
  int parts_per_token[2];  // of each side; 0 leaves it out
  bool is_aligned() const { return side[0].is_aligned() && side[1].is_aligned(); }
  TokenSides only(int which) const {
    TokenSides one = *this;
    one.parts_per_token[1 - which] = 0;
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

__device__ inline TokenPlace place_of(const TokenTable& table, std::int64_t token, int page_size) {
  const std::int32_t row = row_of(table, static_cast<std::int32_t>(token));
  const std::int64_t position = table.begin[row] + token - table.indptr[row];
  return {table.page_indices[table.page_begin[row] + position / page_size],
          static_cast<int>(position % page_size)};
}

// A part of a head of one token. Of `place` and `slot` nothing is known before the lookup.
struct TokenPart {
  const TokenSide& side;
  int head, index;     // of the head's parts
  std::byte* element;  // the head in the tensor
  TokenPlace place;
  std::byte* slot;  // the head in the plane
};

// For a Move whose `store` does it all.
struct MoveInOne {
  struct Value {};
  static constexpr int kBatch = 1;
  static constexpr bool kLoadsEarly = false;
  __device__ static Value load(const TokenPart&) { return {}; }
};

// Moves what this thread has of the block's tokens: one part of a token after the other, and of
// each all tokens, kBatch at a time. A Move says
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
  const std::int64_t num_tokens =
      table.num_tokens_device != nullptr ? *table.num_tokens_device : table.num_tokens;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tokens_per_block;
  if (first >= num_tokens) return;
  const int count =
      static_cast<int>(min(static_cast<std::int64_t>(tokens_per_block), num_tokens - first));
  const int per_token = sides.parts_per_token[0] + sides.parts_per_token[1];
  const int lanes = min(per_token, kTokenThreads), at_once = kTokenThreads / lanes;
  const int first_token = static_cast<int>(threadIdx.x) / lanes;
  const int first_part = static_cast<int>(threadIdx.x) - first_token * lanes;

  using Value = typename Move::Value;
  Value values[Move::kBatch];
  const auto for_batch = [&](int in_token, int begin, bool has_places, const auto& body) {
    const int which = in_token >= sides.parts_per_token[0] ? 1 : 0;
    const int in_side = which == 0 ? in_token : in_token - sides.parts_per_token[0];
    const TokenSide& side = sides.side[which];
    const int head = in_side / side.parts_per_head;
    std::byte* const tensor =
        side.tensor + first * side.tensor_token_stride + head * side.tensor_head_stride;
#pragma unroll
    for (int i = 0; i < Move::kBatch; ++i) {
      const int token = begin + i * at_once;
      if (token >= count) break;
      TokenPart part{side,
                     head,
                     in_side - head * side.parts_per_head,
                     tensor + token * side.tensor_token_stride,
                     {},
                     nullptr};
      if (has_places) {
        part.place = places[token];
        part.slot = side.plane + part.place.page * side.page_stride +
                    part.place.slot * side.token_stride + head * side.head_stride;
      }
      body(part, values[i]);
    }
  };
  const auto load = [](const TokenPart& part, Value& value) { value = Move::load(part); };
  const auto store = [](const TokenPart& part, const Value& value) { Move::store(part, value); };

  const bool has_any = first_token < at_once && first_token < count;
  if (Move::kLoadsEarly && has_any) for_batch(first_part, first_token, false, load);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kTokenThreads) {
    places[i] = place_of(table, first + i, sides.page_size);
  }
  __syncthreads();
  if (!has_any) return;
  bool is_loaded = Move::kLoadsEarly;
  for (int in_token = first_part; in_token < per_token; in_token += lanes) {
    for (int begin = first_token; begin < count; begin += at_once * Move::kBatch) {
      if (!is_loaded) for_batch(in_token, begin, true, load);
      for_batch(in_token, begin, true, store);
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
  sides.page_size = planes[0].page_size;
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
    sides.parts_per_token[i] = plane.num_heads * sides.side[i].parts_per_head;
  }
  return sides;
}

using TokenKernel = void (*)(TokenSides, TokenTable, int tokens_per_block);

#ifdef __CUDACC__

inline void launch_tokens(TokenKernel kernel, const TokenSides& sides, const TokenTable& table,
                          cudaStream_t stream) {
  // So many that each thread has two parts at least; more where that leaves blocks for all
  // processors, since blocks are work of their own.
  constexpr int kManyBlocks = 1024, kEnoughTokens = 16;
  const int per_token = sides.parts_per_token[0] + sides.parts_per_token[1];
  const int least = std::clamp(2 * kTokenThreads / per_token, 1, kMostTokens);
  const int tokens_per_block = static_cast<int>(std::clamp<std::int64_t>(
      table.num_tokens / kManyBlocks, least, std::max(least, kEnoughTokens)));
  const auto blocks =
      static_cast<unsigned>((table.num_tokens + tokens_per_block - 1) / tokens_per_block);
  kernel<<<blocks, kTokenThreads, 0, stream>>>(sides, table, tokens_per_block);
  check_launch("write_tokens or read_tokens");
}

#endif

}  // namespace seqattn
