#pragma once

#include "cases.h"
#include "measure.h"
#include "report.h"

namespace seqattn::bench {

// Memory's ceilings, in GB/s.
struct Ceilings {
  double copy = 0;  // device to device, bytes read and written
  double read = 0;
};
Ceilings measure_ceilings(int num_samples, cudaStream_t stream);

// Verifies every contender of the case, then times them by turns. Throws std::runtime_error for a
// wrong result. FlashInfer takes part where `with_flashinfer` is set.
CaseResult run_case(const CaseSpec& spec, const Ceilings& ceilings, int num_samples,
                    bool with_flashinfer, cudaStream_t stream);

}  // namespace seqattn::bench
