#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

// FlashInfer as its users have it: its own planners and launch functions, for bfloat16, causal.
// Plain types, since the headers of FA2 and FA3 must not meet in one file. Everything here throws
// std::exception for what FlashInfer refuses, and returns the device's status.
namespace seqattn::bench {

// The batch's tables on the host, for planners, and on the device, for kernels.
struct PeerBatch {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_size = 0;
  bool is_hnd = false;
  bool is_float8 = false;                                   // the cache (e4m3)
  std::vector<std::int32_t> q_indptr, page_indptr, kv_len;  // host
  const std::int32_t* page_indices_device = nullptr;
  const std::int32_t* page_indptr_device = nullptr;
  const std::int32_t* last_page_len_device = nullptr;
  const std::int32_t* q_indptr_device = nullptr;

  int num_rows() const { return static_cast<int>(kv_len.size()); }
  int num_q_tokens() const { return q_indptr.back(); }
};

// Memory that plans and kernels share; `pinned` is as large as `ints`.
struct PeerWorkspace {
  void* floats = nullptr;
  std::size_t float_bytes = 0;
  void* ints = nullptr;
  void* pinned = nullptr;
  std::size_t int_bytes = 0;
};

// A planner's result, as FlashInfer keeps it.
struct alignas(16) PeerPlan {
  unsigned char bytes[256] = {};
};

// One layer: caches [pages, page_size, num_kv_heads, head_dim], of HND [pages, num_kv_heads,
// page_size, head_dim]; q and out [tokens, num_qo_heads, head_dim].
struct PeerTensors {
  void* keys = nullptr;
  void* values = nullptr;
  void* q = nullptr;
  void* out = nullptr;
};

// FA2, which serves decode and short queries: head_dim 64, 128 or 256, tiles of up to 64 query
// rows; where FlashInfer asks for one of 128, cudaErrorInvalidValue. fixed_split: keys of a chunk,
// a multiple of the page size; 0 leaves the split to FlashInfer.
cudaError_t plan_fa2(const PeerBatch& batch, const PeerWorkspace& workspace, int fixed_split,
                     PeerPlan* plan, cudaStream_t stream);
cudaError_t run_fa2(const PeerBatch& batch, const PeerWorkspace& workspace, const PeerPlan& plan,
                    const PeerTensors& tensors, cudaStream_t stream);

// FA3, for long queries on Hopper: head_dim 128, NHD, caches of bfloat16.
cudaError_t plan_fa3(const PeerBatch& batch, const PeerWorkspace& workspace, PeerPlan* plan,
                     cudaStream_t stream);
cudaError_t run_fa3(const PeerBatch& batch, const PeerWorkspace& workspace, const PeerPlan& plan,
                    const PeerTensors& tensors, cudaStream_t stream);

// Writes `num_tokens` rows of new keys and values; row t belongs to batch_indices[t] and lies at
// positions[t].
struct PeerAppend {
  const void* keys = nullptr;
  const void* values = nullptr;
  const std::int32_t* batch_indices_device = nullptr;
  const std::int32_t* positions_device = nullptr;
  int num_tokens = 0;
};
cudaError_t append_by_flashinfer(const PeerBatch& batch, const PeerTensors& tensors,
                                 const PeerAppend& append, cudaStream_t stream);

}  // namespace seqattn::bench
