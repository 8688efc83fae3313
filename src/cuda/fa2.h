#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <string>

#include "seqattn/types.h"

// FlashInfer's FA2 kernels behind plain types: fa2_instance.cuh compiles one instance a file, and
// these tables find it. No FlashInfer type leaks, so that FA2 and FA3 headers never meet.
namespace seqattn {

enum class AttentionMask : std::uint8_t { kNone, kCausal, kCustom };

// Query rows (tokens times group) that one thread block takes. A tile is chosen from a row's own
// length.
inline constexpr int kFa2Tiles[] = {16, 64, 128};
inline constexpr int kNumFa2Tiles = 3;

// The batch's tables, in device memory; the same for every launch of a plan.
struct Fa2Batch {
  std::int32_t num_rows = 0;
  const std::int32_t* page_indices = nullptr;
  const std::int32_t* page_indptr = nullptr;    // [num_rows + 1]
  const std::int32_t* last_page_len = nullptr;  // [num_rows]
  const std::int32_t* q_indptr = nullptr;       // [num_rows + 1]
  // [num_rows]: the first row of `out` and `lse` below that belongs to the batch's row.
  const std::int32_t* out_begin = nullptr;
  const std::uint8_t* mask_bits = nullptr;    // one bit a (query, key), least significant first
  const std::int32_t* mask_indptr = nullptr;  // [num_rows], in bytes
};

// The thread blocks of one tile size, in device memory. Block i takes query tile `q_tile[i]` of row
// `row[i]` and, of the keys that it sees, those in chunk `kv_chunk[i]` of chunk_size[i] tokens.
struct Fa2Blocks {
  std::int32_t count = 0;             // launched; the batch's first, then padding
  const std::int32_t* row = nullptr;  // [count], and so on
  const std::int32_t* q_tile = nullptr;
  const std::int32_t* kv_chunk = nullptr;
  const std::int32_t* chunk_size = nullptr;
  const bool* is_valid = nullptr;  // null: all are
};

// Keys or values of one layer.
struct Fa2Cache {
  void* data = nullptr;
  std::int64_t page_stride = 0;  // in elements, below 2^32, as the other two
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

struct Fa2Call {
  Fa2Batch batch;
  Fa2Blocks blocks;
  Fa2Cache keys, values;
  int page_size = 0;
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  const void* q = nullptr;  // 16-bit, aligned to 16 bytes, as its strides
  std::int64_t q_token_stride = 0;
  std::int64_t q_head_stride = 0;
  void* out = nullptr;   // [rows, num_qo_heads, head_dim]
  float* lse = nullptr;  // [rows, num_qo_heads], base 2; may be null
  // With chunks: query j of a row whose keys make n chunks writes chunk c to out_begin + j * n + c.
  bool split = false;
  int window_left = -1;
  float sm_scale = 1;
  float logits_soft_cap = 0;
  bool overlap_launch = false;  // launch.h
};

// One line of the instance list (instances.cmake): its kernels for each tile.
struct Fa2Instance {
  DType dtype;  // of queries, keys and values
  int head_dim;
  AttentionMask mask;
  bool general;  // window and soft cap as well
  // Each is null where no such kernel is compiled. `prepare` sets attributes, once a device.
  cudaError_t (*prepare)();
  cudaError_t (*run_float[kNumFa2Tiles])(const Fa2Call&, cudaStream_t);   // float32 out
  cudaError_t (*run_native[kNumFa2Tiles])(const Fa2Call&, cudaStream_t);  // out in dtype
};

// What this build holds.
std::span<const Fa2Instance* const> fa2_instances();

}  // namespace seqattn
