#include "scalar_attention.h"

#include <algorithm>
#include <cmath>

#include "seqattn/half.h"

namespace seqattn::bench {
namespace {

void unpack(const std::uint16_t* from, int dim, float* to) {
  for (int d = 0; d < dim; ++d) to[d] = from_float16(from[d]);
}

float dot(const float* a, const float* b, int dim) {
  float sum = 0;
  for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
  return sum;
}

}  // namespace

void ScalarAttention::run() const {
  const int group = num_qo_heads / num_kv_heads;
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  std::vector<float> row(dim);
  std::vector<float> scores(group * kv_len);
  for (std::int64_t j = 0; j < q_len; ++j) {
    const std::int64_t num_keys = kv_len - q_len + j + 1;
    for (int head = 0; head < num_kv_heads; ++head) {
      const std::int64_t first = (j * num_qo_heads + head * group) * dim;
      for (std::int64_t t = 0; t < num_keys; ++t) {
        unpack(k + (t * num_kv_heads + head) * dim, dim, row.data());
        for (int g = 0; g < group; ++g) {
          scores[g * kv_len + t] = scale * dot(q + first + g * dim, row.data(), dim);
        }
      }
      for (int g = 0; g < group; ++g) {
        float* const weights = scores.data() + g * kv_len;
        const float max = *std::max_element(weights, weights + num_keys);
        float sum = 0;
        for (std::int64_t t = 0; t < num_keys; ++t) sum += weights[t] = std::exp(weights[t] - max);
        for (std::int64_t t = 0; t < num_keys; ++t) weights[t] /= sum;
      }
      std::fill_n(out + first, group * dim, 0.0f);
      for (std::int64_t t = 0; t < num_keys; ++t) {
        unpack(v + (t * num_kv_heads + head) * dim, dim, row.data());
        for (int g = 0; g < group; ++g) {
          const float weight = scores[g * kv_len + t];
          float* const to = out + first + g * dim;
          for (int d = 0; d < dim; ++d) to[d] += weight * row[d];
        }
      }
    }
  }
}

}  // namespace seqattn::bench
