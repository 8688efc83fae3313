#include "run_case.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "ceilings.h"
#include "ggml_side.h"
#include "turns.h"
#include "workload.h"

namespace seqattn::bench {
namespace {

// Errors: of the exact path, of rounded weights and queries, of peers (ggml sums values up in
// float16, torch rounds outputs to the type of the cache).
constexpr double kMostError = 1e-4, kMostRoundedError = 4e-3, kMostPeerError = 2e-2;

double checked(const std::string& who, double error, double most) {
  if (error <= most) return error;
  throw std::runtime_error(who + ": off by " + std::to_string(error) + ", more than " +
                           std::to_string(most));
}

// All sides of one case, and the inputs that they share.
class Case {
 public:
  Case(const CpuCase& spec, const RunLimits& limits, TorchSide& torch, std::mt19937_64& random)
      : spec_(spec),
        layers_(num_layers(spec)),
        inputs_(spec, random),
        own_(spec, inputs_, random),
        out_(inputs_.queries.size()) {
    if (!limits.with_peers) return;
    if (has_ggml()) {
      using Cache = GgmlSide::Cache;
      by_token_ = std::make_unique<GgmlSide>(spec, inputs_, Cache::kByToken);
      by_head_ = std::make_unique<GgmlSide>(spec, inputs_, Cache::kByHead);
      if (spec.kv_dtype == DType::kBFloat16 && !spec.is_decode()) {
        CpuCase in_half = spec;
        in_half.kv_dtype = DType::kFloat16;
        half_ = std::make_unique<GgmlSide>(in_half, to_half(inputs_), Cache::kByToken);
      }
    }
    if (torch.is_there()) load(torch);
  }

  CpuResult run(int num_threads, const RunLimits& limits) {
    CpuResult result{.spec = spec_, .num_threads = num_threads, .contenders = {}};
    Contenders contenders;
    add_own(num_threads, result, contenders);
    if (by_token_) add_ggml("ggml by token", *by_token_, num_threads, result, contenders);
    if (by_head_) add_ggml("ggml by head", *by_head_, num_threads, result, contenders);
    if (half_) add_ggml(kGgmlHalfName, *half_, num_threads, result, contenders);
    if (torch_ != nullptr) add_torch(num_threads, result, contenders);
    if (spec_.is_decode()) {
      add_readers(num_threads, contenders);
    } else {
      add_peaks(num_threads, contenders);
    }
    result.contenders = take_turns(contenders, layers_, limits);
    return result;
  }

 private:
  // A case that torch cannot do goes on without it.
  void load(TorchSide& torch) {
    try {
      torch.load(spec_, inputs_, layers_);
      torch.run(0, 1);
      torch_ = &torch;
    } catch (const std::runtime_error& error) {
      leave_out_torch(error);
    }
  }

  void leave_out_torch(const std::runtime_error& error) {
    std::fprintf(stderr, "%s, without torch: %s\n", spec_.name().c_str(), error.what());
    torch_ = nullptr;
  }

  double error() const { return largest_error(spec_, inputs_, out_); }

  void add_own(int num_threads, CpuResult& result, Contenders& contenders) {
    own_.use_threads(num_threads);
    for (const bool rounded : {false, true}) {
      if (rounded && !own_.has_bfloat16_products()) break;
      const std::string name = rounded ? kRoundedName : "seqattn";
      std::fill(out_.begin(), out_.end(), std::numeric_limits<float>::quiet_NaN());
      own_.run(0, out_, rounded);
      (rounded ? result.rounded_error : result.error) =
          checked(name, error(), rounded ? kMostRoundedError : kMostError);
      contenders.push_back(
          timed(name, layers_, [this, rounded](int layer) { own_.run(layer, out_, rounded); }));
    }
  }

  void check_peer(const std::string& name, std::vector<float> out, CpuResult& result) {
    out_ = std::move(out);
    result.peer_error = std::max(result.peer_error, checked(name, error(), kMostPeerError));
  }

  void add_ggml(const std::string& name, GgmlSide& ggml, int num_threads, CpuResult& result,
                Contenders& contenders) {
    ggml.use_threads(num_threads);
    ggml.run(0);
    check_peer(name, ggml.out(), result);
    contenders.push_back(timed(name, layers_, [&ggml](int layer) { ggml.run(layer); }));
  }

  void add_torch(int num_threads, CpuResult& result, Contenders& contenders) {
    std::vector<float> out;
    try {
      torch_->use_threads(num_threads);
      torch_->run(0, 1);
      out = torch_->out();
    } catch (const std::runtime_error& error) {
      leave_out_torch(error);
      return;
    }
    check_peer("torch", std::move(out), result);
    contenders.push_back(
        {"torch", [this](int first, int count) { return torch_->run(first, count); }});
  }

  void add_readers(int num_threads, Contenders& contenders) {
    std::vector<Reader> plain, gather;
    for (int layer = 0; layer < layers_; ++layer) {
      plain.push_back(own_.plain_reader(layer, num_threads));
      gather.push_back(own_.gather_reader(layer, num_threads));
    }
    for (auto& [name, readers] : {std::pair("read", plain), std::pair("gather", gather)}) {
      const double bytes = readers.front().num_bytes();
      contenders.push_back(timed(
          name, layers_, [this, readers = readers](int layer) { sum_ = readers[layer](); }, bytes));
    }
  }

  void add_peaks(int num_threads, Contenders& contenders) const {
    const auto add = [&](const char* name, double (*multiply)(int)) {
      const double work = multiply(num_threads);
      if (work == 0) return;
      contenders.push_back(timed(
          name, layers_, [=](int) { multiply(num_threads); }, work));
    };
    add("fma", multiply_floats);
    add("bf16 dot", multiply_bfloat16);
  }

  CpuCase spec_;
  int layers_;
  Inputs inputs_;
  SeqattnSide own_;
  std::unique_ptr<GgmlSide> by_token_, by_head_, half_;
  TorchSide* torch_ = nullptr;
  std::vector<float> out_;
  volatile std::uint32_t sum_ = 0;  // keeps what readers return
};

}  // namespace

std::vector<CpuResult> run_cpu_case(const CpuCase& spec, const std::vector<int>& threads,
                                    const RunLimits& limits, TorchSide& torch,
                                    std::mt19937_64& random) {
  Case sides(spec, limits, torch, random);
  std::vector<CpuResult> results;
  results.reserve(threads.size());
  for (const int num_threads : threads) results.push_back(sides.run(num_threads, limits));
  return results;
}

}  // namespace seqattn::bench
