#include "attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ostream>

#include "seqattn/float8.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) {
    if (std::isfinite(value)) result = std::max(result, std::abs(value));
  }
  return result;
}

// The greatest Euclidean norm of the vectors of `dim` elements. Slots that hold NaN or infinities
// are there to be hidden.
double largest_norm(const std::vector<double>& values, int dim) {
  double result = 0;
  for (std::size_t i = 0; i < values.size(); i += static_cast<std::size_t>(dim)) {
    double sum = 0;
    for (int d = 0; d < dim; ++d)
      sum += values[i + static_cast<std::size_t>(d)] * values[i + static_cast<std::size_t>(d)];
    if (std::isfinite(sum)) result = std::max(result, sum);
  }
  return std::sqrt(result);
}

// Of every logit. |q| |k| is at least the sum of the terms' magnitudes.
double logit_error(const AttentionCase& attention_case, const ref::Row& row) {
  const double cap = attention_case.logits_soft_cap;
  double terms = std::abs(attention_case.scale()) * largest_norm(row.q, row.head_dim) *
                 largest_norm(row.k, row.head_dim);
  // So far beyond the cap, practically every logit is the cap itself or its negative.
  if (cap > 0 && terms > 1e12 * cap) terms = 0;
  return 4 * epsilon(DType::kFloat32) * (terms + 2 * cap);
}

double sum_error(const ref::Row& row) {
  return epsilon(DType::kFloat32) * (8 + 4 * std::sqrt(static_cast<double>(row.kv_len)));
}

}  // namespace

std::int64_t AttentionCase::num_q_tokens() const {
  std::int64_t sum = 0;
  for (const RowLengths& row : rows) sum += row.q_len;
  return sum;
}

double AttentionCase::scale() const {
  if (sm_scale != 0) return static_cast<float>(sm_scale);
  return 1 / std::sqrt(static_cast<float>(head_dim));
}

KVCacheConfig AttentionCase::cache_config(std::int64_t num_pages, Device device) const {
  return {.num_pages = num_pages,
          .page_size = page_size,
          .num_heads = num_kv_heads,
          .head_dim = head_dim,
          .head_dim_v = head_dim_v,
          .num_layers = 1,
          .dtype = kv_dtype,
          .device = device,
          .kv_layout = kv_layout,
          .kv_scaling = kv_scaling};
}

std::vector<float> AttentionCase::fixed_scales(bool of_values) const {
  std::vector<float> scales;
  for (int head = 0; head < num_kv_heads; ++head) {
    scales.push_back((of_values ? 0.009f : 0.0077f) * static_cast<float>(1 + head % 3));
  }
  return scales;
}

std::vector<float> AttentionCase::token_scales(const std::vector<double>& elements, int dim,
                                               bool of_values) const {
  const std::size_t width = static_cast<std::size_t>(dim);
  const std::vector<float> fixed = fixed_scales(of_values);
  std::vector<float> scales(elements.size() / width);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scales[i] = fixed[i % fixed.size()];
    if (kv_scaling == KVScaling::kFixed) continue;
    float largest = 0;
    for (std::size_t d = 0; d < width; ++d) {
      largest = std::max(largest, std::abs(static_cast<float>(elements[i * width + d])));
    }
    scales[i] = largest == 0 ? 0x1p-126f : largest / kMaxFloat8E4M3;
  }
  return scales;
}

void AttentionCase::store(std::vector<double>& elements, int dim, bool of_values) const {
  if (kv_dtype != DType::kFloat8E4M3) {
    for (double& x : elements) x = rounded(kv_dtype, x);
    return;
  }
  const std::vector<float> scales = token_scales(elements, dim, of_values);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const float scale = scales[i / static_cast<std::size_t>(dim)];
    const float quotient = static_cast<float>(elements[i]) * (1 / scale);
    elements[i] = rounded(kv_dtype, quotient) * static_cast<double>(scale);
  }
}

AttentionOptions AttentionCase::options(int num_threads) const {
  AttentionOptions options{.num_qo_heads = num_qo_heads,
                           .causal = causal,
                           .window_left = window_left,
                           .logits_soft_cap = static_cast<float>(logits_soft_cap),
                           .num_threads = num_threads,
                           .bfloat16_products = bfloat16_products};
  if (sm_scale != 0) options.sm_scale = static_cast<float>(sm_scale);
  return options;
}

ref::Options AttentionCase::reference_options() const {
  return {.causal = causal,
          .window_left = window_left,
          .sm_scale = scale(),
          .logits_soft_cap = static_cast<float>(logits_soft_cap)};
}

