// The bookkeeping of a serving loop: pages, sequences, forks, packed batches. Every benchmark first
// checks the result of what it is going to time, and ends in an error where it is wrong.
//
// The counter `units` says how many calls, or pages, one timed body holds. bench/bookkeeping.py
// runs this beside the same work in Python and prints the table.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "heap_bytes.h"
#include "packed_check.h"
#include "seqattn/version.h"
#include "service.h"

namespace {

using namespace seqattn;
using namespace seqattn::bench;
using benchmark::State;

// Times `body` again and again, and not the `reset` after it.
template <class Body, class Reset>
void time(State& state, double units, const Body& body, const Reset& reset) {
  using Clock = std::chrono::steady_clock;
  state.counters["units"] = units;
  for (auto _ : state) {
    const auto start = Clock::now();
    body();
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - start).count());
    reset();
  }
}

// False, and an error of the benchmark, where the result is wrong.
bool verify(State& state, bool right) {
  if (!right) state.SkipWithError("wrong result");
  return right;
}

// As in a serving loop, the batch of the last step goes when the new one is there.
template <class Make>
void time_packing(State& state, const PackedBatch& batch, const Make& make) {
  FlashInferPackedData packed = make();
  state.counters["checksum"] = checksum(packed);
  if (!verify(state, batch.is_right(packed))) return;
  time(
      state, 1, [&] { packed = make(); },
      [&] { benchmark::DoNotOptimize(packed.kv_page_indices().data()); });
}

void pack(State& state) {
  const PackedBatch batch;
  time_packing(state, batch, [&] { return batch.sequences.pack_for_flashinfer(batch.ids); });
}
BENCHMARK(pack)->UseManualTime();

// Each sequence one token longer than in the batch before.
void pack_growing(State& state) {
  PackedBatch batch;
  FlashInferPackedData packed = batch.sequences.pack_for_flashinfer(batch.ids);
  if (!verify(state, batch.is_right(packed))) return;
  time(
      state, 1, [&] { packed = batch.sequences.pack_for_flashinfer(batch.ids); },
      [&] {
        if (batch.pool.available_pages_count() < kNumSequences) {
          for (const SeqId id : batch.ids) batch.sequences.truncate(id, kPagesEach * kPageSize);
        }
        batch.sequences.allocate_decoding(batch.ids);
      });
}
BENCHMARK(pack_growing)->UseManualTime();

// With what plan and append check before they use the batch.
void pack_checked(State& state) {
  const PackedBatch batch;
  time_packing(state, batch, [&] {
    auto packed = batch.sequences.pack_for_flashinfer(batch.ids);
    check_packed(batch.pool, packed);
    return packed;
  });
}
BENCHMARK(pack_checked)->UseManualTime();

// A page freed in between makes that check look at every page of the batch.
void pack_checked_after_free(State& state) {
  PackedBatch batch;
  time_packing(state, batch, [&] {
    auto packed = batch.sequences.pack_for_flashinfer(batch.ids);
    batch.pool.unref(batch.pool.allocate(1));
    check_packed(batch.pool, packed);
    return packed;
  });
}
BENCHMARK(pack_checked_after_free)->UseManualTime();

// The tables of another system.
void arrays_checked(State& state) {
  const PackedBatch batch;
  const auto arrays = batch.sequences.pack_for_flashinfer(batch.ids);
  const auto copy = [](std::span<const std::int32_t> array) {
    return std::vector<std::int32_t>(array.begin(), array.end());
  };
  time_packing(state, batch, [&] {
    FlashInferPackedData packed(copy(arrays.kv_page_indices()), copy(arrays.kv_page_indptr()),
                                copy(arrays.kv_last_page_len()));
    check_packed(batch.pool, packed);
    return packed;
  });
}
BENCHMARK(arrays_checked)->UseManualTime();

// Free list and reference counts alone, a call for each kPagesEach pages.
void pool_pages(State& state) {
  Service service(kNumPages);
  std::vector<std::vector<PageId>> taken(kNumSequences);
  const auto body = [&] {
    for (auto& pages : taken) pages = service.pool.allocate(kPagesEach);
    for (const auto& pages : taken) service.pool.unref(pages);
  };
  body();
  if (!verify(state, service.pool.free_pages() == scattered_pages(kNumPages))) return;
  time(state, kNumPages, body, [] {});
}
BENCHMARK(pool_pages)->UseManualTime();

// The same through a descriptor, one allocate and one release of all sequences.
void sequence_pages(State& state) {
  Service service(kNumPages);
  const auto ids = seq_ids(kNumSequences);
  const std::vector<std::int64_t> lengths(kNumSequences, kPagesEach * kPageSize);
  const auto body = [&] {
    service.sequences.allocate(ids, lengths);
    service.sequences.release(ids);
  };
  body();
  if (!verify(state, service.pool.free_pages() == scattered_pages(kNumPages))) return;
  time(state, kNumPages, body, [] {});
}
BENCHMARK(sequence_pages)->UseManualTime();

