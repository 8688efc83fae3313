#include "batch_plan.h"

#include <cstddef>

#include "message.h"
#include "packed_check.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

void check_capacity(const PlanCapacity& capacity, const FlashInferPackedData& packed,
                    std::int64_t num_q_tokens) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    require(most == 0 || value <= most, "plan: got a batch of ", value, " ", name,
            "; expected at most ", most, ", the capacity");
  };
  check("sequences", packed.batch_size(), capacity.max_sequences);
  check("query tokens", num_q_tokens, capacity.max_q_tokens);
  check("pages", static_cast<std::int64_t>(packed.kv_page_indices().size()), capacity.max_pages);
}

// Adds the rows of the batch, and where each would find its mask; returns the size of all masks.
std::int64_t add_rows(BatchPlan& plan, const AttentionShape& shape, const PlanCapacity& capacity,
                      const FlashInferPackedData& packed, std::span<const std::int32_t> qo_indptr) {
  std::int64_t mask_size = 0;
  const auto num_rows = static_cast<std::size_t>(packed.batch_size());
  plan.attention.rows.reserve(num_rows);
  plan.append_rows.reserve(num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) {
    const std::int64_t kv_len = packed.kv_len(static_cast<std::int64_t>(i), shape.page_size);
    const std::int64_t q_len = qo_indptr[i + 1] - qo_indptr[i];
    if (capacity.max_q_len > 0 && q_len > capacity.max_q_len) {
      throw UnsupportedError(concat("plan: row ", i, " has ", q_len, " queries; expected at most ",
                                    capacity.max_q_len,
                                    ", the capacity's max_q_len: plan longer ones with an object "
                                    "without a capacity"));
    }
    require(!shape.causal || kv_len == 0 || q_len <= kv_len, "plan: row ", i, " has ", q_len,
            " queries and ", kv_len,
            " keys; expected no more queries than keys under a causal mask: the keys count the new "
            "tokens, so allocate, then pack, first");
    plan.attention.rows.push_back({.page_begin = packed.kv_page_indptr()[i],
                                   .kv_len = kv_len,
                                   .q_begin = qo_indptr[i],
                                   .q_len = q_len,
                                   .mask_begin = mask_size,
                                   .kv_head_begin = 0,
                                   .kv_head_end = shape.num_kv_heads});
    plan.append_rows.push_back(
        {.page_begin = packed.kv_page_indptr()[i], .kv_len = kv_len, .num_new = q_len});
    std::int64_t row_mask = 0;
    require(!__builtin_mul_overflow(q_len, kv_len, &row_mask) &&
                !__builtin_add_overflow(mask_size, row_mask, &mask_size),
            "plan: the queries times the keys of row ", i, " do not fit 64 bits");
  }
  return mask_size;
}

}  // namespace

std::unique_ptr<BatchPlan> make_batch_plan(const PagePool& pool, const AttentionShape& shape,
                                           const PlanCapacity& capacity,
                                           const FlashInferPackedData& packed,
                                           std::span<const std::int32_t> qo_indptr,
                                           const PlanInputs& inputs) {
  check_packed(pool, packed);
  check_indptr("qo_indptr", qo_indptr, packed.batch_size() + 1, -1);
  check_capacity(capacity, packed, qo_indptr.back());
  auto plan = std::make_unique<BatchPlan>();
  const std::int64_t mask_size = add_rows(*plan, shape, capacity, packed, qo_indptr);
  const auto mask = inputs.mask.value_or(std::span<const std::uint8_t>{});
  require(!inputs.mask || static_cast<std::int64_t>(mask.size()) == mask_size, "mask: got ",
          mask.size(), " entries; expected ", mask_size,
          ", the sum of q_len x kv_len over the rows, or no mask");
  plan->packed = packed;
  plan->attention.page_indices = plan->packed.kv_page_indices();
  plan->attention.mask.assign(mask.begin(), mask.end());
  plan->attention.num_q_tokens = qo_indptr.back();
  return plan;
}

}  // namespace seqattn