void PrintTo(const AttentionCase& c, std::ostream* out) {
  *out << c.name << ": " << c.num_qo_heads << "/" << c.num_kv_heads << " heads, head_dim "
       << c.head_dim << "/" << c.dim_v() << ", page_size " << c.page_size << " "
       << to_string(c.kv_layout) << ", kv " << to_string(c.kv_dtype) << " "
       << to_string(c.kv_scaling) << ", q " << to_string(c.q_dtype) << ", out "
       << to_string(c.out_dtype) << (c.causal ? ", causal" : "") << ", window_left "
       << c.window_left << ", soft cap " << c.logits_soft_cap << ", mask " << c.mask_density
       << (c.sinks ? ", sinks" : "") << (c.bfloat16_products ? ", bfloat16 products" : "")
       << ", rows (q_len, kv_len)";
  for (const RowLengths& row : c.rows) *out << " (" << row.q_len << ", " << row.kv_len << ")";
}

ref::Row random_row(const AttentionCase& c, RowLengths lengths, std::mt19937_64& random) {
  ref::Row row;
  row.num_qo_heads = c.num_qo_heads;
  row.num_kv_heads = c.num_kv_heads;
  row.head_dim = c.head_dim;
  row.head_dim_v = c.dim_v();
  row.q_len = lengths.q_len;
  row.kv_len = lengths.kv_len;
  const auto fill = [&](std::vector<double>& values, std::int64_t size, DType dtype,
                        double magnitude) {
    std::normal_distribution<double> normal(0, magnitude);
    values.resize(static_cast<std::size_t>(size));
    for (double& value : values) value = rounded(dtype, normal(random));
  };
  fill(row.q, row.q_len * c.num_qo_heads * c.head_dim, c.q_dtype, 1);
  fill(row.k, row.kv_len * c.num_kv_heads * c.head_dim, DType::kFloat32, c.key_magnitude);
  c.store(row.k, c.head_dim, /*of_values=*/false);
  fill(row.v, row.kv_len * c.num_kv_heads * c.dim_v(), DType::kFloat32, 1);
  c.store(row.v, c.dim_v(), /*of_values=*/true);
  if (c.mask_density >= 0) {
    std::bernoulli_distribution visible(c.mask_density);
    row.mask.resize(static_cast<std::size_t>(row.q_len * row.kv_len));
    // Any number but 0 is "visible".
    for (auto& entry : row.mask)
      entry = visible(random) ? static_cast<std::uint8_t>(1 + random() % 255) : 0;
  }
  return row;
}

std::vector<ref::Row> random_rows(const AttentionCase& c, std::mt19937_64& random) {
  std::vector<double> sinks;
  if (c.sinks) {
    std::normal_distribution<double> normal;
    for (int head = 0; head < c.num_qo_heads; ++head) {
      sinks.push_back(rounded(DType::kFloat32, normal(random)));
    }
  }
  std::vector<ref::Row> rows;
  for (const RowLengths& lengths : c.rows) {
    rows.push_back(random_row(c, lengths, random));
    rows.back().sink_logits = sinks;
  }
  return rows;
}

std::vector<std::int32_t> qo_indptr_of(const std::vector<ref::Row>& rows) {
  std::vector<std::int32_t> indptr{0};
  for (const ref::Row& row : rows) {
    indptr.push_back(indptr.back() + static_cast<std::int32_t>(row.q_len));
  }
  return indptr;
}

std::optional<std::vector<std::uint8_t>> mask_of(const std::vector<ref::Row>& rows) {
  std::vector<std::uint8_t> mask;
  for (const ref::Row& row : rows) mask.insert(mask.end(), row.mask.begin(), row.mask.end());
  if (mask.empty()) return {};
  return mask;
}

double epsilon(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

double Tolerance::at(double expected) const { return absolute + relative * std::abs(expected); }

Tolerance out_tolerance(const AttentionCase& c, const ref::Row& row) {
  // An error of every logit moves a weighted mean by at most twice that of its greatest value.
  const double arithmetic = largest(row.v) * (2 * logit_error(c, row) + sum_error(row));
  const double smallest_step = c.out_dtype == DType::kFloat16 ? 0x1p-25 : 0;
  return {arithmetic + smallest_step, 1.01 * epsilon(c.out_dtype)};
}

Tolerance lse_tolerance(const AttentionCase& c, const ref::Row& row) {
  return {logit_error(c, row) + sum_error(row), 2 * epsilon(DType::kFloat32)};
}

}  // namespace seqattn::testing
