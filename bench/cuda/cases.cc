#include "cases.h"

#include <cstddef>

namespace seqattn::bench {
namespace {

constexpr std::int64_t kK = 1024;

std::vector<RowLengths> equal(std::size_t count, std::int64_t q_len, std::int64_t kv_len) {
  return std::vector<RowLengths>(count, {q_len, kv_len});
}

std::vector<RowLengths> joined(std::vector<RowLengths> a, const std::vector<RowLengths>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

CaseSpec decode(const std::string& name, std::vector<RowLengths> rows,
                double least_of_flashinfer = 0) {
  CaseSpec spec;
  spec.group = Group::kDecode;
  spec.name = name;
  spec.rows = std::move(rows);
  spec.least_of_flashinfer = least_of_flashinfer;
  return spec;
}

CaseSpec within(double most_us, CaseSpec spec) {
  spec.most_us = most_us;
  return spec;
}

// Of the memory's ceiling, where the case is as large as that.
CaseSpec reaching(double least_of_ceiling, CaseSpec spec) {
  spec.least_of_ceiling = least_of_ceiling;
  return spec;
}

CaseSpec prefill(const std::string& name, std::vector<RowLengths> rows) {
  CaseSpec spec = decode(name, std::move(rows), 0.95);
  spec.group = Group::kPrefill;
  return spec;
}

CaseSpec with_heads(int num_qo_heads, int num_kv_heads, CaseSpec spec) {
  spec.num_qo_heads = num_qo_heads;
  spec.num_kv_heads = num_kv_heads;
  return spec;
}

// One KV head, as a model sharded over eight devices has it.
CaseSpec sharded(CaseSpec spec) { return with_heads(8, 1, std::move(spec)); }

CaseSpec of_head_dim(int head_dim, CaseSpec spec) {
  spec.head_dim = head_dim;
  spec.name += ", head_dim " + std::to_string(head_dim);
  return spec;
}

CaseSpec hnd(CaseSpec spec) {
  spec.is_hnd = true;
  spec.name += ", HND";
  return spec;
}

CaseSpec with_scales_per_token(CaseSpec spec) {
  spec.scales_per_token = true;
  spec.name += ", scales of tokens";
  return spec;
}

CaseSpec float8(CaseSpec spec) {
  spec.is_float8 = true;
  spec.name = "e4m3 " + spec.name;
  return spec;
}

CaseSpec append(const std::string& name, std::vector<RowLengths> rows, double least_of_ceiling) {
  CaseSpec spec = decode(name, std::move(rows));
  spec.group = Group::kAppend;
  spec.least_of_ceiling = least_of_ceiling;
  return spec;
}

// 32 sequences that grow by 2048 tokens, from somewhere within a page.
std::vector<RowLengths> growing_rows() {
  std::vector<RowLengths> rows;
  for (std::int64_t i = 0; i < 32; ++i) rows.push_back({2 * kK, 2 * kK + 7 * i});
  return rows;
}

// One long sequence among 63 of 2k, give or take.
std::vector<RowLengths> one_long() {
  std::vector<RowLengths> rows{{1, 64 * kK + 37}};
  for (std::int64_t i = 0; i < 63; ++i) rows.push_back({1, 2 * kK - 500 + i * 16});
  return rows;
}

// Rows of one KV head each, of 64 to 4,096 tokens, as caches by the head have them.
std::vector<RowLengths> head_rows() {
  std::vector<RowLengths> rows;
  for (std::int64_t i = 0; i < 512; ++i) rows.push_back({1, 64 + i * 4032 / 511 * 37 % 4033});
  return rows;
}

}  // namespace

std::string to_string(Group group) {
  return group == Group::kAppend ? "append" : group == Group::kDecode ? "decode" : "prefill";
}

std::string CaseSpec::full_name() const {
  std::string text = to_string(group) + "/";
  if (num_kv_heads != 8) {
    text.append("(").append(std::to_string(num_qo_heads)).append(",");
    text.append(std::to_string(num_kv_heads)).append(")/");
  }
  return text + name;
}

std::int64_t CaseSpec::num_q_tokens() const {
  std::int64_t sum = 0;
  for (const RowLengths& row : rows) sum += row.q_len;
  return sum;
}

std::int64_t CaseSpec::num_kv_tokens() const {
  std::int64_t sum = 0;
  for (const RowLengths& row : rows) sum += row.kv_len;
  return sum;
}

double CaseSpec::kv_bytes() const {
  return 2.0 * static_cast<double>(element_bytes() * head_dim) * num_kv_heads *
         static_cast<double>(num_kv_tokens());
}

double CaseSpec::append_bytes() const {
  const double scale_bytes = scales_per_token ? sizeof(float) : 0;
  return 2.0 * (static_cast<double>((2 + element_bytes()) * head_dim) + scale_bytes) *
         num_kv_heads * static_cast<double>(num_q_tokens());
}

double CaseSpec::causal_flops() const {
  double visible = 0;  // (query, key) pairs
  for (const RowLengths& row : rows) {
    const auto q = static_cast<double>(row.q_len), kv = static_cast<double>(row.kv_len);
    visible += q * (kv - q) + q * (q + 1) / 2;
  }
  return 4.0 * head_dim * num_qo_heads * visible;
}

std::vector<CaseSpec> all_cases(bool quick) {
  if (quick) {
    return {append("8k tokens", equal(8, kK, kK + 5), 0), decode("8x8k", equal(8, 1, 8 * kK)),
            reaching(0.90, decode("1x65k+63x2k", one_long())),
            prefill("1x8k", equal(1, 8 * kK, 8 * kK))};
  }
  return {append("64k tokens", growing_rows(), 0.92),
          within(3.5, append("256 tokens", equal(256, 1, 33), 0)),
          float8(append("64k tokens", growing_rows(), 0)),
          float8(append("256 tokens", equal(256, 1, 33), 0)),
          with_scales_per_token(float8(append("64k tokens", growing_rows(), 0))),
          reaching(0.79, decode("1x32k", equal(1, 1, 32 * kK), 0.97)),
          reaching(0.90, decode("8x8k", equal(8, 1, 8 * kK), 0.97)),
          reaching(0.95, decode("64x4k", equal(64, 1, 4 * kK), 0.97)),
          reaching(0.97, decode("256x2k", equal(256, 1, 2 * kK), 0.97)),
          reaching(0.92, decode("1x65k+63x2k", one_long())),
          reaching(0.94, decode("8x32k+56x1k", joined(equal(8, 1, 32 * kK), equal(56, 1, kK)))),
          within(9.2, decode("1x1k", equal(1, 1, kK))),
          within(14, decode("1x4k", equal(1, 1, 4 * kK))),
          within(18, decode("64x128", equal(64, 1, 128))),
          decode("16x(8 new on 8k)", equal(16, 8, 8 * kK)),
          reaching(0.33, sharded(decode("1x32k", equal(1, 1, 32 * kK)))),
          reaching(0.61, sharded(decode("1x131k", equal(1, 1, 128 * kK)))),
          reaching(0.79, sharded(decode("64x4k", equal(64, 1, 4 * kK)))),
          reaching(0.87, sharded(decode("256x2k", equal(256, 1, 2 * kK)))),
          reaching(0.87, with_heads(4, 1, decode("512 head-wise rows", head_rows()))),
          with_heads(32, 2, decode("64x4k, group 16", equal(64, 1, 4 * kK), 1)),
          decode("64x4k, q_len 4", equal(64, 4, 4 * kK), 1),
          reaching(0.62, float8(decode("1x32k", equal(1, 1, 32 * kK)))),
          reaching(0.80, float8(decode("8x8k", equal(8, 1, 8 * kK)))),
          reaching(0.86, float8(decode("64x4k", equal(64, 1, 4 * kK)))),
          reaching(0.90, float8(decode("256x2k", equal(256, 1, 2 * kK)))),
          reaching(0.80, float8(decode("1x65k+63x2k", one_long()))),
          float8(decode("64x4k, q_len 4", equal(64, 4, 4 * kK))),
          hnd(decode("64x4k", equal(64, 1, 4 * kK))),
          of_head_dim(64, decode("64x4k", equal(64, 1, 4 * kK))),
          of_head_dim(256, decode("64x4k", equal(64, 1, 4 * kK))),
          hnd(float8(decode("64x4k", equal(64, 1, 4 * kK)))),
          with_scales_per_token(float8(decode("64x4k", equal(64, 1, 4 * kK)))),
          prefill("1x8k", equal(1, 8 * kK, 8 * kK)),
          prefill("8x2k", equal(8, 2 * kK, 2 * kK)),
          prefill("16x(512 new on 8k)", equal(16, 512, 8 * kK + 512))};
}

}  // namespace seqattn::bench
