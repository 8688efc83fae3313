#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "seqattn/types.h"

namespace seqattn::bench {

// One case: a batch of equal sequences in shuffled pages of 16 tokens.
struct CpuCase {
  int num_qo_heads = 32;
  int num_kv_heads = 8;
  int head_dim = 128;
  DType kv_dtype = DType::kFloat16;
  KVLayout layout = KVLayout::kHND;
  int batch = 1;
  std::int64_t q_len = 1;
  std::int64_t kv_len = 1024;

  bool is_decode() const { return q_len == 1; }
  std::string name() const;        // "decode/32,8,128/f16/HND/1x4k"
  double kv_bytes() const;         // that one run has to read
  double flops() const;            // of the two products, what is hidden left out
  std::int64_t num_pages() const;  // of all sequences
};

inline constexpr int kPageSize = 16;

std::vector<CpuCase> all_cpu_cases();

// Decode of the large shape, float16, HND: one sequence of 1k to 128k tokens, then 1 to 256
// sequences of 1k.
std::vector<CpuCase> context_cases();
std::vector<CpuCase> batch_cases();

}  // namespace seqattn::bench
