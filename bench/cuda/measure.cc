#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <memory>

#include "device.h"
#include "kernels.h"

namespace seqattn::bench {
namespace {

constexpr double kHoldMicroseconds = 120;  // the launch of a graph, and some launches

// A contender in one of its two modes.
struct Mode {
  std::function<void()> sample;  // enqueues num_runs runs
  std::unique_ptr<Graph> graph;
  std::vector<double> microseconds;
};

}  // namespace

Timing timing_of(std::vector<double> microseconds) {
  std::sort(microseconds.begin(), microseconds.end());
  const auto at = [&](std::size_t percent) {
    return microseconds[(microseconds.size() - 1) * percent / 100];
  };
  return {at(50), at(10), at(90)};
}

double Measured::best_us() const {
  double best = std::numeric_limits<double>::infinity();
  for (const auto& timing : {eager, graph}) {
    if (timing) best = std::min(best, timing->median_us);
  }
  return best;
}

std::vector<Measured> measure(const std::vector<Contender>& contenders,
                              const MeasureOptions& options, cudaStream_t stream) {
  const auto all_runs = [&](const std::function<void(int)>& run) {
    return [&run, num_runs = options.num_runs] {
      for (int i = 0; i < num_runs; ++i) run(i);
    };
  };
  std::vector<std::vector<Mode>> modes(contenders.size());
  for (std::size_t c = 0; c < contenders.size(); ++c) {
    modes[c].resize(2);
    if (contenders[c].eager) modes[c][0].sample = all_runs(contenders[c].eager);
    if (contenders[c].captured) {
      Mode& mode = modes[c][1];
      mode.graph = std::make_unique<Graph>(stream, all_runs(contenders[c].captured));
      mode.sample = [graph = mode.graph.get(), stream] { graph->launch(stream); };
    }
  }
  const Event begin, end;
  for (int sample = -2; sample < options.num_samples; ++sample) {  // two to warm up
    for (auto& of_contender : modes) {
      for (Mode& mode : of_contender) {
        if (!mode.sample) continue;
        hold_stream(kHoldMicroseconds, stream);
        begin.record(stream);
        mode.sample();
        end.record(stream);
        const double each = end.microseconds_since(begin) / options.num_runs;
        if (sample >= 0) mode.microseconds.push_back(each);
      }
    }
  }
  std::vector<Measured> results;
  for (std::size_t c = 0; c < contenders.size(); ++c) {
    Measured& result = results.emplace_back();
    result.name = contenders[c].name;
    if (modes[c][0].sample) result.eager = timing_of(modes[c][0].microseconds);
    if (modes[c][1].sample) result.graph = timing_of(modes[c][1].microseconds);
  }
  return results;
}

Timing measure_host(int num_samples, const std::function<void()>& call,
                    const std::function<void()>& settle) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> microseconds;
  for (int sample = -20; sample < num_samples; ++sample) {  // twenty to warm up
    const auto begin = Clock::now();
    call();
    const std::chrono::duration<double, std::micro> taken = Clock::now() - begin;
    settle();
    if (sample >= 0) microseconds.push_back(taken.count());
  }
  return timing_of(microseconds);
}

}  // namespace seqattn::bench
