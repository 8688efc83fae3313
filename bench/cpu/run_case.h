#pragma once

#include <random>
#include <vector>

#include "report.h"
#include "torch_side.h"
#include "turns.h"

namespace seqattn::bench {

// Checks seqattn and its peers against the oracle, then times them and the ceilings by turns, with
// each number of threads. Throws std::runtime_error where a result is wrong.
std::vector<CpuResult> run_cpu_case(const CpuCase& spec, const std::vector<int>& threads,
                                    const RunLimits& limits, TorchSide& torch,
                                    std::mt19937_64& random);

}  // namespace seqattn::bench
