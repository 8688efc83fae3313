#include "service.h"

#include <algorithm>

namespace seqattn::bench {

std::vector<PageId> scattered_pages(std::int64_t num_pages) {
  const auto mask = static_cast<std::uint32_t>(num_pages - 1);
  std::vector<PageId> pages(static_cast<std::size_t>(num_pages));
  std::uint32_t page = 0;
  for (PageId& id : pages) {
    page = (page * 1664525u + 1013904223u) & mask;  // of full period: each page once
    id = static_cast<PageId>(page);
  }
  return pages;
}

std::vector<SeqId> seq_ids(int count, int first) {
  std::vector<SeqId> ids;
  for (int i = first; i < first + count; ++i) {
    ids.push_back(static_cast<SeqId>((static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u) >> 1));
  }
  return ids;
}

Service::Service(std::int64_t num_pages) : pool(num_pages, kPageSize), sequences(pool) {
  const std::int64_t num_tokens = num_pages * kPageSize;
  sequences.allocate({0}, {num_tokens});
  sequences.attach(1, scattered_pages(num_pages), num_tokens);
  sequences.release({0, 1});
}

PackedBatch::PackedBatch() : Service(2 * kNumPages), ids(seq_ids(kNumSequences)) {
  std::vector<std::int64_t> lengths;
  lengths.reserve(kNumSequences);
  for (int i = 0; i < kNumSequences; ++i) lengths.push_back(kPagesEach * kPageSize - i % kPageSize);
  sequences.allocate(ids, lengths);
}

bool PackedBatch::is_right(const FlashInferPackedData& packed) const {
  std::vector<PageId> pages = scattered_pages(pool.num_pages());
  pages.resize(kNumPages);
  bool right = std::ranges::equal(packed.kv_page_indices(), pages) &&
               packed.kv_page_indptr().size() == kNumSequences + 1 &&
               packed.kv_last_page_len().size() == kNumSequences;
  for (int i = 0; right && i < kNumSequences; ++i) {
    right = packed.kv_page_indptr()[i + 1] == (i + 1) * kPagesEach &&
            packed.kv_last_page_len()[i] == kPageSize - i % kPageSize;
  }
  return right;
}

std::uint32_t checksum(const FlashInferPackedData& packed) {
  std::uint32_t sum = 0;
  for (const auto array :
       {packed.kv_page_indices(), packed.kv_page_indptr(), packed.kv_last_page_len()}) {
    for (const std::int32_t value : array) sum = sum * 31 + static_cast<std::uint32_t>(value);
  }
  return sum;
}

}  // namespace seqattn::bench
