#include "packed_check.h"

#include "message.h"

namespace seqattn {
namespace {

// Whether every page is in [0, num_pages). Without a branch a page, so that compilers vectorise it:
// the sign bit of a negative page is set, and that of last - page where the page is too large.
bool are_in_range(std::span<const PageId> pages, std::int64_t num_pages) noexcept {
  const auto last = static_cast<std::uint32_t>(num_pages - 1);
  std::uint32_t signs = 0;
  for (const PageId page : pages) {
    const auto id = static_cast<std::uint32_t>(page);
    signs |= id | (last - id);
  }
  return signs >> 31 == 0;
}

bool are_live(std::span<const PageId> pages, std::span<const std::int32_t> counts) noexcept {
  for (const PageId page : pages) {
    if (static_cast<std::uint32_t>(page) >= counts.size() || counts[page] == 0) return false;
  }
  return true;
}

}  // namespace

void check_packed(const PagePool& pool, const FlashInferPackedData& packed) {
  const bool own = packed.pool_id() != 0;
  require(!own || packed.pool_id() == pool.id(),
          "packed data: packed by a descriptor of another pool; expected one of the pool in use");
  // A descriptor's tables are right when it packs them, and stay so while no page is freed.
  const std::uint64_t epoch = packed.arrays_->pool_epoch;
  if (own && epoch != 0 && epoch == pool.epoch()) return;
  const auto counts = pool.ref_counts();
  const auto pages = packed.kv_page_indices();
  if (!(own ? are_live(pages, counts) : are_in_range(pages, pool.num_pages()))) {
    for (std::size_t i = 0; i < pages.size(); ++i) {
      require(pages[i] >= 0 && pages[i] < pool.num_pages(), "kv_page_indices: got page ", pages[i],
              " at entry ", i, "; expected 0 <= page < ", pool.num_pages());
      require(!own || counts[static_cast<std::size_t>(pages[i])] > 0, "kv_page_indices: page ",
              pages[i], " at entry ", i, " is free; pack the batch again after a release");
    }
  }
  check_not_freed(pool, packed);
  const auto lengths = packed.kv_last_page_len();
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    require(lengths[row] <= pool.page_size(), "kv_last_page_len: got ", lengths[row], " for row ",
            row, "; expected at most page_size, ", pool.page_size());
  }
}

void check_not_freed(const PagePool& pool, const FlashInferPackedData& packed) {
  const std::vector<std::uint32_t>& generations = packed.arrays_->generations;
  const auto pages = packed.kv_page_indices();
  for (std::size_t i = 0; i < generations.size(); ++i) {
    require(pool.generation(pages[i]) == generations[i], "kv_page_indices: page ", pages[i],
            " at entry ", i,
            " was freed after the batch was packed; expected pages that live: pack it again, and "
            "plan again");
  }
}

}  // namespace seqattn
