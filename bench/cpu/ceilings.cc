#include "ceilings.h"

#include <omp.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ceilings.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace seqattn::bench {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kChains = 12;  // enough to hide the latency of four cycles on two units
constexpr std::int64_t kRounds = 1 << 20;

std::uint32_t read_pieces(const std::byte* const* pieces, std::int64_t num_pieces,
                          std::size_t piece_bytes) {
  const hn::ScalableTag<std::uint32_t> tag;
  const std::size_t lanes = hn::Lanes(tag);
  auto a = hn::Zero(tag), b = a, c = a, d = a;
  for (std::int64_t i = 0; i < num_pieces; ++i) {
    const auto* from = reinterpret_cast<const std::uint32_t*>(pieces[i]);
    const std::byte* const next = pieces[i + 2 < num_pieces ? i + 2 : i];
    const std::size_t count = piece_bytes / sizeof(std::uint32_t);
    for (std::size_t k = 0; k < count; k += 4 * lanes) {
      for (std::size_t at = k * 4; at < (k + 4 * lanes) * 4; at += 64) {
        __builtin_prefetch(next + at, 0, 2);
      }
      a = hn::Add(a, hn::LoadU(tag, from + k));
      b = hn::Add(b, hn::LoadU(tag, from + k + lanes));
      c = hn::Add(c, hn::LoadU(tag, from + k + 2 * lanes));
      d = hn::Add(d, hn::LoadU(tag, from + k + 3 * lanes));
    }
  }
  return hn::GetLane(hn::SumOfLanes(tag, hn::Add(hn::Add(a, b), hn::Add(c, d))));
}

// Returns the operations of one call; `sink` keeps the results alive.
double multiply_chains(float* sink) {
  const hn::ScalableTag<float> tag;
  hn::Vec<decltype(tag)> sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = hn::Set(tag, static_cast<float>(i));
  const auto factor = hn::Set(tag, *sink), step = hn::Set(tag, 1e-3f);
  for (std::int64_t round = 0; round < kRounds; ++round) {
    HWY_UNROLL(12)
    for (int i = 0; i < kChains; ++i) sums[i] = hn::MulAdd(sums[i], factor, step);
  }
  auto total = sums[0];
  for (int i = 1; i < kChains; ++i) total = hn::Add(total, sums[i]);
  *sink = hn::GetLane(total);
  return 2.0 * kChains * static_cast<double>(hn::Lanes(tag)) * static_cast<double>(kRounds);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace seqattn::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#if HWY_ARCH_X86
#include <immintrin.h>
#endif

namespace seqattn::bench {
namespace {

HWY_EXPORT(read_pieces);
HWY_EXPORT(multiply_chains);

// Runs `call(sink)` on every thread at once and adds up what it returns.
template <class Call>
double on_all_threads(int num_threads, const Call& call) {
  double total = 0;
#pragma omp parallel num_threads(num_threads) reduction(+ : total)
  {
    float sink = 0.5f;
    total += call(&sink);
    volatile float kept = sink;
    (void)kept;
  }
  return total;
}

#if HWY_ARCH_X86
constexpr int kBFloat16Chains = 12;

__attribute__((target("avx512bf16,avx512f,avx512vl"))) double multiply_bfloat16_chains(
    float* sink) {
  __m512 sums[kBFloat16Chains];
  for (int i = 0; i < kBFloat16Chains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto factor = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f00));
  for (std::int64_t round = 0; round < (1 << 20); ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kBFloat16Chains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kBFloat16Chains; ++i) total = _mm512_add_ps(total, sums[i]);
  *sink = _mm512_cvtss_f32(total);
  return 4.0 * kBFloat16Chains * 16 * (1 << 20);
}
#endif

}  // namespace

std::uint32_t Reader::operator()() const {
  const auto num_pieces = static_cast<std::int64_t>(pieces_.size());
  std::uint32_t sum = 0;
#pragma omp parallel num_threads(num_threads_) reduction(+ : sum)
  {
    const std::int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const std::int64_t begin = num_pieces * thread / threads;
    const std::int64_t end = num_pieces * (thread + 1) / threads;
    sum += HWY_DYNAMIC_DISPATCH(read_pieces)(pieces_.data() + begin, end - begin, piece_bytes_);
  }
  return sum;
}

double multiply_floats(int num_threads) {
  return on_all_threads(num_threads,
                        [](float* sink) { return HWY_DYNAMIC_DISPATCH(multiply_chains)(sink); });
}

double multiply_bfloat16(int num_threads) {
#if HWY_ARCH_X86
  if (__builtin_cpu_supports("avx512bf16")) {
    return on_all_threads(num_threads, [](float* sink) { return multiply_bfloat16_chains(sink); });
  }
#endif
  (void)num_threads;
  return 0;
}

}  // namespace seqattn::bench
#endif
