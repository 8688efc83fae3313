#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "decode_items.h"
#include "seqattn/types.h"

// What a decode launch reads and writes, as plain types; decode_launch.cc fills it.
namespace seqattn::decode {

// The batch's tables, in device memory.
struct Batch {
  std::int32_t num_rows = 0;
  const std::int32_t* page_indices = nullptr;
  // [num_rows]; nothing for those without queries.
  const PlannedRow* planned_rows = nullptr;
  const PlannedItems* planned_items = nullptr;
  // [num_rows + 1]: items in front of a row, for one KV head. A row without queries has none.
  const std::int32_t* item_indptr = nullptr;
  const std::int32_t* run_limit = nullptr;  // decode_runs.h, in tiles
};

// Of keys or values of 8 bits: one for each head, or for each token and head.
struct Scales {
  const float* data = nullptr;
  std::int64_t page_stride = 0, token_stride = 0, head_stride = 0;  // in floats
};

struct Call {
  // 5-D: a block of up to 128 bytes, tokens of a page, blocks, heads, pages.
  CUtensorMap keys, values;
  Scales key_scales, value_scales;  // of a cache that has them
  bool scales_per_token = false;
  Batch batch;
  int page_size = 0;
  int num_kv_heads = 0;
  int group_size = 0;       // query heads a KV head
  const void* q = nullptr;  // aligned to 16 bytes, as its strides
  std::int64_t q_token_stride = 0, q_head_stride = 0;
  void* out = nullptr;
  bool out_is_float = false;
  std::int64_t out_token_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // natural log; may be null
  std::int64_t lse_token_stride = 0, lse_head_stride = 0;
  const float* sink_logits = nullptr;  // may be null
  std::int64_t sink_stride = 0;
  bool causal = true;
  int window_left = -1;
  float scale_log2 = 1;  // makes q . k a logit in base 2; with a cap: the argument of tanh
  float cap_log2 = 0;    // 0: none
  // Of items that share a row and a head: [items, rows, dim] weighted sums as accumulators lie, and
  // [items, rows] maxima and sums of weights; those of a merged group lie where its first item's
  // do.
  float4* partials = nullptr;
  float4* partial_stats = nullptr;
  float4* group_stats = nullptr;  // as partial_stats, of merged groups
  // Zeros between launches: [items] results of a group, at its first item; [items] merged groups of
  // a row, at its first item; what items and thread blocks came to the end.
  unsigned* arrivals = nullptr;
  unsigned* group_arrivals = nullptr;
  unsigned* next_item = nullptr;  // [2]
  bool overlap_launch = false;    // launch.h
};

struct Instance {
  DType q_dtype, kv_dtype;
  int head_dim;
  int query_rows;            // that a row of the batch may have for each KV head
  cudaError_t (*prepare)();  // sets attributes, once a device
  cudaError_t (*run)(const Call& call, int num_sms, cudaStream_t stream);
};

// What this build holds, for good; none where no architecture of it is sm_90a.
std::span<const Instance> instances();

}  // namespace seqattn::decode
