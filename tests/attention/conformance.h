#pragma once

#include <random>
#include <vector>

#include "attention_case.h"
#include "paged_batch.h"
#include "tensor.h"

namespace seqattn::testing {

// How the tensors of a call lie in memory.
enum class TensorLayout { kPacked, kWithGaps, kHeadsFirst };

// The tensors of one call, outputs poisoned.
struct CallTensors {
  Tensor q;      // [q tokens, num_qo_heads, head_dim]
  Tensor out;    // [q tokens, num_qo_heads, head_dim_v]
  Tensor lse;    // [q tokens, num_qo_heads]
  Tensor sinks;  // [num_qo_heads], empty without sinks

  CallTensors(const AttentionCase& attention_case, const std::vector<ref::Row>& rows, Device device,
              TensorLayout layout = TensorLayout::kPacked);
  RunOptions run_options() const;
};

// Plans the batch and runs it once; the tensors hold the result.
CallTensors attend(const AttentionCase& attention_case, const std::vector<ref::Row>& rows,
                   const PagedBatch& batch, int num_threads = 0,
                   TensorLayout layout = TensorLayout::kPacked);

// Expects out and lse to agree with the oracle within the tolerance of the case, every element
// written and nothing beside them. Where NaN is expected, of a query that sees a NaN, it is to be
// NaN.
void expect_reference(const AttentionCase& attention_case, const std::vector<ref::Row>& rows,
                      const CallTensors& tensors);

// The whole of it: random rows in a paged cache full of traps, one run, the oracle.
void check_case(const AttentionCase& attention_case, Device device, std::mt19937_64& random,
                const Placement& placement = {}, TensorLayout layout = TensorLayout::kPacked);

// Every query sees a key of NaN: out and lse are to be NaN, and written.
void check_nan_is_passed_on(const AttentionCase& attention_case, Device device,
                            std::mt19937_64& random);

}  // namespace seqattn::testing
