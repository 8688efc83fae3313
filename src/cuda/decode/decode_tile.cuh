#pragma once

#include <cmath>

#include "decode_shape.cuh"

// A warp's share of an item: the online softmax of 8 query rows over tiles of 16 tokens, as
//   S^T = K Q^T   and   O^T = V^T P^T:
// tokens, then elements of the head, are the 16 rows that the matrix instructions want, and query
// rows their 8 columns. The other way round half of the products would be of padding.
namespace seqattn::decode {

// Lane l of a warp: `g` is its row in a matrix of accumulators, 2 t and 2 t + 1 its columns.
struct Lane {
  int index, g, t;
  __device__ Lane() : index(static_cast<int>(threadIdx.x) & 31), g(index >> 2), t(index & 3) {}
};

// Where unit `unit` of 16 bytes of a token lies in a tile: blocks of 64 elements, in each 16 tokens
// of 128 bytes, whose units are swizzled by the token.
__device__ __forceinline__ std::uint32_t unit_address(std::uint32_t tile, int token, int unit) {
  const int block = unit >> 3, in_block = unit & 7;
  return tile + static_cast<std::uint32_t>(block * (kTileTokens * 128) + token * 128 +
                                           ((in_block ^ (token & 7)) << 4));
}

template <class S>
struct TileState {
  // Of query rows 2 t and 2 t + 1, in base 2. Lanes of equal t agree on `max`; `sum` is each one's.
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

// Queries as the right factor: lane (g, t) holds elements 2 t, 2 t + 1 and those 8 behind of row g.
template <class S>
struct Queries {
  std::uint32_t steps[S::kSteps][2];

  // Returns a register that depends on all loads (add_values says why).
  __device__ std::uint32_t load(const typename S::T (*rows)[S::kDim], const Lane& lane) {
    const auto* const row = reinterpret_cast<const std::uint32_t*>(rows[lane.g]);
    std::uint32_t all = 0;
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      steps[k][0] = row[k * 8 + lane.t];
      steps[k][1] = row[k * 8 + 4 + lane.t];
      all |= steps[k][0] | steps[k][1];
    }
    return all;
  }
};

// Which keys rows 2 t and 2 t + 1 see: [first, end).
struct Visible {
  int first[2], end[2];
  int all_first, all_end;  // what every row sees
};

template <class S>
__device__ __forceinline__ void score(std::uint32_t keys, const Queries<S>& queries,
                                      const Lane& lane, float (&scores)[4]) {
  const int matrix = lane.index >> 3, row = lane.index & 7;
  const int token = (matrix & 1) * 8 + row;
  float even[4] = {}, odd[4] = {};  // two chains: products wait for one another less
#pragma unroll
  for (int k = 0; k < S::kSteps; ++k) {
    Fragment fragment;
    load_matrices(unit_address(keys, token, 2 * k + (matrix >> 1)), fragment);
    multiply_add<typename S::T>(k % 2 == 0 ? even : odd, fragment, queries.steps[k]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[i] = even[i] + odd[i];
}

// Logits in base 2; what a row does not see is minus infinity. Element i is token g + i / 2 * 8 of
// the tile and row 2 t + i % 2.
__device__ __forceinline__ void scale_and_hide(float (&scores)[4], float scale, float cap,
                                               int first_token, const Visible& visible,
                                               const Lane& lane) {
#pragma unroll
  for (float& x : scores) {
    x *= scale;
    if (cap > 0) x = cap * tanhf(x);
  }
  if (first_token >= visible.all_first && first_token + kTileTokens <= visible.all_end) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = first_token + lane.g + i / 2 * 8, c = i % 2;
    if (token < visible.first[c] || token >= visible.end[c]) scores[i] = -INFINITY;
  }
}

// One step of the online softmax: scores become weights, as the right factor P^T of the values.
template <class S>
__device__ __forceinline__ void update(TileState<S>& state, float (&scores)[4],
                                       std::uint32_t (&weights)[2]) {
  float next[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) next[c] = fmaxf(scores[c], scores[2 + c]);
#pragma unroll
  for (int lanes = 4; lanes <= 16; lanes *= 2) {
#pragma unroll
    for (int c = 0; c < 2; ++c) next[c] = fmaxf(next[c], __shfl_xor_sync(~0u, next[c], lanes));
  }
  if (__any_sync(~0u, next[0] > state.max[0] || next[1] > state.max[1])) {
    float factor[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float max = fmaxf(state.max[c], next[c]);
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
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float max = state.max[i % 2];
    scores[i] = exp2_fast(scores[i] - (max == -INFINITY ? 0.0f : max));
    state.sum[i % 2] += scores[i];
  }
  weights[0] = transpose(pack<typename S::T>(scores[0], scores[1]));
  weights[1] = transpose(pack<typename S::T>(scores[2], scores[3]));
}

// Adds the weighted values. Returns a register that the last load filled: a release that depends on
// it cannot come before (mbarrier.arrive does not wait for loads under way).
template <class S>
__device__ __forceinline__ std::uint32_t add_values(TileState<S>& state, std::uint32_t values,
                                                    const std::uint32_t (&weights)[2],
                                                    const Lane& lane) {
  const int matrix = lane.index >> 3, row = lane.index & 7;
  const int token = (matrix >> 1) * 8 + row;
  std::uint32_t last = 0;
#pragma unroll
  for (int j = 0; j < S::kSteps; ++j) {
    Fragment fragment;
    load_transposed(unit_address(values, token, 2 * j + (matrix & 1)), fragment);
    multiply_add<typename S::T>(state.out[j], fragment, weights);
    last |= fragment[0];
  }
  return last;
}

// Zeros for the tokens of a tile from `first` on: a weight of 0 does not silence what may be NaN.
template <class S>
__device__ __forceinline__ void clear_values(std::uint32_t values, int first, const Lane& lane) {
  constexpr int kUnits = S::kDim / 8;  // of 16 bytes, a token
  for (int i = lane.index; i < (kTileTokens - first) * kUnits; i += 32) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                     unit_address(values, first + i / kUnits, i % kUnits)),
                 "r"(0)
                 : "memory");
  }
  fence_bulk_copies();  // the next box may come into these bytes
  __syncwarp();
}

}  // namespace seqattn::decode
