#include "run_case.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "verify.h"
#include "workload.h"

namespace seqattn::bench {
namespace {

// Keys a chunk, of what gives a row its own bits as we do: FlashInfer is fastest with this.
constexpr int kFixedSplit = 2048;

// FlashInfer's workspace and one plan of it.
class Peer {
 public:
  enum class Kind { kFa2, kFa2FixedSplit, kFa3 };
  Peer(const Workload& workload, Kind kind, cudaStream_t stream)
      : workload_(workload), kind_(kind), stream_(stream) {
    const PeerBatch& batch = workload.peer_batch();
    const cudaError_t status =
        kind == Kind::kFa3
            ? plan_fa3(batch, workspace_, &plan_, stream)
            : plan_fa2(batch, workspace_, kind == Kind::kFa2 ? 0 : kFixedSplit, &plan_, stream);
    check(status, "FlashInfer's plan");
    SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream));
  }
  void run(int i) const {
    const auto launch = kind_ == Kind::kFa3 ? run_fa3 : run_fa2;
    check(launch(workload_.peer_batch(), workspace_, plan_, workload_.peer_tensors(i), stream_),
          "FlashInfer's run");
  }

 private:
  const Workload& workload_;
  Kind kind_;
  cudaStream_t stream_;
  Buffer floats_{kPeerFloatBytes}, ints_{kPeerIntBytes};
  PinnedBuffer pinned_{static_cast<std::size_t>(kPeerIntBytes)};
  PeerWorkspace workspace_{.floats = floats_.data(),
                           .float_bytes = static_cast<std::size_t>(kPeerFloatBytes),
                           .ints = ints_.data(),
                           .pinned = pinned_.data(),
                           .int_bytes = static_cast<std::size_t>(kPeerIntBytes)};
  PeerPlan plan_;
};

std::unique_ptr<BatchAttention> planned(const Workload& workload, const PlanCapacity& capacity,
                                        cudaStream_t stream) {
  AttentionOptions options;
  options.num_qo_heads = workload.spec().num_qo_heads;
  auto attention = std::make_unique<BatchAttention>(workload.manager(), options, capacity);
  attention->plan(workload.packed(), workload.q_indptr(), {}, {stream});
  return attention;
}

// What a captured graph of exactly this batch is sized for.
PlanCapacity capacity_of(const Workload& workload) {
  PlanCapacity capacity;
  capacity.max_sequences = static_cast<std::int64_t>(workload.spec().rows.size());
  capacity.max_q_tokens = workload.spec().num_q_tokens();
  capacity.max_q_len = workload.spec().rows.front().q_len;
  capacity.max_pages = workload.num_pages();
  return capacity;
}

// Long queries have no graph; nor has FlashInfer then, so that both are timed alike.
bool has_graph(const CaseSpec& spec) {
  const std::int64_t group = spec.num_qo_heads / spec.num_kv_heads;
  return std::all_of(spec.rows.begin(), spec.rows.end(),
                     [&](const RowLengths& row) { return row.q_len * group <= 128; });
}

// A contender that runs the same in both modes.
Contender both(const std::string& name, const std::function<void(int)>& run, bool captured) {
  Contender contender{.name = name, .eager = run};
  if (captured) contender.captured = run;
  return contender;
}

void verify_all(const std::vector<Contender>& contenders, const Workload& workload,
                AttentionVerifier* attention, cudaStream_t stream) {
  for (const Contender& contender : contenders) {
    if (contender.name == "reader") continue;
    const auto check_run = [&](const std::function<void(int)>& launch, int run) {
      if (attention != nullptr) {
        attention->verify(contender.name, launch, run, stream);
      } else {
        verify_append(workload, contender.name, launch, run, stream);
      }
    };
    for (const int run : {0, workload.num_runs() - 1}) {
      if (contender.eager) check_run(contender.eager, run);
      if (!contender.captured) continue;
      const auto replay = [&](int i) {
        const Graph graph(stream, [&] { contender.captured(i); });
        graph.launch(stream);
        SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream));
      };
      check_run(replay, run);
    }
  }
}

void add_goals(CaseResult& result, const CaseSpec& spec) {
  const Measured& own = result.contenders.front();
  const auto percent = [](double share) {
    return std::to_string(static_cast<int>(100 * share + 0.5));
  };
  if (spec.least_of_ceiling > 0) {
    result.goals.push_back({">= " + percent(spec.least_of_ceiling) + " % of " + result.ceiling_name,
                            result.rate(own) / result.ceiling, spec.least_of_ceiling});
  }
  const Measured* const peer = result.find("flashinfer");
  if (spec.least_of_flashinfer > 0 && peer != nullptr) {
    result.goals.push_back({">= " + percent(spec.least_of_flashinfer) + " % of FlashInfer",
                            peer->best_us() / own.best_us(), spec.least_of_flashinfer});
  }
  if (spec.most_us > 0) result.goals.push_back(within_us(own.best_us(), spec.most_us));
}

