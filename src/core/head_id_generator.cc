#include "seqattn/head_id_generator.h"

#include "message.h"

namespace seqattn {

HeadIDGenerator::HeadIDGenerator(std::int64_t num_kv_heads) : num_kv_heads_(num_kv_heads) {
  require(num_kv_heads >= 1, "num_kv_heads: got ", num_kv_heads, "; expected at least 1");
}

SeqId HeadIDGenerator::get_head_id(SeqId seq_id, std::int64_t head_idx) const {
  require(head_idx >= 0 && head_idx < num_kv_heads_, "head_idx: got ", head_idx,
          "; expected 0 <= head_idx < ", num_kv_heads_);
  SeqId id = 0;
  const bool overflow = __builtin_mul_overflow(seq_id, num_kv_heads_, &id) ||
                        __builtin_add_overflow(id, head_idx, &id);
  require(!overflow, "seq_id: got ", seq_id, "; its head ids do not fit int64 with ", num_kv_heads_,
          " KV heads");
  return id;
}

std::string HeadIDGenerator::to_string() const {
  return concat("HeadIDGenerator(num_kv_heads=", num_kv_heads_, ")");
}

}  // namespace seqattn
