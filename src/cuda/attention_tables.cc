#include "attention_tables.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "cuda_check.h"
#include "message.h"
#include "seqattn/error.h"
#include "table_kernels.h"

namespace seqattn {

AttentionTables::AttentionTables(const ScheduleOptions& options, bool overlaps_launches)
    : options_(options),
      overlaps_launches_(overlaps_launches),
      keeps_sequences_(seqattn::keeps_sequences(options)) {}

void AttentionTables::upload(const AttentionPlan& plan, Schedule schedule, cudaStream_t stream) {
  const std::size_t bytes = schedule.used_bytes();
  Staging::Slot* const slot = uploads_.take(bytes);
  write_schedule(options_, plan, schedule, slot->host);
  try {
    // From here on the tables of the plan before may be gone.
    schedule_.reset();
    kept_rows_ = -1;
    memory_.reserve(schedule.layout.bytes, stream);
    SEQATTN_CUDA_CHECK(
        cudaMemcpyAsync(memory_.data(), slot->host, bytes, cudaMemcpyHostToDevice, stream));
  } catch (...) {
    uploads_.release(slot, stream);
    throw;
  }
  uploads_.release(slot, stream);
  schedule_ = std::move(schedule);
}

bool AttentionTables::can_keep(const SequenceBatch& batch) const noexcept {
  return keeps_sequences_ && kept_tables_fit(options_, static_cast<std::int64_t>(batch.rows.size()),
                                             batch.totals.num_pages);
}

void AttentionTables::keep(const SequenceBatch& batch, cudaStream_t stream) {
  const auto num_rows = static_cast<std::int64_t>(batch.rows.size());
  const std::int64_t room =
      TableKeeper::least_room(num_rows, batch.totals.num_pages) <= keeper_.room()
          ? keeper_.room()
          : TableKeeper::room_for(num_rows, batch.totals.num_pages);
  Schedule schedule = kept_schedule(options_, batch, room);
  const ScheduleLayout& layout = schedule.layout;
  if (kept_rows_ != layout.size.rows || keeper_.room() != layout.size.pages ||
      layout.bytes > memory_.num_bytes()) {
    keeper_.forget(layout.size.pages);
  }
  kept_rows_ = -1;  // until the device has what the keeper knows
  const TableUpdate& update = keeper_.update(batch);
  schedule_.reset();
  memory_.reserve(layout.bytes, stream);
  const auto ints = [&](std::size_t offset) { return writable<std::int32_t>(offset); };
  launch_update_tables({.max_rows = static_cast<std::int32_t>(layout.size.rows),
                        .page_indices = ints(layout.page_indices),
                        .page_begin = ints(layout.page_indptr),
                        .planned_rows = writable<decode::PlannedRow>(layout.planned_rows),
                        .planned_items = writable<decode::PlannedItems>(layout.planned_items),
                        .q_position = ints(layout.q_position),
                        .q_indptr = ints(layout.q_indptr),
                        .item_indptr = ints(layout.item_indptr),
                        .num_rows = ints(layout.totals) + kTotalRows,
                        .num_tokens = ints(layout.totals) + kTotalTokens,
                        .run_limit = ints(layout.totals) + kRunLimit},
                       update, std::min(options_.shape.window_left, decode::kMaxKeys),
                       chunk_rule_of(options_.shape), options_.decode_blocks, updates_,
                       overlaps_launches_, stream);
  kept_rows_ = layout.size.rows;
  schedule_ = std::move(schedule);
}

const Schedule& AttentionTables::schedule() const {
  require(
      schedule_.has_value(),
      "attention: the last call of plan failed on the device; expected one that succeeds first");
  return *schedule_;
}

}  // namespace seqattn
