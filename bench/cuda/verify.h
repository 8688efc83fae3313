#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "workload.h"

namespace seqattn::bench {

// Checks outputs of attention beside a plain kernel in double precision, on some queries of the
// batch and all heads. References are computed once for each run number.
class AttentionVerifier {
 public:
  explicit AttentionVerifier(const Workload& workload);

  // Poisons the output of run i, lets `launch` enqueue that run, and checks it: every element is
  // written, and ||out - reference|| / ||reference|| of every sampled head is small. Throws
  // std::runtime_error, naming the contender, for a result that is wrong.
  void verify(const std::string& contender, const std::function<void(int)>& launch, int run,
              cudaStream_t stream);
  double largest_error() const { return largest_error_; }

 private:
  const std::vector<double>& reference(int run, cudaStream_t stream);

  const Workload& workload_;
  std::vector<Sample> samples_;
  std::vector<std::pair<int, std::vector<double>>> references_;
  double largest_error_ = 0;
};

// The same for an append of run i: every new token is where it belongs. Throws likewise.
void verify_append(const Workload& workload, const std::string& contender,
                   const std::function<void(int)>& launch, int run, cudaStream_t stream);

}  // namespace seqattn::bench
