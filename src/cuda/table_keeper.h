#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "attention_plan.h"

namespace seqattn {

// What brings the tables on a device up to date with a batch; table_kernels.h applies it.
struct TableUpdate {
  std::int32_t num_rows = 0;
  std::int32_t num_runs = 0;
  std::int32_t q_len = 0;  // of every row; -1: they differ
  // page_begin [num_rows]: where the row's pages begin; kv_len [num_rows]; q_len [num_rows], where
  // they differ; runs [num_runs, 3]: place, count, and where among `pages` they begin; pages.
  std::vector<std::int32_t> words;
};

// The page tables of sequences that lie on a device from batch to batch, each in a region of one
// array with room to grow. A table that has only grown costs its new entries. Host code without
// CUDA: it knows what the device has, and says what it lacks.
class TableKeeper {
 public:
  // Entries in which so many rows with so many pages fit when they begin anew; and in which they
  // then grow for a while.
  static constexpr std::int64_t least_room(std::int64_t num_rows, std::int64_t num_pages) noexcept {
    return num_pages + num_pages / kShareToGrow + kLeastToGrow * num_rows;
  }
  static constexpr std::int64_t room_for(std::int64_t num_rows, std::int64_t num_pages) noexcept {
    return 2 * least_room(num_rows, num_pages);
  }

  // The device has nothing: an array of so many entries, of any content.
  void forget(std::int64_t room);
  std::int64_t room() const noexcept { return room_; }

  // The update from the batch before to this one; good until the next call. When there is no more
  // room behind the regions, all begin anew. REQUIRES least_room for the batch.
  const TableUpdate& update(const SequenceBatch& batch);

 private:
  struct Region {
    std::int32_t begin = 0, capacity = 0;
    std::int32_t num_pages = 0;  // that the device has
  };
  struct Recent {
    std::uint64_t version = 0;
    std::size_t region = 0;
  };
  static constexpr std::int64_t kShareToGrow = 4, kLeastToGrow = 16;

  bool try_update(const SequenceBatch& batch);
  // Null where there is no room. Good until the next call.
  Region* region_of(const SequenceRow& row, Recent& recent);

  std::int64_t room_ = 0;
  std::int64_t end_ = 0;  // of the regions
  std::vector<Region> regions_;
  std::unordered_map<std::uint64_t, std::size_t> index_of_version_;  // of tables, in regions_
  std::vector<Recent> recent_;  // of the rows before: most stay where they are
  TableUpdate update_;
  std::vector<std::int32_t> runs_, pages_;
};

}  // namespace seqattn
