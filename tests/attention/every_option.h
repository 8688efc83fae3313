#pragma once

#include <random>

#include "conformance.h"

namespace seqattn::testing {

// Short and long rows of the case with sinks, under every mixture of causality, window, soft cap
// and mask, on a CPU.
inline void check_every_option(AttentionCase c, std::mt19937_64& random) {
  c.num_qo_heads = 6;
  c.rows = {{40, 60}, {1, 1700}, {2, 100}, {1, 13}};
  c.sinks = true;
  for (const bool causal : {true, false}) {
    for (const int window_left : {-1, 0, 9}) {
      for (const double cap : {0.0, 2.0}) {
        for (const double mask_density : {-1.0, 0.3}) {
          c.causal = causal;
          c.window_left = window_left;
          c.logits_soft_cap = cap;
          c.mask_density = mask_density;
          check_case(c, cpu(), random, {.unused = Unused::kMixed});
        }
      }
    }
  }
}

}  // namespace seqattn::testing
