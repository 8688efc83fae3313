#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "report.h"

// Who is measured takes turns with the others, so that what the machine does meanwhile meets all.
namespace seqattn::bench {

struct RunLimits {
  int max_rounds = 21;
  double seconds = 4;  // of one case with one number of threads; three rounds at least
  bool with_peers = true;
};

struct Contender {
  std::string name;
  // Seconds of so many runs, on layers from `first` on, which go round.
  std::function<double(int first, int count)> seconds;
  double work = 0;  // of one run of a ceiling
};

using Contenders = std::vector<Contender>;

// One whose runs are timed here.
template <class Run>
Contender timed(std::string name, int layers, Run run, double work = 0) {
  const auto seconds = [=](int first, int count) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = first; i < first + count; ++i) run(i % layers);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  return {std::move(name), seconds, work};
}

// Every contender in each round.
std::vector<Samples> take_turns(const Contenders& contenders, int layers, const RunLimits& limits);

}  // namespace seqattn::bench
