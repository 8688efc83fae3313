#pragma once

#include <cmath>

#include "decode_shape.cuh"

// A warp's share of a chunk: the online softmax of 8 query rows over tiles of 16 tokens, as
//   S^T = K Q^T   and   O^T = V^T P^T:
// tokens, then elements of the head, are the 16 rows that the matrix instructions want, and query
// rows their 8 columns. The other way round half of the products would be of padding.
namespace seqattn::decode {

// Lane l of a warp: `g` is its row in a matrix of accumulators, 2 t and 2 t + 1 its columns.
struct Lane {
  int index, g, t;
  __device__ Lane() : index(static_cast<int>(threadIdx.x) & 31), g(index >> 2), t(index & 3) {}
};

// Where unit `unit` of 16 bytes of a token lies in a tile: blocks of up to 128 bytes a token, whose
// units the copy engine swizzles by their place among 8 lines of 128 bytes.
template <class S>
__device__ __forceinline__ std::uint32_t unit_address(std::uint32_t tile, unsigned token,
                                                      unsigned unit) {
  constexpr unsigned kUnits = S::kBlockUnits, kTokensOfLine = 8 / kUnits;
  const unsigned block = unit / kUnits, in_block = unit % kUnits;
  const unsigned swizzled = in_block ^ (token / kTokensOfLine % kUnits);
  return tile + ((block * kTileTokens + token) * kUnits + swizzled) * 16;
}

// Of one block of 8 query rows.
template <class S>
struct RowState {
  // Of query rows 2 t and 2 t + 1, in base 2: what weights are relative to, about their greatest
  // exponent, on which lanes of equal t agree; each lane's sum of weights.
  float max[2], sum[2];
  float out[S::kSteps][4];  // [16 elements of the head][2 rows x 2 columns], as accumulators lie

  __device__ void clear() {
    for (int c = 0; c < 2; ++c) max[c] = -INFINITY, sum[c] = 0;
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] = 0;
    }
  }
};

template <class S>
struct TileState {
  RowState<S> rows[S::kRowBlocks];
  __device__ void clear() {
#pragma unroll
    for (RowState<S>& block : rows) block.clear();
  }
};

// Queries as the right factor: lane (g, t) holds elements 2 t, 2 t + 1 and those 8 behind of row g;
// for keys of 8 bits elements 4 t to 4 t + 3, in the order of score(), and as f16: times powers of
// 2 that bring a row's greatest element to 2^14, which leave bf16 exact.
template <class S>
struct Queries {
  std::uint32_t steps[S::kRowBlocks][S::kSteps][2];
  // What products of rows 2 t and 2 t + 1 of a block are to be multiplied by.
  float factors[S::kRowBlocks][2];

  // Returns a register that depends on all loads (add_values says why).
  __device__ std::uint32_t load(const typename S::T (*rows)[S::kDim], const Lane& lane) {
    std::uint32_t all = 0;
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      const auto* const row =
          reinterpret_cast<const std::uint32_t*>(rows[block * kBlockRows + lane.g]);
#pragma unroll
      for (int k = 0; k < S::kSteps; ++k) {
        std::uint32_t(&step)[2] = steps[block][k];
        step[0] = row[k * 8 + (S::kIsFloat8 ? 2 * lane.t : lane.t)];
        step[1] = row[k * 8 + (S::kIsFloat8 ? 2 * lane.t + 1 : lane.t + 4)];
        all |= step[0] | step[1];
      }
      factors[block][0] = factors[block][1] = 1;
      if constexpr (S::kIsFloat8 && std::is_same_v<typename S::T, __nv_bfloat16>) {
        narrow(steps[block], factors[block], lane);
      }
    }
    return all;
  }

 private:
  __device__ static void narrow(std::uint32_t (&steps)[S::kSteps][2], float (&factors)[2],
                                const Lane& lane) {
    std::uint32_t greatest = 0;  // magnitude: its bits are in the order of numbers
#pragma unroll
    for (const auto& step : steps) {
#pragma unroll
      for (const std::uint32_t pair : step) {
        greatest = max(greatest, max(pair & 0x7fffu, pair >> 16 & 0x7fffu));
      }
    }
    greatest = max(greatest, __shfl_xor_sync(~0u, greatest, 1));
    greatest = max(greatest, __shfl_xor_sync(~0u, greatest, 2));
    // Of float32, as exponents below: biased by 127, and both factors normal.
    const std::uint32_t exponent = min(max(greatest >> 7, 41u), 254u);
    const float down = __uint_as_float((127 + 127 + 14 - exponent) << 23);
    const float up = __uint_as_float((exponent - 14) << 23);
#pragma unroll
    for (auto& step : steps) {
#pragma unroll
      for (std::uint32_t& pair : step) {
        pair = pack<__half>(__uint_as_float(pair << 16) * down,
                            __uint_as_float(pair & 0xffff0000u) * down);
      }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) factors[c] = __shfl_sync(~0u, up, (2 * lane.t + c) * 4);
  }
};

