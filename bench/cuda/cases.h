#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace seqattn::bench {

struct RowLengths {
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;  // counts the queries' tokens
};

enum class Group { kAppend, kDecode, kPrefill };

// One case: a batch, and what is expected of it (0: nothing). bfloat16, also where the cache is of
// 8 bits; pages of 16.
struct CaseSpec {
  Group group = Group::kDecode;
  std::string name;
  int num_qo_heads = 32;
  int num_kv_heads = 8;
  std::vector<RowLengths> rows;
  int head_dim = 128;
  bool is_hnd = false;
  bool is_float8 = false;          // the cache: e4m3, all scales 1
  bool scales_per_token = false;   // of 8 bits
  double least_of_ceiling = 0;     // of the memory's: share
  double least_of_flashinfer = 0;  // speed over FlashInfer's
  double most_us = 0;              // the time; 0: no goal

  std::string full_name() const;  // "decode/1x32k", "decode/(8,1)/1x32k"
  std::int64_t num_q_tokens() const;
  std::int64_t num_kv_tokens() const;
  std::int64_t element_bytes() const { return is_float8 ? 1 : 2; }  // of the cache
  double kv_bytes() const;      // of keys and values without scales
  double append_bytes() const;  // read and written for the new tokens
  double causal_flops() const;
  // Whether FlashInfer does the same, as peer.h has it.
  bool has_peer() const {
    return group == Group::kAppend   ? !is_float8
           : group == Group::kDecode ? !scales_per_token
                                     : head_dim == 128 && !is_hnd && !is_float8;
  }
};

std::string to_string(Group group);

// The cases of the benchmark; `quick` keeps a few small ones.
std::vector<CaseSpec> all_cases(bool quick);

}  // namespace seqattn::bench
