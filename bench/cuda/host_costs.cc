#include "host_costs.h"

#include <sched.h>

#include <cstdio>
#include <numeric>
#include <random>
#include <string>

#include "kernels.h"
#include "peer.h"
#include "seqattn/seqattn.h"
#include "workload.h"

namespace seqattn::bench {
namespace {

constexpr int kPageSize = 16, kQoHeads = 32, kKvHeads = 8, kHeadDim = 128;

// A model's cache, and sequences of 2k to 6k tokens in it.
class Service {
 public:
  Service(std::int64_t batch, std::int64_t room) : manager_(config(batch, room)) {
    std::mt19937_64 random(23);
    std::vector<std::int64_t> lengths;
    for (std::int64_t id = 0; id < batch; ++id) {
      ids_.push_back(id);
      lengths.push_back(2048 + static_cast<std::int64_t>(random() % 4096));
    }
    sequences_.allocate(ids_, lengths);
  }
  PagedKVCacheManager& manager() { return manager_; }
  CacheDescriptor& sequences() { return sequences_; }
  const std::vector<SeqId>& ids() const { return ids_; }
  FlashInferPackedData pack() const { return sequences_.pack_for_flashinfer(ids_); }
  // Every sequence asks with so many queries.
  std::vector<std::int32_t> q_indptr(std::int32_t q_len) const {
    std::vector<std::int32_t> indptr;
    for (std::size_t i = 0; i <= ids_.size(); ++i) {
      indptr.push_back(static_cast<std::int32_t>(i) * q_len);
    }
    return indptr;
  }
  PeerBatch peer_batch(const FlashInferPackedData& packed, std::int32_t q_len) const {
    PeerBatch batch;
    batch.num_qo_heads = kQoHeads;
    batch.num_kv_heads = kKvHeads;
    batch.head_dim = kHeadDim;
    batch.page_size = kPageSize;
    batch.q_indptr = q_indptr(q_len);
    const auto indptr = packed.kv_page_indptr();
    batch.page_indptr.assign(indptr.begin(), indptr.end());
    for (std::int64_t row = 0; row < packed.batch_size(); ++row) {
      batch.kv_len.push_back(static_cast<std::int32_t>(packed.kv_len(row, kPageSize)));
    }
    return batch;
  }

