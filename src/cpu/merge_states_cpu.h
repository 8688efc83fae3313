#pragma once

#include "seqattn/tensor_view.h"

namespace seqattn {

// Backend::merge_states on a CPU.
void merge_states_cpu(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                      const TensorView& lse_b, const TensorView& out, const TensorView& lse);

}  // namespace seqattn