// Which keys rows 2 t and 2 t + 1 of each block see: [first, end).
template <class S>
struct Visible {
  int first[S::kRowBlocks][2], end[S::kRowBlocks][2];
  int all_first, all_end;  // what every row sees
};

// Scales of a lane's two tokens, g and g + 8 of a tile; 1 where the cache has none, and where what
// they scale is multiplied elsewhere.
struct TokenScales {
  float key[2] = {1, 1}, value[2] = {1, 1};
};

template <class S>
__device__ __forceinline__ void score(std::uint32_t keys, const Queries<S>& queries,
                                      const Lane& lane, float (&scores)[S::kRowBlocks][4]) {
  const int matrix = lane.index >> 3, row = lane.index & 7;
  const int token = (matrix & 1) * 8 + row;
  // Two chains: products wait for one another less.
  float even[S::kRowBlocks][4] = {}, odd[S::kRowBlocks][4] = {};
  if constexpr (S::kIsFloat8) {
    // A register holds elements 4 t to 4 t + 3 of a unit. Their order in a product is free, as long
    // as it is that of the queries: the first two, then those 8 behind.
#pragma unroll
    for (int k = 0; k < S::kSteps; k += 2) {
      Fragment bytes, first, second;
      load_matrices(unit_address<S>(keys, token, k + (matrix >> 1)), bytes);
      widen(bytes[0], first[0], first[2]);
      widen(bytes[1], first[1], first[3]);
      widen(bytes[2], second[0], second[2]);
      widen(bytes[3], second[1], second[3]);
#pragma unroll
      for (int block = 0; block < S::kRowBlocks; ++block) {
        multiply_add<__half>(even[block], first, queries.steps[block][k]);
        multiply_add<__half>(odd[block], second, queries.steps[block][k + 1]);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      Fragment fragment;
      load_matrices(unit_address<S>(keys, token, 2 * k + (matrix >> 1)), fragment);
#pragma unroll
      for (int block = 0; block < S::kRowBlocks; ++block) {
        multiply_add<typename S::T>(k % 2 == 0 ? even[block] : odd[block], fragment,
                                    queries.steps[block][k]);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[block][i] = even[block][i] + odd[block][i];
  }
}

// Logits in base 2 of a block of rows; what a row does not see is minus infinity. Element i is
// token g + i / 2 * 8 of the tile and row 2 t + i % 2, whose products `row_scales` makes the
// arguments of Call.
template <class S>
__device__ __forceinline__ void scale_and_hide(float (&scores)[4], const float (&row_scales)[2],
                                               const TokenScales& scales, float cap,
                                               int first_token, const Visible<S>& visible,
                                               int block, const Lane& lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& x = scores[i];
    x *= row_scales[i % 2];
    if constexpr (S::kIsFloat8) x *= scales.key[i / 2];
    if (cap > 0) x = cap * tanhf(x);
  }
  if (first_token >= visible.all_first && first_token + kTileTokens <= visible.all_end) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = first_token + lane.g + i / 2 * 8, c = i % 2;
    if (token < visible.first[block][c] || token >= visible.end[block][c]) scores[i] = -INFINITY;
  }
}

// What goes into the exponents of a block of rows: logits, and what scales the values, as a sum of
// logarithms, so that weights of 16 bits have room for it.
template <class S>
__device__ __forceinline__ void add_value_scales(const float (&scores)[4],
                                                 const TokenScales& scales, float (&exponents)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    exponents[i] = scores[i];
    if constexpr (S::kIsFloat8) {
      constexpr float kLeast = -92;  // 2^kLeast stands for less, and for 0
      exponents[i] += fmaxf(log2_fast(scales.value[i / 2]), kLeast);
    }
  }
}

// Weights are up to 2^kMostLog2: `RowState::max` stays behind the greatest exponent by up to so
// much. float32 sums and weights of 16 bits have room for that, and few tiles behind the first one
// need it raised then.
inline constexpr float kMostLog2 = 8;

