#include "packed_check.h"

#include "message.h"

namespace seqattn {

void check_packed(const PagePool& pool, const FlashInferPackedData& packed) {
  const bool own = packed.pool_id() != 0;
  require(!own || packed.pool_id() == pool.id(),
          "packed data: packed by a descriptor of another pool; expected one of the pool in use");
  const auto counts = pool.ref_counts();
  const auto pages = packed.kv_page_indices();
  for (std::size_t i = 0; i < pages.size(); ++i) {
    require(pages[i] >= 0 && pages[i] < pool.num_pages(), "kv_page_indices: got page ", pages[i],
            " at entry ", i, "; expected 0 <= page < ", pool.num_pages());
    require(!own || counts[static_cast<std::size_t>(pages[i])] > 0, "kv_page_indices: page ",
            pages[i], " at entry ", i, " is free; pack the batch again after a release");
  }
  const auto lengths = packed.kv_last_page_len();
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    require(lengths[row] <= pool.page_size(), "kv_last_page_len: got ", lengths[row], " for row ",
            row, "; expected at most page_size, ", pool.page_size());
  }
}

}  // namespace seqattn
