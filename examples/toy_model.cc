#include "toy_model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace toy {
namespace {

using namespace seqattn;

constexpr int kGroup = kNumQoHeads / kNumHeads;
constexpr int kWidth = kNumQoHeads * kHeadDim;  // of the embedding, and of what attention adds
constexpr float kScale = 2;                     // sharp: some keys count more than others

enum Table : std::uint64_t { kEmbedding, kQuery, kKey, kValue, kOutput, kPosition };

// The number in [-1, 1) at that place of a table.
double weight(Table table, int row, int column) {
  std::uint64_t x =
      table << 40 | static_cast<std::uint64_t>(row) << 20 | static_cast<std::uint64_t>(column);
  for (const std::uint64_t odd : {0x9e3779b97f4a7c15u, 0xd6e8feb86659fd93u, 0xd6e8feb86659fd93u}) {
    x = (x ^ x >> 32) * odd;
  }
  return static_cast<double>(x >> 40) / (1 << 23) - 1;
}

// A row of features of a token where it stands: float32, as the cache has them.
std::vector<float> features(Table table, Token token, std::int64_t position, int width) {
  std::vector<float> row(static_cast<std::size_t>(width));
  for (int i = 0; i < width; ++i) {
    const double of_position = weight(kPosition, static_cast<int>(position), table * kWidth + i);
    row[i] = static_cast<float>(weight(table, token, i) + 0.3 * of_position);
  }
  return row;
}

void append(std::vector<float>& rows, const std::vector<float>& row) {
  rows.insert(rows.end(), row.begin(), row.end());
}

template <class Attended>
Logits logits_of(Token token, std::int64_t position, const Attended& attended) {
  const auto hidden = features(kEmbedding, token, position, kWidth);
  Logits logits(kVocabulary);
  for (Token next = 0; next < kVocabulary; ++next) {
    for (int i = 0; i < kWidth; ++i) {
      logits[next] += (hidden[i] + double{attended[i]}) * weight(kOutput, next, i);
    }
  }
  return logits;
}

}  // namespace

KVCacheConfig cache_config(std::int64_t num_pages, int page_size) {
  return {.num_pages = num_pages,
          .page_size = page_size,
          .num_heads = kNumHeads,
          .head_dim = kHeadDim,
          .dtype = DType::kFloat32};
}

Model::Model(PagedKVCacheManager& manager)
    : attention_(manager, {.num_qo_heads = kNumQoHeads, .sm_scale = kScale}) {}

std::vector<Logits> Model::forward(CacheDescriptor& sequences, const std::vector<SeqId>& ids,
                                   const std::vector<Tokens>& new_tokens) {
  std::vector<float> q, k, v;
  std::vector<std::int64_t> lengths, positions;
  std::vector<std::int32_t> indptr{0};
  Tokens tokens;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::int64_t position = sequences.contains(ids[i]) ? sequences.length(ids[i]) : 0;
    for (const Token token : new_tokens[i]) {
      append(q, features(kQuery, token, position, kWidth));
      append(k, features(kKey, token, position, kNumHeads * kHeadDim));
      append(v, features(kValue, token, position, kNumHeads * kHeadDim));
      tokens.push_back(token);
      positions.push_back(position++);
    }
    lengths.push_back(static_cast<std::int64_t>(new_tokens[i].size()));
    indptr.push_back(static_cast<std::int32_t>(tokens.size()));
  }
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::vector<float> out(q.size());
  const auto view = [&](std::vector<float>& rows, int heads) {
    return TensorView::contiguous(rows.data(), DType::kFloat32, {count, heads, kHeadDim});
  };
  // A real model would do the last two for each of its layers.
  sequences.allocate(ids, lengths);
  attention_.plan(sequences.pack_for_flashinfer(ids), indptr);
  attention_.append_kv(view(k, kNumHeads), view(v, kNumHeads));
  attention_.run(view(q, kNumQoHeads), view(out, kNumQoHeads));

  std::vector<Logits> logits;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    logits.push_back(logits_of(tokens[i], positions[i], &out[i * kWidth]));
  }
  return logits;
}

Logits recompute(const Tokens& tokens, const SlidingWindow& window) {
  const auto last = static_cast<std::int64_t>(tokens.size()) - 1;
  const auto q = features(kQuery, tokens.back(), last, kWidth);
  std::vector<double> out(kWidth), sums(kNumQoHeads);
  for (std::int64_t t = 0; t <= last; ++t) {
    if (window.window > 0 && t >= window.num_sink_tokens && t <= last - window.window) continue;
    const auto k = features(kKey, tokens[t], t, kNumHeads * kHeadDim);
    const auto v = features(kValue, tokens[t], t, kNumHeads * kHeadDim);
    for (int head = 0; head < kNumQoHeads; ++head) {
      const int kv = head / kGroup * kHeadDim, qo = head * kHeadDim;
      const double dot =
          std::inner_product(&q[qo], &q[qo] + kHeadDim, &k[kv], 0.0, std::plus<double>(),
                             [](double a, double b) { return a * b; });
      const double share = std::exp(kScale * dot);
      sums[head] += share;
      for (int i = 0; i < kHeadDim; ++i) out[qo + i] += share * v[kv + i];
    }
  }
  for (int i = 0; i < kWidth; ++i) out[i] /= sums[i / kHeadDim];
  return logits_of(tokens.back(), last, out);
}

Logits guess(Token token, std::int64_t position) {
  return logits_of(token, position, std::vector<double>(kWidth));
}

Token best(const Logits& logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Logits log_softmax(const Logits& logits) {
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit);
  Logits result = logits;
  for (double& logit : result) logit -= std::log(sum);
  return result;
}

double distance(const Logits& a, const Logits& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

}  // namespace toy
