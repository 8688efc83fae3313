#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "reference_attention.h"
#include "seqattn/batch_attention.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/types.h"

namespace seqattn::testing {

struct RowLengths {
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
};

// One attention call in words: what it computes, on which shapes and types. It says nothing of the
// device, nor of where pages lie.
struct AttentionCase {
  std::string name;
  int num_qo_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 32;
  int head_dim_v = 0;  // 0 = head_dim
  int page_size = 4;
  KVLayout kv_layout = KVLayout::kNHD;
  DType kv_dtype = DType::kFloat32;
  KVScaling kv_scaling = KVScaling::kFixed;  // of 8 bits
  DType q_dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
  // Prefill, chunked prefill, decode, nothing new, an empty row, a single token.
  std::vector<RowLengths> rows = {{9, 9}, {6, 11}, {1, 14}, {0, 7}, {0, 0}, {1, 1}};

  bool causal = true;
  int window_left = -1;
  double sm_scale = 0;  // 0 = 1 / sqrt(head_dim)
  double logits_soft_cap = 0;
  double mask_density = -1;  // the share of keys that a random mask lets through; < 0: no mask
  bool sinks = false;

  bool bfloat16_products = false;

  double key_magnitude = 1;  // standard deviation of the elements of keys

  int dim_v() const { return head_dim_v == 0 ? head_dim : head_dim_v; }
  std::int64_t num_q_tokens() const;
  // sm_scale as the library holds it, in float.
  double scale() const;

  // Scales of a cache of 8 bits: fixed ones, one a KV head, of keys or of values; or, of elements
  // [tokens, num_kv_heads, dim] that a cache holds or is to hold, one for each token and head.
  std::vector<float> fixed_scales(bool of_values) const;
  std::vector<float> token_scales(const std::vector<double>& elements, int dim,
                                  bool of_values) const;
  // What a cache holds of such elements: rounded to its type, and saturated where it has scales.
  void store(std::vector<double>& elements, int dim, bool of_values) const;

  KVCacheConfig cache_config(std::int64_t num_pages, Device device) const;
  AttentionOptions options(int num_threads = 0) const;
  ref::Options reference_options() const;
};

void PrintTo(const AttentionCase& attention_case, std::ostream* out);

// A row of random queries, keys, values and, where the case has one, mask, rounded to the types of
// the case; sinks, where there are any, are for the caller to share between the rows.
ref::Row random_row(const AttentionCase& attention_case, RowLengths lengths,
                    std::mt19937_64& random);

// The rows of a case, all with the same sinks.
std::vector<ref::Row> random_rows(const AttentionCase& attention_case, std::mt19937_64& random);

// [0, q_len of row 0, that of rows 0 and 1, ...].
std::vector<std::int32_t> qo_indptr_of(const std::vector<ref::Row>& rows);

// The masks of the rows, one after the other; empty without masks.
std::optional<std::vector<std::uint8_t>> mask_of(const std::vector<ref::Row>& rows);

// How far a result in float32 may be from that in exact arithmetic.
struct Tolerance {
  double absolute = 0;  // from arithmetic
  double relative = 0;  // from rounding the result to its type
  double at(double expected) const;
};

// The arithmetic of a row: a dot product of head_dim terms, scaled and perhaps capped, an
// exponential, a sum of kv_len terms, each off by a few epsilons of float32. Errors of sums grow
// with the square root of the length, since their signs are random.
Tolerance out_tolerance(const AttentionCase& attention_case, const ref::Row& row);
Tolerance lse_tolerance(const AttentionCase& attention_case, const ref::Row& row);

// Half the distance from 1 to the next number of that type.
double epsilon(DType dtype);

}  // namespace seqattn::testing
