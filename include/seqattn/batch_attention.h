#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "seqattn/export.h"
#include "seqattn/packed_data.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

namespace seqattn {

class CacheDescriptor;
class PagedKVCacheManager;

// What every call of one attention layer has in common.
struct AttentionOptions {
  // A multiple of the cache's num_heads; query head h reads KV head h / (num_qo_heads / num_heads).
  int num_qo_heads = 0;
  // Query j of a row sees keys up to its own position, kv_len - q_len + j.
  bool causal = true;
  // >= 0: a query sees no more than that many keys before its position; -1: all. A sequence's own
  // window (CacheDescriptor) counts besides.
  int window_left = -1;
  // The factor of q . k, from -1e18 to 1e18; 1 / sqrt(head_dim) unless set.
  std::optional<float> sm_scale = {};
  // 1e-18 to 1e18: logits become cap * tanh(logit / cap), after scaling; 0: they stay.
  float logits_soft_cap = 0;
  // Threads of the CPU backend; 0 = all that OpenMP offers. Never more run than there are
  // processors (64 where those are fewer) or than OMP_THREAD_LIMIT.
  int num_threads = 0;
  // Lets a CPU compute the products of a bfloat16 cache with its own dot products of bfloat16,
  // which is faster and rounds to bfloat16 what otherwise stays float32: the weights of the
  // softmax, and queries that come as float32 (docs/formulas.md). It needs AVX512_BF16, and
  // head_dim and head_dim_v that are multiples of 32; elsewhere it changes nothing. kernel_name()
  // says what runs.
  bool bfloat16_products = false;
};

// The largest batch that `plan` will be given, 0 = no limit; a batch beyond it is an error. On a
// device any capacity at all makes the object safe under CUDA graphs: every buffer is sized once,
// so that `append_kv` and `run`, captured once, replay any later plan; max_sequences, max_q_tokens
// and max_pages must then be given.
//
// Padding: with max_q_tokens, tensors of tokens (keys, values, q, out, lse) may have that many rows
// instead of the batch's own number; rows behind the batch's are neither read nor written. While a
// stream is captured they must.
struct PlanCapacity {
  std::int64_t max_sequences = 0;
  std::int64_t max_q_tokens = 0;  // summed over the batch
  std::int64_t max_q_len = 0;     // queries of one sequence; more raise UnsupportedError
  std::int64_t max_pages = 0;     // summed over the batch
  explicit operator bool() const noexcept {
    return (max_sequences | max_q_tokens | max_q_len | max_pages) != 0;
  }
};

// What a batch may bring besides its tables.
struct PlanInputs {
  // For each row its [q_len, kv_len] booleans, row-major, one row after the other: 0 hides the key
  // from the query. It narrows what `causal` and `window_left` let through. Copied by plan.
  // nullopt: no mask, which an empty one is only for a batch without queries or keys.
  std::optional<std::span<const std::uint8_t>> mask = {};
};

// What one run may bring besides q and out.
struct RunOptions {
  TensorView lse = {};  // output [total_q_tokens, num_qo_heads], float32: natural log of the sum of
                        // exp(logits), scaled and capped
  TensorView sink_logits = {};  // input [num_qo_heads], float32: one learned logit a head that
                                // joins the softmax denominator, and the LSE
};

struct BatchPlan;       // src/core/batch_plan.h
class AttentionKernel;  // src/core/backend.h

// Attention of a ragged batch over a paged cache: prefill, chunked prefill, decode and any mixture.
//
//   out_j = sum_t softmax_t(logit(q_j, k_t)) v_t over the keys t that query j sees, in float32.
//   (docs/formulas.md: PagedAttention, Kwon et al. 2023; FlashAttention-2, Dao 2023.)
//
// `plan` once a step; then, for each layer, `append_kv` and `run`. A query that sees no key gives 0
// and an LSE of -inf (with sink_logits: 0 and the sink's logit). The result of a row is
// bit-identical whatever else is in the batch, wherever its pages lie and however many threads run.
// Slots that were never written cannot reach an output.
//
// Threads: objects are independent of one another; const members of one may run at the same time on
// a CPU. On a device the runs of one object share a workspace: they have to follow one another, on
// one stream or by events. The manager must outlive it.
class SEQATTN_EXPORT BatchAttention {
 public:
  // Throws InvalidArgumentError for options out of range, UnsupportedError for a shape that the
  // device's backend has no kernel for.
  BatchAttention(PagedKVCacheManager& manager, const AttentionOptions& options,
                 const PlanCapacity& capacity = {});
  ~BatchAttention();
  BatchAttention(const BatchAttention&) = delete;
  BatchAttention& operator=(const BatchAttention&) = delete;

