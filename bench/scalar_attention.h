#pragma once

#include <cstdint>
#include <vector>

// The peer of bench/attention_vs_scalar.cc.
namespace seqattn::bench {

// Causal attention of one sequence over dense float16 keys and values, as plain C++ loops: float32
// sums, each key and value unpacked once for all heads of its group. One thread.
//
// q, out [q_len, num_qo_heads, dim]; k, v [kv_len, num_kv_heads, dim], the bits of float16.
struct ScalarAttention {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int dim = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  const float* q = nullptr;
  const std::uint16_t* k = nullptr;
  const std::uint16_t* v = nullptr;
  float* out = nullptr;

  void run() const;
};

}  // namespace seqattn::bench
