#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "fa2.h"
#include "fa3_tile.h"
#include "seqattn/types.h"

// FlashInfer's FA3 kernels (Hopper) behind plain types; see fa2.h.
namespace seqattn {

// The batch's tables, in device memory.
struct Fa3Batch {
  const std::int32_t* page_indices = nullptr;
  const std::int32_t* page_indptr = nullptr;  // [rows + 1]
  const std::int32_t* q_indptr = nullptr;     // [rows + 1]
  const std::int32_t* q_position = nullptr;   // [rows]: where in its row the first query stands
  const Fa3Tile* tiles = nullptr;             // [num_tiles], costliest first
  std::int32_t num_tiles = 0;
};

struct Fa3Call {
  Fa3Batch batch;
  int num_blocks = 0;  // of the device, one a multiprocessor
  Fa2Cache keys, values;
  int page_size = 0;
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  std::int64_t num_q_tokens = 0;  // rows of q and out
  const void* q = nullptr;        // aligned to 16 bytes, as its strides
  std::int64_t q_token_stride = 0;
  std::int64_t q_head_stride = 0;
  void* out = nullptr;   // [num_q_tokens, num_qo_heads, head_dim], the type of q
  float* lse = nullptr;  // [num_q_tokens, num_qo_heads], base 2; may be null
  int window_left = -1;
  float sm_scale = 1;
  float logits_soft_cap = 0;
};

struct Fa3Instance {
  DType dtype;
  int head_dim;
  bool causal;
  bool general;              // window and soft cap as well
  cudaError_t (*prepare)();  // sets attributes, once a device
  cudaError_t (*run)(const Fa3Call&, cudaStream_t);
};

// What this build holds, for good; none where no architecture of it is sm_90a.
std::span<const Fa3Instance> fa3_instances();

}  // namespace seqattn
