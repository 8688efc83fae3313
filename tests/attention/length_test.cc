#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// Queries and keys of every length: prefill, chunked prefill, decode, mixtures, rows without work,
// and lengths on both sides of where the work is cut.
namespace seqattn::testing {
namespace {

AttentionCase of(std::string name, std::vector<RowLengths> rows) {
  AttentionCase c;
  c.name = std::move(name);
  c.rows = std::move(rows);
  return c;
}

std::vector<AttentionCase> batch_cases() {
  return {of("prefill", {{50, 50}, {3, 3}, {17, 17}}),
          of("chunked_prefill", {{16, 48}, {5, 200}, {31, 32}}),
          of("decode", {{1, 77}, {1, 1}, {1, 128}, {1, 4}}),
          of("speculative_decode", {{4, 77}, {4, 4}, {5, 128}}),
          of("mixture", {{40, 40}, {1, 90}, {0, 0}, {12, 61}, {0, 33}, {1, 1}, {2, 300}}),
          of("single_token", {{1, 1}}),
          of("nothing_but_queries_of_empty_rows", {{3, 0}, {1, 0}}),
          of("queries_of_empty_rows_among_others", {{2, 0}, {1, 9}, {1, 0}, {8, 8}, {5, 0}}),
          of("rows_without_queries", {{0, 12}, {0, 0}, {0, 1}}),
          of("no_rows", {}),
          of("many_rows", std::vector<RowLengths>(64, {1, 21}))};
}

class Batches : public ConformanceSuite {};
TEST_P(Batches, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
TEST_P(Batches, AgreeWithTheOracleWithoutCausality) {
  AttentionCase c = attention_case();
  c.causal = false;
  c.rows.push_back({7, 3});  // more queries than keys
  c.rows.push_back({2, 1});
  check_case(c, device(), random);
}
SEQATTN_INSTANTIATE_CASES(Batches, batch_cases());

// Long contexts of few queries are split over keys: at multiples of 768 tokens where they are
// decoded, later where queries are many or the context is longer than 32 times that.
std::vector<AttentionCase> context_cases() {
  std::vector<AttentionCase> cases;
  for (const std::int64_t kv_len : {767, 768, 769, 1535, 1536, 1537, 5000, 24576, 24577, 40000}) {
    for (const int q_len : {1, 3}) {
      AttentionCase c = of(std::to_string(q_len) + "_of_" + std::to_string(kv_len),
                           {{q_len, kv_len}, {1, 5}, {q_len, kv_len - 1}});
      c.num_qo_heads = 6;
      c.head_dim = 16;
      c.head_dim_v = 8;
      c.page_size = 16;
      c.kv_dtype = DType::kFloat16;
      cases.push_back(c);
    }
  }
  return cases;
}

class Contexts : public ConformanceSuite {};
TEST_P(Contexts, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
TEST_P(Contexts, AgreeWithTheOracleWithAWindow) {
  AttentionCase c = attention_case();
  c.window_left = static_cast<int>(c.rows[0].kv_len * 2 / 3);
  check_case(c, device(), random);
}
SEQATTN_INSTANTIATE_CASES(Contexts, context_cases());

// Queries of a KV head are cut into tiles of 96 (query, head) pairs; tiles of up to 8 take another
// path, and only rows of one tile are split over keys.
std::vector<AttentionCase> tile_cases() {
  const auto tile_case = [](std::int64_t q_len, int group) {
    AttentionCase c = of(std::to_string(q_len) + "_queries_of_" + std::to_string(group),
                         {{q_len, q_len}, {q_len, 1600}, {q_len, q_len + 95}, {1, 3}});
    c.num_kv_heads = 1;
    c.num_qo_heads = group;
    c.head_dim = 8;
    c.page_size = 16;
    c.kv_dtype = DType::kBFloat16;
    return c;
  };
  std::vector<AttentionCase> cases;
  for (const int q_len : {7, 8, 9, 95, 96, 97, 191, 192, 193, 288}) {
    cases.push_back(tile_case(q_len, 1));
  }
  for (const int q_len : {2, 3, 31, 32, 33, 63, 64, 65, 97}) cases.push_back(tile_case(q_len, 3));
  return cases;
}

class Tiles : public ConformanceSuite {};
TEST_P(Tiles, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
TEST_P(Tiles, AgreeWithTheOracleWithAWindow) {
  AttentionCase c = attention_case();
  c.window_left = 100;
  check_case(c, device(), random);
}
SEQATTN_INSTANTIATE_CASES(Tiles, tile_cases());

// Keys are taken 96 at a time, and 12 at a time within.
TEST(KeyTiles, OfEveryLengthAgreeWithTheOracle) {
  std::mt19937_64 random = random_source(1);
  AttentionCase c;
  c.num_qo_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 16;
  for (std::int64_t kv_len = 1; kv_len <= 220; ++kv_len) {
    c.rows = {{1, kv_len}, {std::min<std::int64_t>(kv_len, 7), kv_len}};
    for (const Device device : test_devices()) {
      if (!is_here(device)) GTEST_SKIP() << test_name(device) << " is not here";
      check_case(device_case(c, device), device, random);
    }
    ASSERT_FALSE(HasFailure()) << "kv_len " << kv_len;
  }
}

}  // namespace
}  // namespace seqattn::testing
