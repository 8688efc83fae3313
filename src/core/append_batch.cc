#include "append_batch.h"

#include <bit>
#include <cstddef>

#include "message.h"

namespace seqattn {
namespace {

// Pages by open addressing: a batch writes few pages of many, so that neither a bit for each page
// of the pool nor a sort is worth its time.
class PageSet {
 public:
  explicit PageSet(std::int64_t max_size)
      : slots_(std::bit_ceil(2 * static_cast<std::size_t>(max_size) + 1), kEmpty) {}

  // False when the page was there already.
  bool insert(PageId page) noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = (static_cast<std::uint32_t>(page) * 0x9e3779b1u) & mask;
    while (slots_[i] != kEmpty && slots_[i] != page) i = (i + 1) & mask;
    if (slots_[i] == page) return false;
    slots_[i] = page;
    return true;
  }

 private:
  static constexpr PageId kEmpty = -1;
  std::vector<PageId> slots_;
};

std::span<const PageId> written_pages(const TokenRange& range, int page_size) noexcept {
  const std::int64_t first = range.first / page_size;
  const std::int64_t last = (range.first + range.count - 1) / page_size;
  return {range.pages + first, static_cast<std::size_t>(last - first + 1)};
}

// Pages to write besides those in `written`, which they join.
void check_to_write(const PagePool& pool, PageIds pages, bool may_be_free, PageSet& written) {
  const auto counts = pool.ref_counts();
  for (const PageId page : pages) {
    const std::int32_t count = counts[static_cast<std::size_t>(page)];
    require(count <= 1, "append: page ", page, " has ", count,
            " references; expected 1: append before sharing");
    require(count == 1 || may_be_free, "append: page ", page,
            " is free; expected a page in use: pack the batch again after a release");
    require(!pool.is_cached(page), "append: page ", page,
            " is in a prefix cache; expected one that a sequence alone holds: a batch ends with "
            "the release of its sequences, so pack again");
    require(written.insert(page), "append: page ", page,
            " would be written twice; expected a row to have its own pages to write");
  }
}

}  // namespace

std::int64_t num_new_tokens(const AppendBatch& batch) noexcept {
  std::int64_t sum = 0;
  for (const AppendRow& row : batch.rows) sum += row.num_new;
  return sum;
}

std::vector<TokenRange> plan_append(const PagePool& pool, const AppendBatch& batch) {
  std::vector<TokenRange> ranges;
  ranges.reserve(batch.rows.size());
  std::int64_t num_written = 0, input_row = 0;
  for (std::size_t i = 0; i < batch.rows.size(); ++i) {
    const AppendRow& row = batch.rows[i];
    require(row.num_new >= 0 && row.num_new <= row.kv_len, "append: got ", row.num_new,
            " new tokens for row ", i, " of length ", row.kv_len,
            "; expected no more than the length, which counts them: allocate, then pack, first");
    if (row.num_new == 0) continue;
    ranges.push_back({.pages = batch.page_indices.data() + row.page_begin,
                      .first = row.kv_len - row.num_new,
                      .count = row.num_new,
                      .row = input_row});
    input_row += row.num_new;
    num_written += static_cast<std::int64_t>(written_pages(ranges.back(), pool.page_size()).size());
  }
  PageSet written(num_written);
  for (const TokenRange& range : ranges) {
    check_to_write(pool, written_pages(range, pool.page_size()), batch.foreign, written);
  }
  return ranges;
}

void check_pages_to_write(const PagePool& pool, PageIds pages) {
  PageSet written(static_cast<std::int64_t>(pages.size()));
  check_to_write(pool, pages, /*may_be_free=*/false, written);
}

}  // namespace seqattn
