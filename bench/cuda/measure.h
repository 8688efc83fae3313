#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace seqattn::bench {

struct Timing {
  double median_us = 0;
  double low_us = 0, high_us = 0;  // the 10th and 90th of 100
};

Timing timing_of(std::vector<double> microseconds);

// Something to be timed. `eager` and `captured` enqueue run i on the stream, the one launch by
// launch, the other inside a captured graph; either may be missing.
struct Contender {
  std::string name;
  std::function<void(int)> eager = {};
  std::function<void(int)> captured = {};
};

struct Measured {
  std::string name;
  std::optional<Timing> eager, graph;
  double best_us() const;  // of the two medians
};

struct MeasureOptions {
  int num_runs = 1;  // of one sample: i goes from 0 on, each with inputs of its own
  int num_samples = 25;
};

// Times contenders by turns, so that clocks and temperature are the same for all: every sample of
// every contender runs num_runs times between two events, on a stream that is kept busy until all
// is enqueued. Times are of one run.
std::vector<Measured> measure(const std::vector<Contender>& contenders,
                              const MeasureOptions& options, cudaStream_t stream);

// Times calls on the host. `call` is timed; `settle` is not, and follows each one.
Timing measure_host(int num_samples, const std::function<void()>& call,
                    const std::function<void()>& settle);

}  // namespace seqattn::bench