  // Validates the batch and prepares it for every layer. qo_indptr [batch_size + 1]: row i asks
  // with queries qo_indptr[i] .. qo_indptr[i + 1], the last q_len_i positions of its kv_len_i. Good
  // until a planned page is freed (debug builds check). O(pages). Throws InvalidArgumentError,
  // leaving the previous plan in place, for tables that are no batch of this pool, an indptr that
  // falls or has another size, 0 < kv_len < q_len under a causal mask, a mask of another size, a
  // batch beyond the capacity, queries that would see what their row's window has dropped. A row
  // with a window or a pending tree (CacheDescriptor) is masked accordingly; on a device with a
  // capacity, as a mask is, it raises UnsupportedError. A row without keys (q_len > kv_len == 0) is
  // planned whatever its queries: they see nothing. Where a captured graph holds an append of this
  // object, what append_kv refuses is refused here already.
  void plan(const FlashInferPackedData& packed, ListView<std::int32_t> qo_indptr,
            const PlanInputs& inputs = {}, Stream stream = {});

  // plan(sequences.pack_for_flashinfer(seq_ids), qo_indptr, {}, stream), with the same outputs, bit
  // by bit. Where a device has our own kernel for all rows of the batch (docs/cuda.md), nothing is
  // packed: page tables stay on the device from plan to plan, a plan sends lengths and what is new
  // in the tables, O(rows + new pages), and the device works out the rest. A batch is packed where
  // a row has a window, a tree or no keys, where the capacity leaves room for other kernels, and
  // for good once a caller has called `unref` or `adopt` on the pool; in debug builds it is packed
  // besides. Changing a sequence afterwards does not change the plan. Throws UnknownSequenceError,
  // and InvalidArgumentError for a descriptor of another pool, too.
  void plan_sequences(const CacheDescriptor& sequences, SeqIds seq_ids,
                      ListView<std::int32_t> qo_indptr, Stream stream = {});

  // Writes the planned batch's new tokens, as many as its queries; PagedKVCacheManager::append_kv
  // says the rest.
  void append_kv(const TensorView& keys, const TensorView& values, int layer = 0,
                 Stream stream = {}) const;

  // q    [total_q_tokens, num_qo_heads, head_dim], cache dtype, over an 8-bit cache float16 or
  //      bfloat16; on a CPU float32 too
  // out  [total_q_tokens, num_qo_heads, head_dim_v]: on a CPU any type that q may have, on a device
  //      that of q or float32
  // The memory ranges of out and lse may meet neither each other nor an input nor the cache. Throws
  // InvalidArgumentError without a plan, for tensors of another shape, dtype, stride or device, a
  // read-only output, ranges that meet; UnsupportedError for types that a device has no kernel for.
  // O(q tokens x kv tokens x heads x head_dim). On a device it returns before the work is done.
  void run(const TensorView& q, const TensorView& out, const RunOptions& options = {},
           int layer = 0, Stream stream = {}) const;

  const AttentionOptions& options() const noexcept { return options_; }  // sm_scale resolved
  const PlanCapacity& capacity() const noexcept { return capacity_; }
  std::string_view kernel_name() const noexcept;  // the path that was chosen, "cpu-avx3-float16"
  std::int64_t num_q_tokens() const noexcept;     // of the present plan
  std::string to_string() const;

 private:
  PagedKVCacheManager* manager_;
  AttentionOptions options_;
  PlanCapacity capacity_;
  std::unique_ptr<AttentionKernel> kernel_;
  std::unique_ptr<BatchPlan> plan_;        // null before the first plan
  std::unique_ptr<BatchPlan> spare_plan_;  // one before it, whose memory the next one uses
};

// Merges attention over two disjoint sets of keys into attention over their union (cascade: Ye et
// al. 2024):
//   lse = log(exp(lse_a) + exp(lse_b)),  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b.
// out_a, out_b, out: [tokens, heads, dim], of one dtype each, float32 or 16-bit; lse_a, lse_b, lse:
// [tokens, heads], float32. `lse` may be absent. Outputs may be the very tensors of side a or b. A
// side with an LSE of -inf counts nothing. Throws InvalidArgumentError for tensors that do not
// agree.
SEQATTN_EXPORT void merge_states(const TensorView& out_a, const TensorView& lse_a,
                                 const TensorView& out_b, const TensorView& lse_b,
                                 const TensorView& out, const TensorView& lse = {},
                                 Stream stream = {});

}  // namespace seqattn
