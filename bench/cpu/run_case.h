#pragma once

#include <random>
#include <vector>

#include "report.h"

namespace seqattn::bench {

struct RunLimits {
  int max_rounds = 21;
  double seconds = 4;  // of one case with one number of threads; three rounds at least
  bool with_peers = true;
};

// Checks seqattn and its peers against the oracle, then times them and the ceilings by turns, with
// each number of threads. Throws std::runtime_error where a result is wrong.
std::vector<CpuResult> run_cpu_case(const CpuCase& spec, const std::vector<int>& threads,
                                    const RunLimits& limits, std::mt19937_64& random);

}  // namespace seqattn::bench