// Each sequence goes from 32 pages to 64, one token a call; in every call one in kPageSize takes a
// page. The page tables' own growth is part of it.
void decode(State& state) {
  const auto num_sequences = static_cast<int>(state.range(0));
  constexpr int kNumCalls = 32 * kPageSize;
  Service service(std::int64_t{1} << (num_sequences > 1000 ? 20 : 15));
  const auto ids = seq_ids(num_sequences);
  std::vector<std::int64_t> lengths;
  lengths.reserve(ids.size());
  for (int i = 0; i < num_sequences; ++i) lengths.push_back(31 * kPageSize + 1 + i % kPageSize);
  const auto start = [&] { service.sequences.allocate(ids, lengths); };
  const auto body = [&] {
    for (int call = 0; call < kNumCalls; ++call) service.sequences.allocate_decoding(ids);
  };
  start();
  body();
  for (int i = 0; i < num_sequences; ++i) {
    if (!verify(state, service.sequences.length(ids[i]) == lengths[i] + kNumCalls)) return;
  }
  service.sequences.check_invariants();
  const auto restart = [&] {
    service.sequences.release(ids);
    start();
  };
  restart();
  time(state, kNumCalls, body, restart);
}
BENCHMARK(decode)->Arg(256)->Arg(10'000)->UseManualTime();

// The dearest call: every sequence takes a page.
void decode_all_cross(State& state) {
  const auto num_sequences = static_cast<int>(state.range(0));
  Service service(std::int64_t{1} << (num_sequences > 1000 ? 20 : 15));
  const auto ids = seq_ids(num_sequences);
  service.sequences.allocate(ids, std::vector<std::int64_t>(ids.size(), 32 * kPageSize));
  const auto body = [&] { service.sequences.allocate_decoding(ids); };
  const auto reset = [&] {
    for (const SeqId id : ids) service.sequences.truncate(id, 32 * kPageSize);
  };
  body();
  for (const SeqId id : ids) {
    if (!verify(state, service.sequences.pages(id).size() == 33)) return;
  }
  service.sequences.check_invariants();
  reset();
  time(state, 1, body, reset);
}
BENCHMARK(decode_all_cross)->Arg(256)->Arg(10'000)->UseManualTime();

// One parent, 64 children a turn.
void fork(State& state) {
  const std::int64_t num_pages = state.range(0);
  Service service(kNumPages);
  const SeqId parent = seq_ids(1)[0];
  const auto children = seq_ids(64, 1);
  service.sequences.allocate({parent}, {num_pages * kPageSize - 8});
  const auto body = [&] {
    for (const SeqId child : children) service.sequences.fork(parent, child);
  };
  body();
  const auto pages = service.sequences.pages(parent);
  for (const SeqId child : children) {
    if (!verify(state, std::ranges::equal(service.sequences.pages(child), pages))) return;
  }
  if (!verify(state, service.pool.ref_count(pages[0]) == 65)) return;
  service.sequences.check_invariants();
  const auto reset = [&] { service.sequences.release(children); };
  reset();
  time(state, static_cast<double>(children.size()), body, reset);
}
BENCHMARK(fork)->Arg(kPagesEach)->Arg(1)->UseManualTime();

// Bytes, in counters: of a page of the pool, of an empty sequence, and of a page in the table of a
// sequence that came with 32 pages and decoded 16 more.
void memory(State& state) {
  for ([[maybe_unused]] auto _ : state) {
    std::int64_t before = live_heap_bytes();
    const auto taken_since = [&before] { return static_cast<double>(live_heap_bytes() - before); };
    PagePool pool(std::int64_t{1} << 20, kPageSize);
    state.counters["bytes_per_pool_page"] = taken_since() / static_cast<double>(pool.num_pages());

    CacheDescriptor sequences(pool);
    const auto ids = seq_ids(10'000);
    before = live_heap_bytes();
    sequences.allocate(ids, std::vector<std::int64_t>(ids.size(), 0));
    state.counters["bytes_per_sequence"] = taken_since() / static_cast<double>(ids.size());

    before = live_heap_bytes();
    sequences.allocate(ids, std::vector<std::int64_t>(ids.size(), 32 * kPageSize));
    for (int token = 0; token < 16 * kPageSize; ++token) sequences.allocate_decoding(ids);
    state.counters["bytes_per_table_page"] =
        taken_since() / static_cast<double>(sequences.stats().num_page_references);
  }
}
BENCHMARK(memory)->Iterations(1);

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("seqattn", version());
  benchmark::AddCustomContext("compiler", __VERSION__);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
