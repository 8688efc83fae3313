#include "merge_states_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "convert.h"
#include "threads.h"

namespace seqattn {
namespace {

constexpr std::int64_t kPiece = 256;  // elements that are merged at a time

// One row of an output: where it lies, and how it becomes float32 or comes from it.
struct Row {
  std::byte* data;
  std::int64_t element_bytes;
  Conversion convert;

  Row(const TensorView& tensor, std::int64_t token, std::int64_t head, Conversion conversion)
      : data(static_cast<std::byte*>(tensor.data) +
             (token * tensor.strides[0] + head * tensor.strides[1]) * size_of(tensor.dtype)),
        element_bytes(size_of(tensor.dtype)),
        convert(conversion) {}
};

float& lse_at(const TensorView& lse, std::int64_t token, std::int64_t head) {
  return static_cast<float*>(lse.data)[token * lse.strides[0] + head * lse.strides[1]];
}

// The weights of the two sides, and the LSE of their union.
struct Merged {
  float a = 0;
  float b = 0;
  float lse = -std::numeric_limits<float>::infinity();
};

Merged merge_weights(double lse_a, double lse_b) {
  const auto sees_nothing = [](double lse) { return std::isinf(lse) && lse < 0; };
  if (sees_nothing(lse_a) && sees_nothing(lse_b)) return {};
  const double max = std::fmax(lse_a, lse_b);  // of one that is NaN the other; then all is NaN
  const double a = std::exp(lse_a - max), b = std::exp(lse_b - max);
  return {static_cast<float>(a / (a + b)), static_cast<float>(b / (a + b)),
          static_cast<float>(max + std::log(a + b))};
}

// A side without weight is not read: its output may be anything.
void merge_row(const Merged& merged, const Row& a, const Row& b, const Row& out, std::int64_t dim) {
  std::array<float, kPiece> from_a, from_b;
  for (std::int64_t d = 0; d < dim; d += kPiece) {
    const std::int64_t count = std::min(kPiece, dim - d);
    const auto load = [&](const Row& row, float weight, std::array<float, kPiece>& to) {
      if (weight == 0) {
        std::fill_n(to.begin(), count, 0.0f);
      } else {
        row.convert(row.data + d * row.element_bytes, to.data(), count);
      }
    };
    load(a, merged.a, from_a);
    load(b, merged.b, from_b);
    for (std::int64_t i = 0; i < count; ++i) {
      from_a[i] = merged.a * from_a[i] + merged.b * from_b[i];
    }
    out.convert(from_a.data(), out.data + d * out.element_bytes, count);
  }
}

}  // namespace

void merge_states_cpu(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                      const TensorView& lse_b, const TensorView& out, const TensorView& lse) {
  const Conversion from_a = conversion(out_a.dtype, DType::kFloat32);
  const Conversion from_b = conversion(out_b.dtype, DType::kFloat32);
  const Conversion to_out = conversion(DType::kFloat32, out.dtype);
  const int num_threads = copy_threads(3 * out.num_elements() * size_of(out.dtype), 0);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (std::int64_t token = 0; token < out.shape[0]; ++token) {
    for (std::int64_t head = 0; head < out.shape[1]; ++head) {
      const Merged merged = merge_weights(lse_at(lse_a, token, head), lse_at(lse_b, token, head));
      merge_row(merged, {out_a, token, head, from_a}, {out_b, token, head, from_b},
                {out, token, head, to_out}, out.shape[2]);
      if (lse) lse_at(lse, token, head) = merged.lse;
    }
  }
}

}  // namespace seqattn
