#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "seqattn/types.h"

// What a kernel reads. Nothing in here knows of sequences, so that another producer can fill it.
namespace seqattn {

// The part of attention that never changes between plans.
struct AttentionShape {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;    // of queries and keys
  int head_dim_v = 0;  // of values and outputs
  int page_size = 0;
  DType kv_dtype = DType::kFloat16;
  Device device = {};
  bool causal = true;
  int window_left = -1;
  float sm_scale = 1;
  float logits_soft_cap = 0;
  int num_threads = 0;

  int group_size() const noexcept { return num_qo_heads / num_kv_heads; }
};

// One row: a page table, its lengths, and the KV heads that it covers.
struct AttentionRow {
  std::int64_t page_begin = 0;  // first entry in AttentionPlan::page_indices
  std::int64_t kv_len = 0;
  std::int64_t q_begin = 0;  // first query token in q and out
  std::int64_t q_len = 0;
  std::int64_t mask_begin =
      0;  // first byte in AttentionPlan::mask of [q_len, kv_len], where there is a mask
  int kv_head_begin = 0;
  int kv_head_end = 0;
};

struct AttentionPlan {
  std::span<const PageId> page_indices;  // of whoever made the plan
  std::vector<AttentionRow> rows;
  std::vector<std::uint8_t> mask;  // empty without one
  std::int64_t num_q_tokens = 0;
};

}  // namespace seqattn
