#include "turns.h"

#include <algorithm>
#include <cmath>
#include <thread>

namespace seqattn::bench {
namespace {

constexpr double kLeastSample = 1e-3;  // seconds: shorter runs are timed several at a time

// Idle threads spin for some milliseconds before they sleep: nobody is timed beside another's.
constexpr std::chrono::milliseconds kPause{12};
// Runs shorter than this one are woken up by one that is not timed.
constexpr double kWorthWaking = 20e-3;

}  // namespace

std::vector<Samples> take_turns(const Contenders& contenders, int layers, const RunLimits& limits) {
  std::vector<Samples> samples;
  std::vector<int> repetitions, layer(contenders.size());
  const auto run = [&](std::size_t i, int count) {
    const double seconds = contenders[i].seconds(layer[i], count);
    layer[i] = (layer[i] + count) % layers;
    return seconds;
  };
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    samples.push_back({.name = contenders[i].name, .seconds = {}, .work = contenders[i].work});
    const double once = run(i, 1);
    repetitions.push_back(static_cast<int>(std::ceil(kLeastSample / std::max(once, 1e-7))));
  }
  double spent = 0;
  for (int round = 0; round < limits.max_rounds && (round < 3 || spent < limits.seconds); ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      std::this_thread::sleep_for(kPause);
      const auto& earlier = samples[i].seconds;
      if (earlier.empty() || earlier.back() < kWorthWaking) run(i, 1);
      const double taken = run(i, repetitions[i]);
      samples[i].seconds.push_back(taken / repetitions[i]);
      spent += taken;
    }
  }
  return samples;
}

}  // namespace seqattn::bench
