#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "fa2.h"
#include "seqattn/types.h"

// FlashInfer's FA3 kernels (Hopper) behind plain types; see fa2.h.
namespace seqattn {

// Tiles of query heads, in device memory, dealt to thread blocks: block b takes items work[b] to
// work[b + 1]. A tile is 192 queries of one head for head_dim 64, else 128.
struct Fa3Items {
  const std::int32_t* work = nullptr;    // [multiprocessors + 1]
  const std::int32_t* q_tile = nullptr;  // [items], and so on
  const std::int32_t* q_begin = nullptr;
  const std::int32_t* page_begin = nullptr;
  const std::int32_t* q_len = nullptr;
  const std::int32_t* kv_len = nullptr;
  const std::int32_t* head = nullptr;
  const std::int32_t* row = nullptr;
};

struct Fa3Call {
  Fa3Items items;
  const std::int32_t* page_indices = nullptr;
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
  bool general;  // window and soft cap as well
  cudaError_t (*run)(const Fa3Call&, cudaStream_t);
};

// What this build holds, for good; none where no architecture of it is sm_90a.
std::span<const Fa3Instance> fa3_instances();

}  // namespace seqattn
