#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "conformance.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn::testing {

// Sequences with windows, trees and picked tokens, beside everything they have ever held: each step
// of attention is compared with the oracle over the whole history, of which the oracle, not the
// cache, leaves out what a window hides. A draft token is a row of its own to the oracle: that of
// its path alone. Storage that nobody wrote is NaN.
class LivingSequences {
 public:
  static constexpr int kLayers = 2;

  // One row of a step: first so many tokens of the sequence, then a tree.
  struct Request {
    SeqId id = 0;
    std::int64_t num_tokens = 0;
    std::vector<std::int32_t> parents = {};
  };

  LivingSequences(const AttentionCase& attention_case, Device device, std::int64_t num_pages,
                  std::mt19937_64& random, SlidingWindow window = {});

  // Allocates, plans, and in every layer appends and attends. mask_density >= 0: under a mask that
  // lets through that share of the keys, for sequences that have dropped none.
  void step(const std::vector<Request>& requests, double mask_density = -1, bool attends = true);
  // Without attention, which takes the oracle long.
  void append_only(SeqId id, std::int64_t num_tokens) { step({{id, num_tokens}}, -1, false); }
  void commit_tree(SeqId id, const std::vector<std::int32_t>& path);
  void keep(SeqId id, const std::vector<std::int64_t>& slots);
  void fork(SeqId parent, SeqId child, std::int64_t num_tokens);
  void truncate(SeqId id, std::int64_t num_tokens);
  void set_window(SeqId id, SlidingWindow window);
  void release(SeqId id);

  CacheDescriptor& descriptor() { return *descriptor_; }

 private:
  struct Token {
    std::vector<double> key[kLayers];    // [num_kv_heads, head_dim]
    std::vector<double> value[kLayers];  // [num_kv_heads, head_dim_v]
  };
  struct History {
    std::vector<Token> tokens;  // all since the start, or since `keep`
    std::vector<Token> tree;
    SlidingWindow window;
    std::int64_t offset = 0;  // of positions to tokens
  };
  struct Seen {
    const Token* token;
    std::int64_t slot;  // where nothing was dropped
  };

  Token random_token();
  void append(const std::vector<Request>& requests, int layer);
  // The last num_queries of these keys ask; `mask` is that of the first of them.
  ref::Row row_of(const History& history, const std::vector<Seen>& keys, std::int64_t num_queries,
                  int layer, const std::uint8_t* mask, std::int64_t kv_len);
  std::vector<ref::Row> rows_of(const std::vector<Request>& requests, int layer,
                                const std::vector<std::uint8_t>& mask);

  AttentionCase case_;
  std::mt19937_64& random_;
  std::unique_ptr<PagedKVCacheManager> manager_;
  std::unique_ptr<CacheDescriptor> descriptor_;
  std::unique_ptr<BatchAttention> attention_;
  std::map<SeqId, History> histories_;
};

// Types, layouts and page sizes that such sequences are tried with.
std::vector<AttentionCase> living_cases();

}  // namespace seqattn::testing
