#pragma once

#include <cstdint>
#include <string>

#include "seqattn/export.h"
#include "seqattn/types.h"

namespace seqattn {

// Ids for per-head sequences: head h of sequence s becomes s * num_kv_heads + h, which is different
// for every (s, h). Keep head ids in a descriptor of their own, apart from plain sequence ids.
class SEQATTN_EXPORT HeadIDGenerator {
 public:
  // Throws InvalidArgumentError unless num_kv_heads >= 1.
  explicit HeadIDGenerator(std::int64_t num_kv_heads);

  // Throws InvalidArgumentError unless 0 <= head_idx < num_kv_heads and the id fits int64.
  SeqId get_head_id(SeqId seq_id, std::int64_t head_idx) const;
  std::int64_t num_kv_heads() const noexcept { return num_kv_heads_; }
  std::string to_string() const;  // "HeadIDGenerator(num_kv_heads=8)"

 private:
  std::int64_t num_kv_heads_;
};

}  // namespace seqattn