// Whether the maximum of a row has to be raised for a tile.
template <class S>
__device__ __forceinline__ bool exceeds(const RowState<S>& state, const float (&exponents)[4]) {
  return __any_sync(~0u, fmaxf(exponents[0], exponents[2]) > state.max[0] + kMostLog2 ||
                             fmaxf(exponents[1], exponents[3]) > state.max[1] + kMostLog2);
}

// Raises the maxima that have to be, each by its own row alone: beside it there are rows of
// padding.
template <class S>
__device__ __forceinline__ void raise(RowState<S>& state, const float (&exponents)[4]) {
  float factor[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float greatest = fmaxf(exponents[c], exponents[2 + c]);
#pragma unroll
    for (int lanes = 4; lanes <= 16; lanes *= 2) {
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, lanes));
    }
    const float max = greatest > state.max[c] + kMostLog2 ? greatest : state.max[c];
    factor[c] = max == -INFINITY ? 1.0f : exp2_fast(state.max[c] - max);
    state.max[c] = max;
    state.sum[c] *= factor[c];
  }
#pragma unroll
  for (int j = 0; j < S::kSteps; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state.out[j][i] *= factor[i % 2];
  }
}

// Scores become weights, as the right factor P^T of the values.
template <class S>
__device__ __forceinline__ void weigh(RowState<S>& state, const float (&scores)[4],
                                      const float (&exponents)[4], std::uint32_t (&weights)[2]) {
  float weight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float max = state.max[i % 2] == -INFINITY ? 0.0f : state.max[i % 2];
    weight[i] = exp2_fast(exponents[i] - max);
    state.sum[i % 2] += S::kIsFloat8 ? exp2_fast(scores[i] - max) : weight[i];
  }
  weights[0] = transpose(pack<typename S::Factor>(weight[0], weight[1]));
  weights[1] = transpose(pack<typename S::Factor>(weight[2], weight[3]));
}

// Adds the weighted values. Returns a register that the last load filled: a release that depends on
// it cannot come before (mbarrier.arrive does not wait for loads under way).
template <class S>
__device__ __forceinline__ std::uint32_t add_values(
    TileState<S>& state, std::uint32_t values, const std::uint32_t (&weights)[S::kRowBlocks][2],
    const Lane& lane) {
  const int matrix = lane.index >> 3, row = lane.index & 7;
  std::uint32_t last = 0;
  if constexpr (S::kIsFloat8) {
    // Transposed are pairs of bytes: a register holds elements 2 g and 2 g + 1 of tokens 2 t and
    // 2 t + 1. Those of one element become a pair, of rows g and g + 8 of the product.
    const int token = (matrix & 1) * 8 + row;
#pragma unroll
    for (int j = 0; j < S::kSteps; j += 2) {
      Fragment bytes;
      load_transposed(unit_address<S>(values, token, j + (matrix >> 1)), bytes);
      last |= bytes[0];
#pragma unroll
      for (std::uint32_t& four : bytes) four = __byte_perm(four, 0, 0x3120);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Fragment fragment;
        widen(bytes[2 * half], fragment[0], fragment[1]);
        widen(bytes[2 * half + 1], fragment[2], fragment[3]);
#pragma unroll
        for (int block = 0; block < S::kRowBlocks; ++block) {
          multiply_add<__half>(state.rows[block].out[j + half], fragment, weights[block]);
        }
      }
    }
  } else {
    const int token = (matrix >> 1) * 8 + row;
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) {
      Fragment fragment;
      load_transposed(unit_address<S>(values, token, 2 * j + (matrix & 1)), fragment);
#pragma unroll
      for (int block = 0; block < S::kRowBlocks; ++block) {
        multiply_add<typename S::T>(state.rows[block].out[j], fragment, weights[block]);
      }
      last |= fragment[0];
    }
  }
  return last;
}

// Zeros for the tokens of a tile from `first` on: a weight of 0 does not silence what may be NaN.
template <class S>
__device__ __forceinline__ void clear_values(std::uint32_t values, int first, const Lane& lane) {
  for (int i = lane.index; i < (kTileTokens - first) * S::kUnits; i += 32) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                     unit_address<S>(values, first + i / S::kUnits, i % S::kUnits)),
                 "r"(0)
                 : "memory");
  }
  fence_bulk_copies();  // the next box may come into these bytes
  __syncwarp();
}

}  // namespace seqattn::decode
