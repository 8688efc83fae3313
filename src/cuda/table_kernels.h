#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "decode/decode_items.h"
#include "device_memory.h"
#include "table_keeper.h"

namespace seqattn {

// The tables of a batch in device memory, with room for max_rows rows.
struct DeviceTables {
  std::int32_t max_rows = 0;
  std::int32_t* page_indices = nullptr;
  std::int32_t* page_begin = nullptr;  // [max_rows]
  // [max_rows], written where a row has queries.
  decode::PlannedRow* planned_rows = nullptr;
  decode::PlannedItems* planned_items = nullptr;
  std::int32_t* q_position = nullptr;   // [max_rows]
  std::int32_t* q_indptr = nullptr;     // [max_rows + 1]
  std::int32_t* item_indptr = nullptr;  // [max_rows + 1]
  std::int32_t* num_rows = nullptr;
  std::int32_t* num_tokens = nullptr;
  std::int32_t* run_limit = nullptr;  // of decode, whose items are counted by it
};

// Applies the update: lengths, new entries of page tables, and the items of every row; rows behind
// the batch's have no queries. `num_blocks`: of decode, that run at once. A small one travels as
// the kernel's parameters, without a copy of its own; `staging` (with device memory) takes a large
// one. `overlaps`: launch.h. Throws BackendError.
void launch_update_tables(const DeviceTables& tables, const TableUpdate& update, int window_left,
                          const decode::ChunkRule& rule, int num_blocks, Staging& staging,
                          bool overlaps, cudaStream_t stream);

}  // namespace seqattn