 private:
  static KVCacheConfig config(std::int64_t batch, std::int64_t room) {
    KVCacheConfig config;
    config.num_pages = batch * (6144 + room) / kPageSize;
    config.page_size = kPageSize;
    config.num_heads = kKvHeads;
    config.head_dim = kHeadDim;
    config.dtype = DType::kBFloat16;
    config.device = cuda(0);
    return config;
  }
  PagedKVCacheManager manager_;
  CacheDescriptor sequences_{manager_};
  std::vector<SeqId> ids_;
};

// A thread that wakes up on another core finds none of its data there.
void stay_on_this_core() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(sched_getcpu(), &cores);
  if (sched_setaffinity(0, sizeof cores, &cores) != 0) {
    std::fputs("host: this thread may not stay on one core; times may vary\n", stderr);
  }
}

AttentionOptions options() {
  AttentionOptions options;
  options.num_qo_heads = kQoHeads;
  return options;
}

TensorView tokens(const Buffer& buffer, std::int64_t count, int heads) {
  return TensorView::contiguous(buffer.data(), DType::kBFloat16, {count, heads, kHeadDim}, cuda(0));
}

// 0: no goal.
void add_goal(HostResult& result, double limit_us) {
  if (limit_us == 0) return;
  result.goals.push_back(within_us(result.contenders.at("seqattn").median_us, limit_us));
}

HostResult plan_cost(const std::string& name, std::int64_t batch, std::int32_t q_len,
                     double limit_us, int num_samples, bool with_flashinfer) {
  Service service(batch, kPageSize);
  const OwnStream stream;
  const auto packed = service.pack();
  const auto q_indptr = service.q_indptr(q_len);
  BatchAttention attention(service.manager(), options());
  HostResult result;
  result.name = name;
  result.contenders["seqattn"] = measure_host(
      num_samples, [&] { attention.plan(packed, q_indptr, {}, {stream.get()}); },
      [&] { stream.wait(); });
  add_goal(result, limit_us);
  if (!with_flashinfer) return result;
  const Buffer floats(kPeerFloatBytes), ints(kPeerIntBytes);
  const PinnedBuffer pinned(static_cast<std::size_t>(kPeerIntBytes));
  const PeerWorkspace workspace{.floats = floats.data(),
                                .float_bytes = static_cast<std::size_t>(kPeerFloatBytes),
                                .ints = ints.data(),
                                .pinned = pinned.data(),
                                .int_bytes = static_cast<std::size_t>(kPeerIntBytes)};
  const PeerBatch peer = service.peer_batch(packed, q_len);
  PeerPlan plan;
  result.contenders["flashinfer"] = measure_host(
      q_len > 1 ? std::min(num_samples, 60) : num_samples,
      [&] {
        check(q_len > 1 ? plan_fa3(peer, workspace, &plan, stream.get())
                        : plan_fa2(peer, workspace, 0, &plan, stream.get()),
              "FlashInfer's plan");
      },
      [&] { stream.wait(); });
  return result;
}

// What the device spends on the plan of a batch of sequences, whose tables it keeps: once a step,
// for all layers. Plans behind one another, and what one in front adds to a launch of attention
// (with a window, so that it is short).
std::vector<HostResult> device_plan_costs(std::int64_t batch, double limit_us, int num_samples) {
  Service service(batch, kPageSize);
  const OwnStream stream;
  const auto q_indptr = service.q_indptr(1);
  AttentionOptions windowed = options();
  windowed.window_left = 127;
  BatchAttention attention(service.manager(), windowed);
  const Buffer q(batch * kQoHeads * kHeadDim * 2), out(q.num_bytes());
  fill_normal(q.data(), q.num_bytes() / 2, 3, stream.get());
  const auto plan = [&](int) {
    attention.plan_sequences(service.sequences(), service.ids(), q_indptr, {stream.get()});
  };
  const auto run = [&](int) {
    attention.run(tokens(q, batch, kQoHeads), tokens(out, batch, kQoHeads), {}, 0, {stream.get()});
  };
  const auto both = [&](int i) { plan(i), run(i); };
  plan(0);
  constexpr int kRuns = 2;  // enqueued while the stream is held
  const auto measured = measure({{.name = "plan", .eager = plan},
                                 {.name = "run", .eager = run},
                                 {.name = "both", .eager = both}},
                                {.num_runs = kRuns, .num_samples = num_samples}, stream.get());
  const Timing &launch = *measured[1].eager, &planned_launch = *measured[2].eager;
  std::vector<HostResult> results(2);
  results[0].name = "plan of sequences on the device, batch " + std::to_string(batch);
  results[0].contenders["seqattn"] = *measured[0].eager;
  results[1].name = results[0].name + ", added to a launch";
  const double added_us = planned_launch.median_us - launch.median_us;
  results[1].contenders["seqattn"] = {added_us, added_us, added_us};  // of medians: no spread
  add_goal(results[1], limit_us);
  return results;
}

// One decode step of so many sequences and one layer: grow, plan, append and attend, launched one
// by one or as a captured graph, from packed tables or from the sequences; and its parts.
std::vector<HostResult> step_costs(std::int64_t batch, double limit_us, int num_samples) {
  Service service(batch, 9 * (num_samples + 40) + kPageSize);
  const OwnStream stream;
  const Stream on{stream.get()};
  const std::int64_t bytes = batch * kHeadDim * 2;
  const Buffer k(bytes * kKvHeads), v(bytes * kKvHeads), q(bytes * kQoHeads), out(bytes * kQoHeads);
  for (const Buffer* buffer : {&k, &v, &q}) {
    fill_normal(buffer->data(), buffer->num_bytes() / 2, 3, stream.get());
  }
  const auto q_indptr = service.q_indptr(1);
  BatchAttention eager(service.manager(), options());
  PlanCapacity capacity;
  capacity.max_sequences = capacity.max_q_tokens = batch;
  capacity.max_q_len = 1;
  capacity.max_pages = service.manager().config().num_pages;
  BatchAttention captured(service.manager(), options(), capacity);
  const auto launch = [&](const BatchAttention& attention) {
    attention.append_kv(tokens(k, batch, kKvHeads), tokens(v, batch, kKvHeads), 0, on);
    attention.run(tokens(q, batch, kQoHeads), tokens(out, batch, kQoHeads), {}, 0, on);
  };
  const auto advance_packed = [&](BatchAttention& attention) {
    service.sequences().allocate_decoding(service.ids(), on);
    attention.plan(service.pack(), q_indptr, {}, on);
  };
  const auto advance = [&](BatchAttention& attention) {
    service.sequences().allocate_decoding(service.ids(), on);
    attention.plan_sequences(service.sequences(), service.ids(), q_indptr, on);
  };
  advance(captured);
  const Graph graph(stream.get(), [&] { launch(captured); });

  const auto timed = [&](const std::string& name, const std::function<void()>& call,
                         const std::function<void()>& settle) {
    HostResult result;
    result.name = "decode step, batch " + std::to_string(batch) + name;
    result.contenders["seqattn"] = measure_host(num_samples, call, settle);
    return result;
  };
  const auto step = [&](const std::string& name, const std::function<void()>& call) {
    return timed(", " + name, call, [&] { stream.wait(); });
  };
  std::vector<HostResult> results{
      step("graph launched", [&] { advance(captured), graph.launch(stream.get()); }),
      step("one layer launched", [&] { advance(eager), launch(eager); }),
      step("packed, graph launched",
           [&] { advance_packed(captured), graph.launch(stream.get()); })};
  add_goal(results.front(), limit_us);

  // The same step once more, one of its parts timed at a time.
  const auto wait = [&] { stream.wait(); };
  const auto allocate = [&] { service.sequences().allocate_decoding(service.ids(), on); };
  FlashInferPackedData packed;
  const auto pack = [&] { packed = service.pack(); };
  const auto plan_packed = [&] { eager.plan(packed, q_indptr, {}, on); };
  const auto plan = [&] {
    captured.plan_sequences(service.sequences(), service.ids(), q_indptr, on);
  };
  const auto replay = [&] { graph.launch(stream.get()); };
  results.push_back(timed(": allocate_decoding", allocate, [&] { plan(), replay(), wait(); }));
  results.push_back(timed(": plan of sequences", plan, [&] { replay(), wait(), allocate(); }));
  results.push_back(timed(": graph launch", replay, [&] { wait(), allocate(), plan(); }));
  results.push_back(timed(": pack", pack, [&] { plan(), replay(), wait(), allocate(); }));
  results.push_back(timed(": plan of packed tables", plan_packed,
                          [&] { launch(eager), wait(), allocate(), pack(); }));
  results.push_back(timed(
      ": launch", [&] { launch(eager); }, [&] { wait(), allocate(), pack(), plan_packed(); }));
  return results;
}

}  // namespace

std::vector<HostResult> measure_host_costs(int num_samples, bool with_flashinfer) {
  stay_on_this_core();
  std::vector<HostResult> results{
      plan_cost("plan, decode, batch 256", 256, 1, 40, num_samples, with_flashinfer),
      plan_cost("plan, decode, batch 1024", 1024, 1, 0, num_samples, with_flashinfer),
      plan_cost("plan, prefill, 256 x 512", 256, 512, 250, num_samples, with_flashinfer)};
  const auto add = [&results](std::vector<HostResult> more) {
    for (HostResult& result : more) results.push_back(std::move(result));
  };
  add(device_plan_costs(256, 1.5, std::min(num_samples, 25)));
  add(device_plan_costs(1024, 0, std::min(num_samples, 25)));
  add(step_costs(256, 25, num_samples));
  add(step_costs(1024, 60, num_samples));
  return results;
}

}  // namespace seqattn::bench
