#pragma once

#include <vector>

#include "report.h"

namespace seqattn::bench {

// What planning and whole decode steps cost on the host; FlashInfer's own planners beside it where
// `with_flashinfer` is set.
std::vector<HostResult> measure_host_costs(int num_samples, bool with_flashinfer);

}  // namespace seqattn::bench
