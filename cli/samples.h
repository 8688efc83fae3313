#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace seqattn::cli {

// Where the pages of the pool were after one step.
struct Sample {
  std::int64_t step = 0;
  std::int64_t in_use = 0;  // by sequences, whether the cache has them too or not
  std::int64_t cached = 0;  // by the cache alone
  std::int64_t free = 0;
};

// Evenly spaced samples of a series of unknown length, in bounded memory: whenever there are too
// many, every other one goes.
class Samples {
 public:
  static constexpr std::size_t kMost = 4096;

  void add(const Sample& sample) {
    if (num_seen_++ % stride_ != 0) return;
    samples_.push_back(sample);
    if (samples_.size() < kMost) return;
    for (std::size_t i = 0; i < kMost / 2; ++i) samples_[i] = samples_[2 * i];
    samples_.resize(kMost / 2);
    stride_ *= 2;
  }
  const std::vector<Sample>& list() const { return samples_; }

 private:
  std::vector<Sample> samples_;
  std::int64_t num_seen_ = 0, stride_ = 1;
};

}  // namespace seqattn::cli
