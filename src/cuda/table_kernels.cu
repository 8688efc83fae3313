#include <algorithm>
#include <cstddef>
#include <cstring>

#include "cuda_check.h"
#include "decode/decode_runs.h"
#include "launch.h"
#include "overlap.cuh"
#include "table_kernels.h"
#include "whole.cuh"

namespace seqattn {
namespace {

struct Header {
  std::int32_t num_rows, num_runs, q_len;
  int window_left, num_blocks;
  decode::ChunkRule rule;
};

struct Sums {
  std::int32_t queries = 0, items = 0;
  __device__ Sums operator+(Sums other) const {
    return {queries + other.queries, items + other.items};
  }
};

__device__ Sums from_lane_below(Sums sums, int distance) {
  return {__shfl_up_sync(~0u, sums.queries, distance), __shfl_up_sync(~0u, sums.items, distance)};
}

// The sums of the threads in front of this one, of a block. By all its threads.
template <int kWarps>
__device__ Sums sums_in_front(Sums own) {
  __shared__ Sums of_warps[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto scan = [lane](Sums sums) {
    for (int distance = 1; distance < 32; distance *= 2) {
      const Sums below = from_lane_below(sums, distance);
      if (lane >= distance) sums = sums + below;
    }
    return sums;
  };
  const Sums with_own = scan(own);
  if (lane == 31) of_warps[warp] = with_own;
  __syncthreads();
  if (warp == 0) {
    const Sums sums = scan(lane < kWarps ? of_warps[lane] : Sums{});
    if (lane < kWarps) of_warps[lane] = sums;
  }
  __syncthreads();
  Sums front = from_lane_below(with_own, 1);
  if (lane == 0) front = {};
  return warp == 0 ? front : front + of_warps[warp - 1];
}

// By all threads of a warp.
__device__ decode::BatchItems sum_of_warp(const decode::BatchItems& own) {
  return {__reduce_add_sync(~0u, own.items), __reduce_add_sync(~0u, own.results),
          __reduce_max_sync(~0u, own.longest)};
}

// Of a thread's rows: their tiles, and their items by each limit.
struct RowItems {
  std::int32_t num_tiles = 0;
  decode::BatchItems by_limit[decode::kNumRunLimits];
};

// The run limit of a batch (decode_runs.h), no runs of pages, of whose rows each thread has some.
// By all threads of a block.
template <int kWarps>
__device__ int run_limit_of(const RowItems& own, const Header& header) {
  constexpr int kLimits = decode::kNumRunLimits;
  static_assert(kLimits <= kWarps);
  __shared__ std::int32_t tiles_of_warps[kWarps];
  __shared__ decode::BatchItems of_warps[kLimits][kWarps];
  __shared__ std::int64_t ends[kLimits];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int32_t num_tiles = __reduce_add_sync(~0u, own.num_tiles);
  if (lane == 0) tiles_of_warps[warp] = num_tiles;
  const bool has_items = __any_sync(~0u, own.by_limit[0].items > 0);
#pragma unroll
  for (int i = 0; i < kLimits; ++i) {
    const auto sum = has_items ? sum_of_warp(own.by_limit[i]) : decode::BatchItems{};
    if (lane == 0) of_warps[i][warp] = sum;
  }
  __syncthreads();
  if (warp < kLimits) {
    const decode::BatchItems batch =
        sum_of_warp(lane < kWarps ? of_warps[warp][lane] : decode::BatchItems{});
    const std::int32_t tiles = __reduce_add_sync(~0u, lane < kWarps ? tiles_of_warps[lane] : 0);
    if (lane == 0) ends[warp] = decode::end_of(batch, tiles, header.rule, header.num_blocks);
  }
  __syncthreads();
  return decode::run_limit(decode::best_run_limit(ends));
}

struct Row {
  std::int32_t page_begin = 0, kv_len = 0, q_len = 0;
};

__device__ decode::Cut cut_of(const Row& row, const Header& header) {
  if (row.q_len == 0) return {.num_chunks = 0, .num_runs = 0};
  const auto tiles = decode::visible_tiles(row.kv_len, row.q_len, header.window_left);
  return decode::cut_of(tiles.count, row.q_len, header.rule);
}

// One block: its rows are few, and each thread takes some that follow one another. What comes
// behind on the stream may start at once, and waits itself.
template <int kThreads>
__device__ void update(const Header& header, const DeviceTables& tables,
                       const std::int32_t* words) {
  constexpr int kWarps = kThreads / 32;
  let_successor_start();
  const int num_rows = header.num_rows;
  const std::int32_t *const page_begin = words, *const kv_lens = words + num_rows;
  const std::int32_t* const q_lens = words + 2 * num_rows;
  const std::int32_t* const runs = q_lens + (header.q_len < 0 ? num_rows : 0);
  const std::int32_t* const pages = runs + 3 * header.num_runs;
  const auto row_at = [&](int row) {
    if (row >= num_rows) return Row{};
    return Row{page_begin[row], kv_lens[row], header.q_len < 0 ? q_lens[row] : header.q_len};
  };
  const int each = (tables.max_rows + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = min(begin + each, tables.max_rows);

  Row row;
  decode::Cut cut;
  RowItems items;
  for (int i = begin; i < end; ++i) {
    row = row_at(i);
    cut = cut_of(row, header);
    items.num_tiles += cut.num_tiles;
#pragma unroll
    for (int limit = 0; limit < decode::kNumRunLimits; ++limit) {
      items.by_limit[limit].add(cut, decode::run_limit(limit));
    }
  }
  const int run_limit = run_limit_of<kWarps>(items, header);
  const auto look_at = [&](int i) {
    if (each == 1) return;  // it is the one
    row = row_at(i);
    cut = cut_of(row, header);
  };
  const auto sums_of = [&] { return Sums{row.q_len, decode::num_items(cut, run_limit)}; };
  Sums own;
  for (int i = begin; i < end; ++i) {
    look_at(i);
    own = own + sums_of();
  }
  Sums front = sums_in_front<kWarps>(own);

  wait_for_predecessor();  // which may read the tables
  for (int i = begin; i < end; ++i) {
    look_at(i);
    const Sums sums = sums_of();
    tables.q_indptr[i] = front.queries;
    tables.item_indptr[i] = front.items;
    if (i < num_rows) {
      tables.page_begin[i] = row.page_begin;
      tables.q_position[i] = row.kv_len - row.q_len;
    }
    if (row.q_len > 0) {
      tables.planned_rows[i] = {row.page_begin, row.kv_len, front.queries, row.q_len};
      store_whole(tables.planned_items[i], decode::planned_items(cut, run_limit, front.items));
    }
    front = front + sums;
  }
  if (threadIdx.x == kThreads - 1) {  // behind all rows
    tables.q_indptr[tables.max_rows] = front.queries;
    tables.item_indptr[tables.max_rows] = front.items;
    *tables.num_rows = num_rows;
    *tables.num_tokens = front.queries;
    *tables.run_limit = run_limit;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int run = warp; run < header.num_runs; run += kWarps) {
    const std::int32_t place = runs[3 * run], count = runs[3 * run + 1], first = runs[3 * run + 2];
    for (int i = lane; i < count; i += 32) tables.page_indices[place + i] = pages[first + i];
  }
}

constexpr int kFewThreads = 256, kMostThreads = 1024;
__global__ void __launch_bounds__(kMostThreads)
    update_tables(Header header, DeviceTables tables, const std::int32_t* words) {
  update<kMostThreads>(header, tables, words);
}

// Parameters as memory, of which the lanes of a warp read a line at once. Out of the constant bank,
// as the compiler would have it, each waits for the one before.
__device__ const std::int32_t* in_memory(const std::int32_t* parameters) {
  const std::int32_t* pointer = nullptr;
  asm("mov.u64 %0, %1;" : "=l"(pointer) : "l"(parameters));
  return pointer;
}

template <int kWords>
struct Words {
  std::int32_t words[kWords];
};

template <int kWords, int kThreads>
__global__ void __launch_bounds__(kThreads)
    update_tables_by_value(Header header, DeviceTables tables,
                           const __grid_constant__ Words<kWords> words) {
  update<kThreads>(header, tables, in_memory(words.words));
}

// Whether the update was small enough.
template <int kWords, int kThreads>
bool launch_by_value(Header header, DeviceTables tables, const std::vector<std::int32_t>& words,
                     bool overlaps, cudaStream_t stream) {
  if (words.size() > kWords) return false;
  Words<kWords> copy;
  std::copy(words.begin(), words.end(), copy.words);
  void* arguments[] = {&header, &tables, &copy};
  check_cuda(launch(reinterpret_cast<const void*>(update_tables_by_value<kWords, kThreads>),
                    {.grid = dim3(1), .block = dim3(kThreads)}, arguments, stream, overlaps),
             "update_tables");
  return true;
}

}  // namespace

void launch_update_tables(const DeviceTables& tables, const TableUpdate& update, int window_left,
                          const decode::ChunkRule& rule, int num_blocks, Staging& staging,
                          bool overlaps, cudaStream_t stream) {
  const Header header{update.num_rows, update.num_runs, update.q_len,
                      window_left,     num_blocks,      rule};
  const std::vector<std::int32_t>& words = update.words;
  // Parameters take up to 32,764 bytes.
  const bool is_small = tables.max_rows <= kFewThreads &&
                        launch_by_value<1000, kFewThreads>(header, tables, words, overlaps, stream);
  if (is_small || launch_by_value<3000, kMostThreads>(header, tables, words, overlaps, stream) ||
      launch_by_value<8000, kMostThreads>(header, tables, words, overlaps, stream)) {
    return;
  }
  const std::size_t bytes = words.size() * sizeof(std::int32_t);
  Staging::Slot* const slot = staging.take(bytes);
  try {
    std::memcpy(slot->host, words.data(), bytes);
    SEQATTN_CUDA_CHECK(
        cudaMemcpyAsync(slot->device, slot->host, bytes, cudaMemcpyHostToDevice, stream));
    update_tables<<<1, kMostThreads, 0, stream>>>(
        header, tables, reinterpret_cast<const std::int32_t*>(slot->device));
    check_launch("update_tables");
  } catch (...) {
    staging.release(slot, stream);
    throw;
  }
  staging.release(slot, stream);
}

}  // namespace seqattn
