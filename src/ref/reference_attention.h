#pragma once

#include <cstdint>
#include <vector>

// The oracle. Naive attention over dense keys and values in double precision, written to be read:
// no pages, no blocking, no threads. Tests, benchmarks and examples compare with it.
namespace seqattn::ref {

struct Options {
  bool causal = true;
  int window_left = -1;
  double sm_scale = 1;
  double logits_soft_cap = 0;
};

// One row (one sequence of a batch), all heads.
struct Row {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int head_dim_v = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  std::vector<double> q;            // [q_len, num_qo_heads, head_dim]
  std::vector<double> k;            // [kv_len, num_kv_heads, head_dim]
  std::vector<double> v;            // [kv_len, num_kv_heads, head_dim_v]
  std::vector<std::uint8_t> mask;   // empty, or [q_len, kv_len]
  std::vector<double> sink_logits;  // empty, or [num_qo_heads]
  // > 0: a query sees the last `window` tokens, its own included, and the first num_sink_tokens.
  std::int64_t window = 0;
  std::int64_t num_sink_tokens = 0;
};

struct Result {
  std::vector<double> out;  // [q_len, num_qo_heads, head_dim_v]
  std::vector<double> lse;  // [q_len, num_qo_heads], natural log
};

// O(q_len x kv_len x heads x head_dim).
Result attention(const Row& row, const Options& options);

}  // namespace seqattn::ref
