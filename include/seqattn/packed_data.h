#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "seqattn/export.h"
#include "seqattn/types.h"

namespace seqattn {

class PagePool;

// A batch as CSR arrays, the form that paged attention kernels read (FlashInfer's own):
//   kv_page_indices   int32 [total_pages]     the pages of row 0, then of row 1, ...
//   kv_page_indptr    int32 [batch_size + 1]  row i owns kv_page_indices[indptr[i] .. indptr[i +
//   1]) kv_last_page_len  int32 [batch_size]      tokens on the row's last page; 0 for a row
//   without pages
// The KV length of row i is (pages - 1) * page_size + kv_last_page_len[i], or 0 without pages.
//
// Immutable. `CacheDescriptor::pack_for_flashinfer` makes it; it can also be built from arrays of
// other systems. It is a snapshot: growing, truncating or releasing a sequence does not change it.
class SEQATTN_EXPORT FlashInferPackedData {
 public:
  FlashInferPackedData();  // no rows
  // Throws InvalidArgumentError unless indptr starts at 0, never falls, ends at the number of
  // indices; there is one last_page_len a row, positive where the row has pages and 0 where it has
  // none; and no page index is negative. Upper bounds depend on the pool and are checked where the
  // data is used. O(total_pages).
  FlashInferPackedData(std::vector<std::int32_t> kv_page_indices,
                       std::vector<std::int32_t> kv_page_indptr,
                       std::vector<std::int32_t> kv_last_page_len);

  std::span<const std::int32_t> kv_page_indices() const noexcept { return indices_; }
  std::span<const std::int32_t> kv_page_indptr() const noexcept { return indptr_; }
  std::span<const std::int32_t> kv_last_page_len() const noexcept { return last_page_len_; }
  std::int64_t batch_size() const noexcept {
    return static_cast<std::int64_t>(last_page_len_.size());
  }

  // The KV length of a row in tokens. Throws InvalidArgumentError for a row outside [0,
  // batch_size).
  std::int64_t kv_len(std::int64_t row, int page_size) const;

  // A copy for the given device. Throws UnsupportedError where this build has no such device.
  FlashInferPackedData to_device(Device device) const;

  // The pool whose descriptor packed this (PagePool::id), or 0 for arrays that the caller supplied.
  // Pages of packed data with a pool must be live there; those of foreign tables need only exist.
  std::uint64_t pool_id() const noexcept { return pool_id_; }

  std::string to_string() const;

 private:
  friend class CacheDescriptor;
  friend void check_packed(const PagePool& pool, const FlashInferPackedData& packed);
  std::vector<std::int32_t> indices_;
  std::vector<std::int32_t> indptr_;
  std::vector<std::int32_t> last_page_len_;
  std::uint64_t pool_id_ = 0;
  std::uint64_t pool_epoch_ = 0;  // PagePool::epoch when this was packed
};

}  // namespace seqattn
