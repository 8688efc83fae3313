// Attention on one CPU thread beside the same attention as plain C++ loops. Prints GFLOP/s and the
// ratio; ends with 1 where a result is wrong or the ratio is below the goal.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "reference_attention.h"
#include "scalar_attention.h"
#include "seqattn/half.h"
#include "seqattn/seqattn.h"

namespace {

using namespace seqattn;

constexpr int kHeads = 8;
constexpr int kGroup = 4;
constexpr int kDim = 128;
constexpr double kGoal = 8;

struct Case {
  const char* name;
  std::int64_t q_len;
  std::int64_t kv_len;
  int num_layers;  // together larger than the caches where one run would fit into them
  int repetitions;
  int scalar_repetitions;
};

struct Times {
  double median;
  double low;  // 10% and 90%
  double high;
};

Times measure(int repetitions, const std::function<void(int)>& body) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body(i);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  const std::size_t n = seconds.size();
  return {seconds[n / 2], seconds[n / 10], seconds[n - 1 - n / 10]};
}

std::vector<std::uint16_t> random_halves(std::int64_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (std::uint16_t& value : values) value = to_float16(normal(random));
  return values;
}

std::vector<double> widen(const std::vector<std::uint16_t>& values) {
  std::vector<double> result;
  result.reserve(values.size());
  for (const std::uint16_t value : values) result.push_back(from_float16(value));
  return result;
}

double largest_error(const std::vector<float>& out, const std::vector<double>& expected) {
  double error = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double difference = std::fabs(out[i] - expected[i]);
    if (!(difference <= error)) error = difference;  // NaN, too
  }
  return error;
}

// One sequence whose pages lie in random order, the same tokens in every layer.
class PagedSide {
 public:
  PagedSide(const Case& bench, const std::vector<std::uint16_t>& k,
            const std::vector<std::uint16_t>& v, std::mt19937_64& random)
      : manager_({.num_pages = bench.kv_len / 16,
                  .num_heads = kHeads,
                  .head_dim = kDim,
                  .num_layers = bench.num_layers,
                  .kv_layout = KVLayout::kHND}),
        attention_(manager_, {.num_qo_heads = kHeads * kGroup, .num_threads = 1}) {
    std::vector<PageId> pages = manager_.allocate(bench.kv_len / 16);
    std::shuffle(pages.begin(), pages.end(), random);
    const auto num_pages = static_cast<std::int32_t>(pages.size());
    const FlashInferPackedData packed(pages, {0, num_pages}, {16});
    const std::vector<std::int32_t> all{0, static_cast<std::int32_t>(bench.kv_len)};
    for (int layer = 0; layer < bench.num_layers; ++layer) {
      manager_.append_kv(
          TensorView::contiguous(k.data(), DType::kFloat16, {bench.kv_len, kHeads, kDim}),
          TensorView::contiguous(v.data(), DType::kFloat16, {bench.kv_len, kHeads, kDim}), packed,
          all, layer);
    }
    const std::vector<std::int32_t> queries{0, static_cast<std::int32_t>(bench.q_len)};
    attention_.plan(packed, queries);
  }
  void run(const TensorView& q, const TensorView& out, int layer) const {
    attention_.run(q, out, {}, layer);
  }
  std::string_view kernel_name() const { return attention_.kernel_name(); }

 private:
  PagedKVCacheManager manager_;
  BatchAttention attention_;
};

bool run_case(const Case& bench, std::mt19937_64& random) {
  const std::vector<std::uint16_t> k = random_halves(bench.kv_len * kHeads * kDim, random);
  const std::vector<std::uint16_t> v = random_halves(bench.kv_len * kHeads * kDim, random);
  std::normal_distribution<float> normal;
  std::vector<float> q(bench.q_len * kHeads * kGroup * kDim);
  for (float& value : q) value = normal(random);
  std::vector<float> out(q.size(), NAN);
  std::vector<float> scalar_out(q.size(), NAN);

  const PagedSide paged(bench, k, v, random);
  const bench::ScalarAttention scalar{kHeads * kGroup, kHeads,       kDim,
                                      bench.q_len,     bench.kv_len, q.data(),
                                      k.data(),        v.data(),     scalar_out.data()};
  const std::vector<std::int64_t> shape{bench.q_len, kHeads * kGroup, kDim};
  const TensorView q_view = TensorView::contiguous(q.data(), DType::kFloat32, shape);
  const TensorView out_view = TensorView::contiguous(out.data(), DType::kFloat32, shape);

  ref::Row row;
  row.num_qo_heads = kHeads * kGroup;
  row.num_kv_heads = kHeads;
  row.head_dim = row.head_dim_v = kDim;
  row.q_len = bench.q_len;
  row.kv_len = bench.kv_len;
  row.q.assign(q.begin(), q.end());
  row.k = widen(k);
  row.v = widen(v);
  const ref::Result expected = ref::attention(row, {.sm_scale = 1 / std::sqrt(double{kDim})});
  paged.run(q_view, out_view, 0);
  scalar.run();
  const double error =
      std::max(largest_error(out, expected.out), largest_error(scalar_out, expected.out));
  if (!(error < 1e-5)) {
    std::printf("%s: wrong by %g\n", bench.name, error);
    return false;
  }

  const Times ours =
      measure(bench.repetitions, [&](int i) { paged.run(q_view, out_view, i % bench.num_layers); });
  const Times loops = measure(bench.scalar_repetitions, [&](int) { scalar.run(); });
  const double seen =
      static_cast<double>(bench.q_len) *
      (static_cast<double>(bench.kv_len) - (static_cast<double>(bench.q_len) - 1) / 2);
  const double gflop = 4e-9 * kDim * kHeads * kGroup * seen;
  const double gigabytes = 4e-9 * kDim * kHeads * static_cast<double>(bench.kv_len);
  const double ratio = loops.median / ours.median;
  std::printf(
      "%-8s %-18s %9.3f ms [%.3f, %.3f] %6.1f GFLOP/s %6.2f KV GB/s | loops %6.2f GFLOP/s | "
      "%5.1fx\n",
      bench.name, std::string(paged.kernel_name()).c_str(), ours.median * 1e3, ours.low * 1e3,
      ours.high * 1e3, gflop / ours.median, gigabytes / ours.median, gflop / loops.median, ratio);
  return ratio >= kGoal;
}

}  // namespace

int main() {
  std::printf("one thread, float16, %d query and %d KV heads, head_dim %d; median [10%%, 90%%]\n",
              kHeads * kGroup, kHeads, kDim);
  std::mt19937_64 random(20);
  const Case decode{"decode", 1, 4096, 16, 64, 5};
  const Case prefill{"prefill", 512, 512, 1, 9, 3};
  const bool decode_ok = run_case(decode, random);
  const bool prefill_ok = run_case(prefill, random);
  return decode_ok && prefill_ok ? 0 : 1;
}
