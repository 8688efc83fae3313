#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention_plan.h"
#include "decode/decode_items.h"
#include "fa3_tile.h"
#include "row_policy.h"
#include "seqattn/batch_attention.h"

// How a batch becomes kernel launches. Host code without CUDA: everything in here is a pure
// function of the batch's rows and of what the build and the device have.
namespace seqattn {

// How many of everything a batch takes.
struct ScheduleCounts {
  std::int64_t rows = 0;
  std::int64_t pages = 0;
  std::int64_t small_tokens = 0;  // query tokens of small rows
  // [whether the row has a mask][tile]
  std::array<std::array<std::int64_t, kNumTiles>, 2> small_blocks = {};
  std::int64_t partials = 0;      // (query token, chunk) pairs of small rows
  std::int64_t decode_items = 0;  // of rows of our own kernel, a KV head
  // By which they are counted: decode_runs.h. Of tables that are kept the device chooses it.
  int run_limit = 0;
  std::int64_t decode_rows = 0;                // query rows of the one that has most of them
  std::int64_t wide_pages = 0;                 // of 8 bits, that other kernels read
  std::array<std::int64_t, 2> fa2_tiles = {};  // of large rows, by whether they have a mask
  std::int64_t fa3_as_fa2 = 0;                 // of fa3 rows, were FA2 to serve them
  std::int64_t fa3_tiles = 0;                  // a head
  std::int64_t mask_bytes = 0;

  std::int64_t large_tiles() const noexcept { return fa2_tiles[0] + fa2_tiles[1] + fa3_tiles; }
};

// One block of memory, laid out the same on the host and on the device: offsets in bytes.
struct ScheduleLayout {
  ScheduleCounts size;  // what there is room for
  struct Blocks {
    std::size_t row, q_tile, kv_chunk, chunk_size, is_valid;
  };
  std::size_t totals;  // int32 [kNumTotals], for kernels whose launch is fixed, and for decode
  // As in Fa2Batch; in tables that are kept page_indptr is where a row's pages begin, and no more.
  std::size_t page_indices, page_indptr, last_page_len, q_indptr;
  // decode::PlannedRow and PlannedItems [rows]: of decode's rows; of others nothing is written.
  std::size_t planned_rows, planned_items;
  std::size_t q_position;                              // [rows]: position of the first query
  std::size_t out_begin;                               // [rows]: see Fa2Batch
  std::size_t item_indptr;                             // [rows + 1], of decode::Batch
  std::size_t is_large;                                // bytes [rows]: 1 for rows of large and fa3
  std::size_t merge_token, merge_begin, merge_chunks;  // [small_tokens]
  std::array<std::array<Blocks, kNumTiles>, 2> small;  // [whether the row has a mask][tile]
  std::array<Blocks, 2> large;         // likewise; behind those without a mask, those of fa3 rows
  std::size_t fa3_tiles;               // Fa3Tile [fa3_tiles]
  std::size_t mask_bits, mask_indptr;  // of rows with a mask
  // A cache of 8 bits is read as it is by decode alone. For others its pages are widened, in the
  // order of a list: wide_sources [wide_pages] are those pages, and wide_indices [pages], in the
  // place of page_indices, where they stand in the list.
  std::size_t wide_sources, wide_indices;
  std::size_t bytes = 0;  // of it all; page_indices are the last
};

enum Total { kTotalRows, kTotalTokens, kTotalSmallTokens, kRunLimit, kNumTotals };

// What the launches of a plan need to know on the host.
struct Schedule {
  ScheduleCounts counts;
  ScheduleLayout layout;
  std::vector<Fa3Tile> fa3_tiles;        // costliest first
  std::vector<decode::Cut> decode_cuts;  // of the rows of decode, in their order
  std::int64_t num_q_tokens = 0;
  // Every row with queries is small and of one chunk, without a mask: partial result i is output
  // row i.
  bool one_chunk_each = false;
  // Bytes of the layout that a write fills: all but room for more pages.
  std::size_t used_bytes() const noexcept {
    return layout.page_indices + static_cast<std::size_t>(counts.pages) * sizeof(std::int32_t);
  }
};

// The longest row that a batch with a capacity may have.
std::int64_t most_captured_queries(const ScheduleOptions& options);

// How decode cuts a row of its path, for each KV head.
decode::Cut decode_cut(const AttentionShape& shape, std::int64_t q_len, std::int64_t kv_len);

// Counts and lays out. Throws UnsupportedError for a batch that the kernels' 32-bit indices do not
// hold or, with a capacity, for a row that is neither small nor of decode, or for a mask.
Schedule measure_schedule(const ScheduleOptions& options, const AttentionPlan& plan);

// Whether a device keeps tables of sequences: it has decode, and a capacity, if any, leaves no room
// for rows of another path.
bool keeps_sequences(const ScheduleOptions& options);
// Whether tables of so many sequences and pages are within what 32 bits count there.
bool kept_tables_fit(const ScheduleOptions& options, std::int64_t num_rows, std::int64_t num_pages);

// The schedule of a batch of sequences whose tables are kept, in which every size has room for
// more, so that the next one's is the same most of the time. The device counts the items;
// decode_items is what they may be at most. `table_room`: entries of page tables, where there is no
// capacity.
Schedule kept_schedule(const ScheduleOptions& options, const SequenceBatch& batch,
                       std::int64_t table_room);

decode::ChunkRule chunk_rule_of(const AttentionShape& shape);

// Writes every array of the layout into `memory`, aligned to 16 bytes. Cannot fail.
void write_schedule(const ScheduleOptions& options, const AttentionPlan& plan,
                    const Schedule& schedule, std::byte* memory);

}  // namespace seqattn
