#include "reference_attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace seqattn::ref {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

bool is_visible(const Row& row, const Options& options, std::int64_t query, std::int64_t key) {
  const std::int64_t position = row.kv_len - row.q_len + query;
  if (options.causal && key > position) return false;
  if (options.window_left >= 0 && key < position - options.window_left) return false;
  const bool is_sink = key < row.num_sink_tokens;
  const bool is_recent = position - key < row.window;
  if (row.window > 0 && !is_sink && !is_recent) return false;
  return row.mask.empty() || row.mask[static_cast<std::size_t>(query * row.kv_len + key)] != 0;
}

double logit(const Row& row, const Options& options, std::int64_t query, int head,
             std::int64_t key) {
  const int kv_head = head / (row.num_qo_heads / row.num_kv_heads);
  const double* q = row.q.data() + (query * row.num_qo_heads + head) * row.head_dim;
  const double* k = row.k.data() + (key * row.num_kv_heads + kv_head) * row.head_dim;
  double dot = 0;
  for (int d = 0; d < row.head_dim; ++d) dot += q[d] * k[d];
  const double scaled = options.sm_scale * dot;
  const double cap = options.logits_soft_cap;
  return cap > 0 ? cap * std::tanh(scaled / cap) : scaled;
}

// One query of one head: writes out[head_dim_v], returns the LSE. Hidden keys and values are never
// read.
double attend(const Row& row, const Options& options, std::int64_t query, int head, double* out) {
  std::vector<std::int64_t> keys;
  std::vector<double> logits;
  const double sink =
      row.sink_logits.empty() ? kMinusInfinity : row.sink_logits[static_cast<std::size_t>(head)];
  double max = sink;
  for (std::int64_t key = 0; key < row.kv_len; ++key) {
    if (!is_visible(row, options, query, key)) continue;
    keys.push_back(key);
    logits.push_back(logit(row, options, query, head, key));
    max = std::max(max, logits.back());
  }
  const auto is_nan = [](double x) { return std::isnan(x); };  // which no maximum knows
  const bool has_nan = std::any_of(logits.begin(), logits.end(), is_nan);
  if (max == kMinusInfinity && !has_nan) return kMinusInfinity;

  double sum = std::exp(sink - max);
  for (const double x : logits) sum += std::exp(x - max);
  const int kv_head = head / (row.num_qo_heads / row.num_kv_heads);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const double weight = std::exp(logits[i] - max) / sum;
    const double* v = row.v.data() + (keys[i] * row.num_kv_heads + kv_head) * row.head_dim_v;
    for (int d = 0; d < row.head_dim_v; ++d) out[d] += weight * v[d];
  }
  return max + std::log(sum);
}

}  // namespace

Result attention(const Row& row, const Options& options) {
  const auto num_queries = static_cast<std::size_t>(row.q_len * row.num_qo_heads);
  Result result;
  result.out.assign(num_queries * static_cast<std::size_t>(row.head_dim_v), 0.0);
  result.lse.resize(num_queries);
  for (std::int64_t query = 0; query < row.q_len; ++query) {
    for (int head = 0; head < row.num_qo_heads; ++head) {
      const std::int64_t i = query * row.num_qo_heads + head;
      result.lse[static_cast<std::size_t>(i)] =
          attend(row, options, query, head, result.out.data() + i * row.head_dim_v);
    }
  }
  return result;
}

}  // namespace seqattn::ref
