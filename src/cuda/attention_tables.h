#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "attention_schedule.h"
#include "device_memory.h"
#include "table_keeper.h"

namespace seqattn {

// The tables of the planned batch on the device: one block of memory, laid out by a schedule. They
// come with a packed batch as a whole, or are kept for sequences whose rows are all of decode, and
// brought up to date.
class AttentionTables {
 public:
  AttentionTables(const ScheduleOptions& options, bool overlaps_launches);

  // Makes room for such a batch: the largest of a capacity. Throws BackendError.
  void reserve(const Schedule& schedule, cudaStream_t stream) {
    memory_.reserve(schedule.layout.bytes, stream);
  }
  // Both take the batch that runs are to come for. After a BackendError there is none.
  void upload(const AttentionPlan& plan, Schedule schedule, cudaStream_t stream);
  // Whether sequences may be kept at all; whether there may be room for these.
  bool keeps_sequences() const noexcept { return keeps_sequences_; }
  bool can_keep(const SequenceBatch& batch) const noexcept;
  // REQUIRES can_keep, and rows that are all of decode.
  void keep(const SequenceBatch& batch, cudaStream_t stream);

  void drop() noexcept { schedule_.reset(), kept_rows_ = -1; }  // there is no batch

  // Of the planned batch. Throws InvalidArgumentError where the last plan failed on the device.
  const Schedule& schedule() const;
  bool fixed_size() const noexcept { return options_.fixed_size(); }
  template <class T>
  const T* at(std::size_t offset) const {
    return writable<T>(offset);
  }
  const std::int32_t* ints(std::size_t offset) const { return at<std::int32_t>(offset); }
  // For kernels whose launch is fixed; else null.
  const std::int32_t* total(Total which) const {
    return fixed_size() ? ints(schedule_->layout.totals) + which : nullptr;
  }

 private:
  template <class T>
  T* writable(std::size_t offset) const {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }

  ScheduleOptions options_;
  bool overlaps_launches_;  // launch.h
  bool keeps_sequences_ = false;
  std::optional<Schedule> schedule_;
  DeviceBuffer memory_;
  Staging uploads_{/*wants_device=*/false};
  Staging updates_{/*wants_device=*/true};
  TableKeeper keeper_;
  std::int64_t kept_rows_ = -1;  // that there is room for in the tables kept; -1: none are kept
};

}  // namespace seqattn