std::vector<Contender> append_contenders(const Workload& workload, const BatchAttention& eager,
                                         const BatchAttention* captured, bool with_flashinfer,
                                         cudaStream_t stream) {
  Contender own{.name = "seqattn"};
  const auto append_by = [&workload, stream](const BatchAttention& attention) {
    return [&workload, &attention, stream](int i) {
      attention.append_kv(workload.new_keys(i), workload.new_values(i), workload.layer_of(i),
                          {stream});
    };
  };
  own.eager = append_by(eager);
  if (captured != nullptr) own.captured = append_by(*captured);
  std::vector<Contender> contenders{own};
  if (!with_flashinfer) return contenders;
  const auto run = [&workload, stream](int i) {
    const PeerAppend append{.keys = workload.new_keys(i).data,
                            .values = workload.new_values(i).data,
                            .batch_indices_device = workload.rows_of_tokens().as<std::int32_t>(),
                            .positions_device = workload.positions_of_tokens().as<std::int32_t>(),
                            .num_tokens = static_cast<int>(workload.spec().num_q_tokens())};
    check(append_by_flashinfer(workload.peer_batch(), workload.peer_tensors(i), append, stream),
          "FlashInfer's append");
  };
  contenders.push_back(both("flashinfer", run, captured != nullptr));
  return contenders;
}

std::vector<Contender> attention_contenders(const Workload& workload, const BatchAttention& eager,
                                            const BatchAttention* captured,
                                            const std::vector<std::unique_ptr<Peer>>& peers,
                                            const Buffer& sink, cudaStream_t stream) {
  Contender own{.name = "seqattn"};
  const auto run_by = [&workload, stream](const BatchAttention& attention) {
    return [&workload, &attention, stream](int i) {
      attention.run(workload.q(i), workload.out(i), {}, workload.layer_of(i), {stream});
    };
  };
  own.eager = run_by(eager);
  if (captured != nullptr) own.captured = run_by(*captured);
  std::vector<Contender> contenders{own};
  const char* const names[] = {"flashinfer", "flashinfer_fixed_split"};
  for (std::size_t i = 0; i < peers.size(); ++i) {
    const Peer& peer = *peers[i];
    contenders.push_back(both(
        names[i], [&peer](int run) { peer.run(run); }, captured != nullptr));
  }
  if (workload.spec().group == Group::kDecode) {
    const auto read = [&workload, &sink, stream](int i) {
      read_pages(workload.cache(i), workload.num_pages(), sink.as<std::uint32_t>(), stream);
    };
    contenders.push_back(both("reader", read, captured != nullptr));
  }
  return contenders;
}

std::vector<std::unique_ptr<Peer>> peers_of(const Workload& workload, bool with_flashinfer,
                                            cudaStream_t stream) {
  std::vector<std::unique_ptr<Peer>> peers;
  if (!with_flashinfer) return peers;
  const bool is_prefill = workload.spec().group == Group::kPrefill;
  peers.push_back(
      std::make_unique<Peer>(workload, is_prefill ? Peer::Kind::kFa3 : Peer::Kind::kFa2, stream));
  if (!is_prefill) {
    peers.push_back(std::make_unique<Peer>(workload, Peer::Kind::kFa2FixedSplit, stream));
  }
  return peers;
}

}  // namespace

Ceilings measure_ceilings(int num_samples, cudaStream_t stream) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  const Buffer from(kBytes), to(kBytes), sink(64);
  fill_normal(from.data(), kBytes / 2, 1, stream);
  fill_normal(to.data(), kBytes / 2, 2, stream);
  const auto copy = [&](int) {
    SEQATTN_BENCH_CHECK(
        cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream));
  };
  const auto read = [&](int i) {
    read_all(i % 2 == 0 ? from.data() : to.data(), kBytes, sink.as<std::uint32_t>(), stream);
  };
  const auto results = measure({{.name = "copy", .eager = copy}, {.name = "read", .eager = read}},
                               {.num_runs = 4, .num_samples = num_samples}, stream);
  return {2e-3 * kBytes / results[0].best_us(), 1e-3 * kBytes / results[1].best_us()};
}

CaseResult run_case(const CaseSpec& spec, const Ceilings& ceilings, int num_samples,
                    bool with_flashinfer, cudaStream_t stream) {
  const Workload workload(spec);
  const Buffer sink(64);
  with_flashinfer &= spec.has_peer();
  const bool is_append = spec.group == Group::kAppend, is_prefill = spec.group == Group::kPrefill;
  const auto eager = planned(workload, {}, stream);
  const auto captured =
      has_graph(spec) ? planned(workload, capacity_of(workload), stream) : nullptr;
  const auto peers = peers_of(workload, with_flashinfer && !is_append, stream);
  const auto contenders =
      is_append ? append_contenders(workload, *eager, captured.get(), with_flashinfer, stream)
                : attention_contenders(workload, *eager, captured.get(), peers, sink, stream);

  CaseResult result;
  result.group = to_string(spec.group);
  result.name = spec.name;
  result.num_qo_heads = spec.num_qo_heads;
  result.num_kv_heads = spec.num_kv_heads;
  result.is_flops = is_prefill;
  result.work = is_append    ? spec.append_bytes()
                : is_prefill ? spec.causal_flops()
                             : spec.kv_bytes();
  result.ceiling = is_append ? ceilings.copy : is_prefill ? 0 : ceilings.read;
  result.ceiling_name = is_append ? "copy" : is_prefill ? "" : "read";
  if (is_append) {
    verify_all(contenders, workload, nullptr, stream);
  } else {
    AttentionVerifier verifier(workload);
    verify_all(contenders, workload, &verifier, stream);
    result.error = verifier.largest_error();
  }
  result.contenders =
      measure(contenders, {.num_runs = workload.num_runs(), .num_samples = num_samples}, stream);
  add_goals(result, spec);
  return result;
}

}  // namespace seqattn::bench
