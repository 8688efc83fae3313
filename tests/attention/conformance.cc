#include "conformance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "seqattn/batch_attention.h"

namespace seqattn::testing {
namespace {

Layout layout_of(TensorLayout layout, std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                 Device device) {
  switch (layout) {
    case TensorLayout::kPacked:
      return {};
    case TensorLayout::kWithGaps:
      return with_gaps(heads, dim, gap_unit(device));
    case TensorLayout::kHeadsFirst:
      return heads_first(tokens, dim);
  }
  return {};
}

// Of what is finite.
double root_mean_square(const double* values, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i])) sum += values[i] * values[i];
  }
  return count == 0 ? 0 : std::sqrt(sum / static_cast<double>(count));
}

// Compares the elements of a row, in groups of `group`, with what the oracle says, and stops at the
// first that is wrong: one line says more than thousands. `extra` of the group's root mean square
// comes to the tolerance.
void expect_near(const char* what, std::size_t row, const double* got,
                 const std::vector<double>& expected, const Tolerance& tolerance, std::size_t group,
                 double extra) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    double allowed = tolerance.at(expected[i]);
    if (extra > 0) allowed += extra * root_mean_square(expected.data() + i / group * group, group);
    const bool same = got[i] == expected[i];  // infinities, too
    if (same || std::abs(got[i] - expected[i]) <= allowed) continue;
    ADD_FAILURE() << what << " of row " << row << ", element " << i << " of " << expected.size()
                  << ": got " << got[i] << (std::isnan(got[i]) ? " (never written?)" : "")
                  << ", expected " << expected[i] << " within " << allowed;
    return;
  }
}

}  // namespace

CallTensors::CallTensors(const AttentionCase& c, const std::vector<ref::Row>& rows, Device device,
                         TensorLayout layout) {
  std::vector<double> queries;
  for (const ref::Row& row : rows) queries.insert(queries.end(), row.q.begin(), row.q.end());
  const std::int64_t tokens = qo_indptr_of(rows).back(), heads = c.num_qo_heads;
  q = Tensor(device, c.q_dtype, {tokens, heads, c.head_dim},
             layout_of(layout, tokens, heads, c.head_dim, device));
  q.write(queries);
  out = Tensor(device, c.out_dtype, {tokens, heads, c.dim_v()},
               layout_of(layout, tokens, heads, c.dim_v(), device));
  const bool apart = layout == TensorLayout::kWithGaps;
  lse = Tensor(device, DType::kFloat32, {tokens, heads},
               apart ? Layout{{heads + 3, 1}, 1} : Layout{});
  if (!rows.empty() && !rows[0].sink_logits.empty()) {
    sinks = Tensor(device, DType::kFloat32, {heads}, {{1}, apart ? 1 : 0});
    sinks.write(rows[0].sink_logits);
  }
}

RunOptions CallTensors::run_options() const {
  RunOptions options{.lse = lse.view()};
  if (sinks.view()) options.sink_logits = sinks.read_only_view();
  return options;
}

CallTensors attend(const AttentionCase& c, const std::vector<ref::Row>& rows,
                   const PagedBatch& batch, int num_threads, TensorLayout layout) {
  CallTensors tensors(c, rows, batch.manager().config().device, layout);
  BatchAttention attention(batch.manager(), c.options(num_threads));
  const auto mask = mask_of(rows);
  attention.plan(batch.packed(), qo_indptr_of(rows), {.mask = mask});
  attention.run(tensors.q.read_only_view(), tensors.out.view(), tensors.run_options());
  return tensors;
}

void expect_reference(const AttentionCase& c, const std::vector<ref::Row>& rows,
                      const CallTensors& tensors) {
  const std::vector<double> out = tensors.out.read(), lse = tensors.lse.read();
  const double rounding = weight_rounding(tensors.out.view().device, c);
  const auto dim = static_cast<std::size_t>(c.dim_v());
  std::size_t first_query = 0;  // of the row, times heads
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const ref::Result expected = ref::attention(rows[i], c.reference_options());
    expect_near("out", i, out.data() + first_query * dim, expected.out, out_tolerance(c, rows[i]),
                dim, 6 * rounding);
    // Where weights are rounded, so is their sum, and logarithms are of the hardware's fast kind.
    Tolerance of_lse = lse_tolerance(c, rows[i]);
    if (rounding > 0) of_lse.absolute += rounding + 2e-5;
    expect_near("lse", i, lse.data() + first_query, expected.lse, of_lse, 1, 0);
    first_query += expected.lse.size();
  }
  EXPECT_TRUE(tensors.out.gaps_are_untouched());
  EXPECT_TRUE(tensors.lse.gaps_are_untouched());
}

void check_case(const AttentionCase& c, Device device, std::mt19937_64& random,
                const Placement& placement, TensorLayout layout) {
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, device, random, placement);
  const auto keys = batch.key_bytes(), values = batch.value_bytes();
  expect_reference(c, rows, attend(c, rows, batch, 0, layout));
  EXPECT_TRUE(keys == batch.key_bytes() && values == batch.value_bytes()) << "caches are inputs";
}

void check_nan_is_passed_on(const AttentionCase& c, Device device, std::mt19937_64& random) {
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    const auto key = static_cast<std::ptrdiff_t>(row.num_kv_heads * row.head_dim);
    const auto num_seen_by_all = static_cast<std::uint64_t>(row.kv_len - row.q_len + 1);
    std::fill_n(row.k.begin() + static_cast<std::ptrdiff_t>(random() % num_seen_by_all) * key, key,
                std::numeric_limits<double>::quiet_NaN());
  }
  const PagedBatch batch(c, rows, device, random);
  CallTensors tensors(c, rows, device);
  for (Tensor* tensor : {&tensors.out, &tensors.lse}) fill_with_normals(*tensor, random);
  BatchAttention attention(batch.manager(), c.options());
  attention.plan(batch.packed(), qo_indptr_of(rows));
  attention.run(tensors.q.read_only_view(), tensors.out.view(), tensors.run_options());
  for (const Tensor* tensor : {&tensors.out, &tensors.lse}) {
    const auto elements = tensor->read();
    const auto is_nan = [](double x) { return std::isnan(x); };
    EXPECT_TRUE(std::all_of(elements.begin(), elements.end(), is_nan))
        << (tensor == &tensors.lse ? "lse" : "out") << " by " << attention.kernel_name();
  }
}

}  // namespace seqattn::testing
