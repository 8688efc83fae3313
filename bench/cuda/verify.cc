#include "verify.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include "seqattn/half.h"

namespace seqattn::bench {
namespace {

// bfloat16 weights and outputs give 1e-3 to 3e-3.
constexpr double kTolerance = 6e-3;
constexpr int kSamples = 32;

Sample sample_of(const CaseSpec& spec, const std::vector<std::int32_t>& q_indptr, std::size_t row,
                 std::int64_t query) {
  const RowLengths& lengths = spec.rows[row];
  return {.token = static_cast<std::int32_t>(q_indptr[row] + query),
          .row = static_cast<std::int32_t>(row),
          .num_keys = static_cast<std::int32_t>(lengths.kv_len - lengths.q_len + query + 1)};
}

// The ends of the first and the last row, and queries from anywhere.
std::vector<Sample> samples_of(const CaseSpec& spec, const std::vector<std::int32_t>& q_indptr) {
  std::mt19937_64 random(17);
  std::vector<Sample> samples;
  for (const std::size_t row : {std::size_t{0}, spec.rows.size() - 1}) {
    samples.push_back(sample_of(spec, q_indptr, row, 0));
    samples.push_back(sample_of(spec, q_indptr, row, spec.rows[row].q_len - 1));
  }
  while (samples.size() < kSamples) {
    const std::size_t row = random() % spec.rows.size();
    const auto query =
        static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(spec.rows[row].q_len));
    samples.push_back(sample_of(spec, q_indptr, row, query));
  }
  return samples;
}

}  // namespace

AttentionVerifier::AttentionVerifier(const Workload& workload)
    : workload_(workload), samples_(samples_of(workload.spec(), workload.q_indptr())) {}

const std::vector<double>& AttentionVerifier::reference(int run, cudaStream_t stream) {
  for (const auto& [known, values] : references_) {
    if (known == run) return values;
  }
  const int num_heads = workload_.spec().num_qo_heads;
  const auto count =
      static_cast<std::int64_t>(samples_.size()) * num_heads * workload_.spec().head_dim;
  const Buffer samples(samples_), out(count * static_cast<std::int64_t>(sizeof(double)));
  reference_attention(workload_.cache(run), workload_.q(run).data, num_heads, samples.as<Sample>(),
                      static_cast<std::int64_t>(samples_.size()), out.as<double>(), stream);
  SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream));
  references_.emplace_back(run, out.download<double>(0, count));
  return references_.back().second;
}

void AttentionVerifier::verify(const std::string& contender, const std::function<void(int)>& launch,
                               int run, cudaStream_t stream) {
  const std::vector<double> expected = reference(run, stream);
  const Buffer& out = workload_.out_buffer(run);
  const CaseSpec& spec = workload_.spec();
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(spec.full_name() + ", " + contender + ", run " + std::to_string(run) +
                             ": " + what + "; no time is reported");
  };
  out.poison(stream);
  launch(run);
  SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream));
  const std::int64_t elements = spec.num_q_tokens() * spec.num_qo_heads * spec.head_dim;
  const std::int64_t bad = count_not_finite(out.data(), elements, stream);
  if (bad > 0) fail(std::to_string(bad) + " elements were not written or are not finite");

  const std::int64_t per_token = std::int64_t{spec.num_qo_heads} * spec.head_dim;
  for (std::size_t i = 0; i < samples_.size(); ++i) {
    const auto got = out.download<std::uint16_t>(samples_[i].token * per_token, per_token);
    for (std::int64_t head = 0; head < spec.num_qo_heads; ++head) {
      const double* want = expected.data() + static_cast<std::int64_t>(i) * per_token;
      double difference = 0, size = 0;
      for (std::int64_t d = head * spec.head_dim; d < (head + 1) * spec.head_dim; ++d) {
        const double x = from_bfloat16(got[static_cast<std::size_t>(d)]);
        difference += (x - want[d]) * (x - want[d]);
        size += want[d] * want[d];
      }
      const double error = std::sqrt(difference / size);
      largest_error_ = std::max(largest_error_, error);
      if (!(error <= kTolerance)) {
        fail("query " + std::to_string(samples_[i].token) + ", head " + std::to_string(head) +
             " is off by " + std::to_string(error));
      }
    }
  }
}

void verify_append(const Workload& workload, const std::string& contender,
                   const std::function<void(int)>& launch, int run, cudaStream_t stream) {
  const PagedCache cache = workload.cache(run);
  const auto bytes = static_cast<std::size_t>(workload.layer_bytes());
  for (const void* plane : {cache.keys, cache.values}) {
    SEQATTN_BENCH_CHECK(cudaMemsetAsync(const_cast<void*>(plane), 0xff, bytes, stream));
  }
  launch(run);
  const std::int64_t wrong = count_append_errors(
      cache, workload.new_keys(run).data, workload.new_values(run).data,
      workload.rows_of_tokens().as<std::int32_t>(),
      workload.positions_of_tokens().as<std::int32_t>(), workload.spec().num_q_tokens(), stream);
  if (wrong == 0) return;
  throw std::runtime_error(workload.spec().full_name() + ", " + contender + ", run " +
                           std::to_string(run) + ": " + std::to_string(wrong) +
                           " elements are not where they belong; no time is reported");
}

}  // namespace seqattn::bench
