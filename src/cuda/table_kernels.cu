#include <algorithm>
#include <cstddef>
#include <cstring>

#include "cuda_check.h"
#include "decode/decode_runs.h"
#include "table_kernels.h"

namespace seqattn {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

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
  if (warp == 0) of_warps[lane] = scan(of_warps[lane]);
  __syncthreads();
  Sums front = from_lane_below(with_own, 1);
  if (lane == 0) front = {};
  return warp == 0 ? front : front + of_warps[warp - 1];
}

// The run limit of a batch (decode_runs.h), no runs of pages; cut_of(row) is how a row is cut, with
// no tiles and no chunks where it has no queries. By all threads of a block: some warps count for
// each limit.
template <class CutOf>
__device__ int run_limit_of(int num_rows, const Header& header, CutOf cut_of) {
  constexpr int kLimits = decode::kNumRunLimits, kThreadsEach = kWarps / kLimits * 32;
  static_assert(kThreadsEach > 0);
  __shared__ decode::BatchItems all[kLimits];
  __shared__ std::int64_t ends[kLimits];
  const int thread = static_cast<int>(threadIdx.x), index = thread / kThreadsEach;
  if (thread < kLimits) all[thread] = {};
  __syncthreads();
  if (index < kLimits) {
    decode::BatchItems own;
    for (int row = thread % kThreadsEach; row < num_rows; row += kThreadsEach) {
      own.add(cut_of(row), decode::run_limit(index));
    }
    const int tiles = __reduce_add_sync(~0u, own.num_tiles);
    const int items = __reduce_add_sync(~0u, own.items);
    const int results = __reduce_add_sync(~0u, own.results);
    const int longest = __reduce_max_sync(~0u, own.longest);
    if (thread % 32 == 0) {
      atomicAdd(&all[index].num_tiles, tiles);
      atomicAdd(&all[index].items, items);
      atomicAdd(&all[index].results, results);
      atomicMax(&all[index].longest, longest);
    }
  }
  __syncthreads();
  if (thread < kLimits) ends[thread] = decode::end_of(all[thread], header.rule, header.num_blocks);
  __syncthreads();
  return decode::run_limit(decode::best_run_limit(ends));
}

// One block: its rows are few, and each thread takes some that follow one another.
__device__ void update(const Header& header, const DeviceTables& tables,
                       const std::int32_t* words) {
  const int num_rows = header.num_rows;
  const std::int32_t *const page_begin = words, *const kv_lens = words + num_rows;
  const std::int32_t* const q_lens = words + 2 * num_rows;
  const std::int32_t* const runs = q_lens + (header.q_len < 0 ? num_rows : 0);
  const std::int32_t* const pages = runs + 3 * header.num_runs;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int run = warp; run < header.num_runs; run += kWarps) {
    const std::int32_t place = runs[3 * run], count = runs[3 * run + 1], first = runs[3 * run + 2];
    for (int i = lane; i < count; i += 32) tables.page_indices[place + i] = pages[first + i];
  }

  const auto q_len_of = [&](int row) {
    return row >= num_rows ? 0 : header.q_len < 0 ? q_lens[row] : header.q_len;
  };
  const auto cut_of = [&](int row) {
    const int q_len = q_len_of(row);
    if (q_len == 0) return decode::Cut{.num_chunks = 0, .num_runs = 0};
    const auto tiles = decode::visible_tiles(kv_lens[row], q_len, header.window_left);
    return decode::cut_of(tiles.count, q_len, header.rule);
  };
  const int run_limit = run_limit_of(num_rows, header, cut_of);
  const auto sums_of = [&](int row) {
    const int q_len = q_len_of(row);
    return q_len == 0 ? Sums{} : Sums{q_len, decode::num_items(cut_of(row), run_limit)};
  };
  const int each = (tables.max_rows + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = min(begin + each, tables.max_rows);
  Sums own;
  for (int row = begin; row < end; ++row) own = own + sums_of(row);
  Sums front = sums_in_front(own);
  for (int row = begin; row < end; ++row) {
    const Sums sums = each == 1 ? own : sums_of(row);
    tables.q_indptr[row] = front.queries;
    tables.item_indptr[row] = front.items;
    if (row < num_rows) {
      tables.page_begin[row] = page_begin[row];
      tables.kv_len[row] = kv_lens[row];
      tables.q_position[row] = kv_lens[row] - sums.queries;
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
}

__global__ void __launch_bounds__(kThreads)
    update_tables(Header header, DeviceTables tables, const std::int32_t* words) {
  update(header, tables, words);
}

template <int kWords>
struct Words {
  std::int32_t words[kWords];
};

template <int kWords>
__global__ void __launch_bounds__(kThreads)
    update_tables_by_value(Header header, DeviceTables tables,
                           const __grid_constant__ Words<kWords> words) {
  update(header, tables, words.words);
}

// Whether the update was small enough.
template <int kWords>
bool launch_by_value(const Header& header, const DeviceTables& tables,
                     const std::vector<std::int32_t>& words, cudaStream_t stream) {
  if (words.size() > kWords) return false;
  Words<kWords> copy;
  std::copy(words.begin(), words.end(), copy.words);
  update_tables_by_value<kWords><<<1, kThreads, 0, stream>>>(header, tables, copy);
  return true;
}

}  // namespace

void launch_update_tables(const DeviceTables& tables, const TableUpdate& update, int window_left,
                          const decode::ChunkRule& rule, int num_blocks, Staging& staging,
                          cudaStream_t stream) {
  const Header header{update.num_rows, update.num_runs, update.q_len,
                      window_left,     num_blocks,      rule};
  const std::vector<std::int32_t>& words = update.words;
  // Parameters take up to 32,764 bytes.
  if (launch_by_value<1000>(header, tables, words, stream) ||
      launch_by_value<3000>(header, tables, words, stream) ||
      launch_by_value<8000>(header, tables, words, stream)) {
    check_launch("update_tables");
    return;
  }
  const std::size_t bytes = words.size() * sizeof(std::int32_t);
  Staging::Slot* const slot = staging.take(bytes);
  try {
    std::memcpy(slot->host, words.data(), bytes);
    SEQATTN_CUDA_CHECK(
        cudaMemcpyAsync(slot->device, slot->host, bytes, cudaMemcpyHostToDevice, stream));
    update_tables<<<1, kThreads, 0, stream>>>(header, tables,
                                              reinterpret_cast<const std::int32_t*>(slot->device));
    check_launch("update_tables");
  } catch (...) {
    staging.release(slot, stream);
    throw;
  }
  staging.release(slot, stream);
}

}  // namespace seqattn
