#pragma once

#include <cstdint>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/page_pool.h"

// The state that bench/bookkeeping.cc starts from; bench/original_algorithm.py makes the same.
namespace seqattn::bench {

inline constexpr int kPageSize = 16;
inline constexpr int kNumSequences = 256;  // of the batch that is packed
inline constexpr int kPagesEach = 512;
inline constexpr std::int64_t kNumPages = std::int64_t{kNumSequences} * kPagesEach;

// The order in which a Service hands out its pages: as after hours of service, neighbours in a
// page table are far apart. REQUIRES a power of two.
std::vector<PageId> scattered_pages(std::int64_t num_pages);

// `count` ids from number `first` on, of a sequence of ids that no hash table gets for free.
std::vector<SeqId> seq_ids(int count, int first = 0);

struct Service {
  explicit Service(std::int64_t num_pages);  // a power of two
  PagePool pool;
  CacheDescriptor sequences;
};

// The batch that is packed: row i has kPagesEach pages, the last one short by i % kPageSize.
struct PackedBatch : Service {
  PackedBatch();
  bool is_right(const FlashInferPackedData& packed) const;
  std::vector<SeqId> ids;
};

// A number for the arrays, to be compared with the Python side's.
std::uint32_t checksum(const FlashInferPackedData& packed);

}  // namespace seqattn::bench
