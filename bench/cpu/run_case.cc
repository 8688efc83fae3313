#include "run_case.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>

#include "ceilings.h"
#include "ggml_side.h"
#include "workload.h"

namespace seqattn::bench {
namespace {

constexpr double kLeastSample = 1e-3;  // seconds: shorter runs are timed several at a time
constexpr double kMostError = 1e-4, kMostPeerError = 2e-2;  // ggml sums values up in float16

struct Contender {
  std::string name;
  std::function<double(int)> run;  // on a layer; returns the work that it did, for a ceiling
};

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Every contender in each round, on layers that go round.
std::vector<Samples> take_turns(const std::vector<Contender>& contenders, int layers,
                                const RunLimits& limits) {
  std::vector<Samples> samples;
  std::vector<int> repetitions, layer(contenders.size());
  const auto next_layer = [&](std::size_t i) { return layer[i]++ % layers; };
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    samples.push_back({.name = contenders[i].name, .seconds = {}});
    const double once = seconds_of([&] { samples[i].work = contenders[i].run(next_layer(i)); });
    repetitions.push_back(static_cast<int>(std::ceil(kLeastSample / std::max(once, 1e-7))));
  }
  double spent = 0;
  for (int round = 0; round < limits.max_rounds && (round < 3 || spent < limits.seconds); ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const double taken = seconds_of([&] {
        for (int n = 0; n < repetitions[i]; ++n) contenders[i].run(next_layer(i));
      });
      samples[i].seconds.push_back(taken / repetitions[i]);
      spent += taken;
    }
  }
  return samples;
}

double checked(const char* who, double error, double most) {
  if (error <= most) return error;
  throw std::runtime_error(std::string(who) + ": off by " + std::to_string(error) + ", more than " +
                           std::to_string(most));
}

}  // namespace

std::vector<CpuResult> run_cpu_case(const CpuCase& spec, const std::vector<int>& threads,
                                    const RunLimits& limits, std::mt19937_64& random) {
  const Inputs inputs(spec, random);
  const int layers = num_layers(spec);
  SeqattnSide own(spec, inputs, random);
  std::map<std::string, std::unique_ptr<GgmlSide>> peers;
  if (limits.with_peers && has_ggml()) {
    using Cache = GgmlSide::Cache;
    peers["ggml by token"] = std::make_unique<GgmlSide>(spec, inputs, Cache::kByToken);
    peers["ggml by head"] = std::make_unique<GgmlSide>(spec, inputs, Cache::kByHead);
  }
  std::vector<float> out(inputs.queries.size());
  std::vector<CpuResult> results;
  for (const int num_threads : threads) {
    CpuResult result{.spec = spec, .num_threads = num_threads, .contenders = {}};
    own.use_threads(num_threads);
    std::fill(out.begin(), out.end(), std::nanf(""));
    own.run(0, out);
    result.error = checked("seqattn", largest_error(spec, inputs, out), kMostError);
    std::vector<Contender> contenders{{"seqattn", [&](int layer) {
                                         own.run(layer, out);
                                         return 0.0;
                                       }}};
    for (const auto& [name, peer] : peers) {
      peer->use_threads(num_threads);
      peer->run(0);
      result.peer_error =
          std::max(result.peer_error,
                   checked(name.c_str(), largest_error(spec, inputs, peer->out()), kMostPeerError));
      contenders.push_back({name, [&peer = *peer](int layer) {
                              peer.run(layer);
                              return 0.0;
                            }});
    }
    std::vector<Reader> plain, gather;
    volatile std::uint32_t sum = 0;
    for (int layer = 0; layer < layers; ++layer) {
      plain.push_back(own.plain_reader(layer, num_threads));
      gather.push_back(own.gather_reader(layer, num_threads));
    }
    if (spec.is_decode()) {
      for (const auto& [name, readers] :
           {std::pair("read", &plain), std::pair("gather", &gather)}) {
        contenders.push_back({name, [&sum, readers = readers](int layer) {
                                sum = (*readers)[layer]();
                                return (*readers)[layer].num_bytes();
                              }});
      }
    } else {
      contenders.push_back({"fma", [=](int) { return multiply_floats(num_threads); }});
      if (multiply_bfloat16(num_threads) > 0) {
        contenders.push_back({"bf16 dot", [=](int) { return multiply_bfloat16(num_threads); }});
      }
    }
    result.contenders = take_turns(contenders, layers, limits);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace seqattn::bench
