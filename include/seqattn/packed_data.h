#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "seqattn/export.h"
#include "seqattn/types.h"

namespace seqattn {

class IndexBuffers;  // src/core/index_buffers.h
class PagePool;

// What bounds the keys of one row, in slots: a query sees the first `num_sink_tokens` and the last
// `window` ones, its own included. It sees no keys behind its own, by `causal`, as ever.
struct RowWindow {
  std::int64_t window = 0;  // 0: all
  std::int64_t num_sink_tokens = 0;
  std::int64_t num_dropped = 0;  // tokens between the sinks' pages and the rest, without slots
  // Of queries in front of this slot some keys have been dropped: they are refused.
  std::int64_t first_query = 0;
  friend constexpr bool operator==(const RowWindow&, const RowWindow&) = default;
};

// What rows may have besides their tables. A descriptor fills it in where it is needed.
struct RowColumns {
  std::vector<RowWindow> windows = {};  // [batch_size], or empty: no row has one
  // [batch_size], of each row the parents of the draft tokens in its last slots
  // (CacheDescriptor::allocate_tree), or empty: no row has a tree
  std::vector<std::vector<std::int32_t>> trees = {};
  friend bool operator==(const RowColumns&, const RowColumns&) = default;
};

// A batch as CSR arrays, the form that paged attention kernels read (FlashInfer's own):
//
// - kv_page_indices, int32 [total_pages]: the pages of row 0, then those of row 1, and so on;
// - kv_page_indptr, int32 [batch_size + 1]: row i owns the entries from indptr[i] to indptr[i + 1];
// - kv_last_page_len, int32 [batch_size]: tokens on the row's last page; 0 for a row without pages.
//
// The KV length of row i is (pages - 1) * page_size + kv_last_page_len[i], or 0 without pages.
//
// Immutable; copies share their arrays. `CacheDescriptor::pack_for_flashinfer` makes it; it can
// also be built from arrays of other systems. It is a snapshot: growing, truncating or releasing a
// sequence does not change it.
class SEQATTN_EXPORT FlashInferPackedData {
 public:
  FlashInferPackedData();  // no rows
  // Throws InvalidArgumentError unless indptr starts at 0, never falls, ends at the number of
  // indices; there is one last_page_len a row, positive where the row has pages and 0 where it has
  // none; no page index is negative; and the columns are empty or have an entry a row, of windows
  // without negative numbers and of trees whose parents come first. Upper bounds depend on the pool
  // and are checked where the data is used. O(total_pages).
  FlashInferPackedData(std::vector<std::int32_t> kv_page_indices,
                       std::vector<std::int32_t> kv_page_indptr,
                       std::vector<std::int32_t> kv_last_page_len, RowColumns columns = {});
  // No moves: one that is moved from would have no arrays.
  FlashInferPackedData(const FlashInferPackedData&) = default;
  FlashInferPackedData& operator=(const FlashInferPackedData&) = default;

  std::span<const std::int32_t> kv_page_indices() const noexcept { return arrays_->indices; }
  std::span<const std::int32_t> kv_page_indptr() const noexcept { return arrays_->indptr; }
  std::span<const std::int32_t> kv_last_page_len() const noexcept { return arrays_->last_page_len; }
  std::int64_t batch_size() const noexcept {
    return static_cast<std::int64_t>(arrays_->last_page_len.size());
  }

  // The KV length of a row in tokens. Throws InvalidArgumentError for a row outside [0,
  // batch_size).
  std::int64_t kv_len(std::int64_t row, int page_size) const;

  const RowColumns& columns() const noexcept { return arrays_->columns; }

  // The same batch for the given device. Throws UnsupportedError where this build has no such
  // device.
  FlashInferPackedData to_device(Device device) const;

  // The pool whose descriptor packed this (PagePool::id), or 0 for arrays that the caller supplied.
  // Pages of packed data with a pool must be live there; those of foreign tables need only exist.
  std::uint64_t pool_id() const noexcept { return arrays_->pool_id; }

  std::string to_string() const;

 private:
  friend class CacheDescriptor;
  friend void check_packed(const PagePool& pool, const FlashInferPackedData& packed);
  friend void check_not_freed(const PagePool& pool, const FlashInferPackedData& packed);
  struct Arrays {
    std::vector<std::int32_t> indices;
    std::vector<std::int32_t> indptr = {0};
    std::vector<std::int32_t> last_page_len;
    std::uint64_t pool_id = 0;
    std::uint64_t pool_epoch = 0;  // PagePool::epoch when this was packed
    // PagePool::generation of each page when this was packed; empty in release builds.
    std::vector<std::uint32_t> generations = {};
    std::shared_ptr<IndexBuffers> buffers = {};  // where the memory of `indices` goes back to
    RowColumns columns = {};
  };
  struct SharedArrays;
  explicit FlashInferPackedData(Arrays arrays);
  std::shared_ptr<const Arrays> arrays_;
};

}  // namespace seqattn
