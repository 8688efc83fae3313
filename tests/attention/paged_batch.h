#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "attention_case.h"
#include "reference_attention.h"
#include "seqattn/packed_data.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "tensor.h"

namespace seqattn::testing {

// What pages hold where no row has a token.
enum class Unused { kNaN, kInfinity, kMixed };

struct Placement {
  Unused unused = Unused::kNaN;
  bool with_gaps = false;         // between slots, tokens, heads and pages of the cache
  bool values_with_gaps = false;  // of the values alone
  int spare_pages = 5;            // that no row holds
};

// A paged cache that holds the keys and values of some rows, and the table that finds them. Pages
// are dealt out in random order, between pages that nobody uses; everything that is not a token of
// a row is NaN or infinite. The caches are the test's own memory, written as a whole.
class PagedBatch {
 public:
  PagedBatch(const AttentionCase& attention_case, const std::vector<ref::Row>& rows, Device device,
             std::mt19937_64& random, const Placement& placement = {});

  PagedKVCacheManager& manager() const { return *manager_; }
  const FlashInferPackedData& packed() const { return packed_; }
  std::vector<std::byte> key_bytes() const { return keys_.bytes(); }
  std::vector<std::byte> value_bytes() const { return values_.bytes(); }

 private:
  Tensor keys_;
  Tensor values_;
  Tensor key_scales_, value_scales_;  // of tokens, where the case has them
  FlashInferPackedData packed_;
  std::unique_ptr<PagedKVCacheManager> manager_;
};

// The table of rows of such lengths over pages [0, num_pages) in random order.
FlashInferPackedData random_table(const std::vector<std::int64_t>& kv_lens, int page_size,
                                  std::int64_t num_pages, std::mt19937_64& random);

}  // namespace seqattn::testing
