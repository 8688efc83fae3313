#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// What every option does, alone and with the others, to prefill, chunked prefill and decode.
namespace seqattn::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<AttentionCase> option_cases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](std::string name, auto change) {
    for (const bool causal : {true, false}) {
      AttentionCase c;
      c.name = name + (causal ? "_causal" : "_not_causal");
      c.causal = causal;
      c.num_qo_heads = 6;
      c.rows = {{40, 40}, {13, 130}, {1, 99}, {3, 812}, {120, 131}, {0, 5}, {2, 0}, {1, 1}};
      if (!causal) c.rows.push_back({9, 4});
      change(c);
      cases.push_back(c);
    }
  };
  add("plain", [](AttentionCase&) {});
  for (const int window : {0, 1, 2, 7, 64, 1000, std::numeric_limits<int>::max()}) {
    add("window_" + std::to_string(window), [&](AttentionCase& c) { c.window_left = window; });
  }
  add("cap", [](AttentionCase& c) { c.logits_soft_cap = 1.5; });
  add("cap_of_large_logits", [](AttentionCase& c) {
    c.logits_soft_cap = 30;
    c.sm_scale = 20;
  });
  add("cap_beyond_any_logit", [](AttentionCase& c) { c.logits_soft_cap = 1e4; });
  add("scale", [](AttentionCase& c) { c.sm_scale = 0.7; });
  add("negative_scale", [](AttentionCase& c) { c.sm_scale = -0.3; });
  add("tiny_scale", [](AttentionCase& c) { c.sm_scale = 1e-30; });
  add("sinks", [](AttentionCase& c) { c.sinks = true; });
  add("mask", [](AttentionCase& c) { c.mask_density = 0.6; });
  add("mask_of_few", [](AttentionCase& c) { c.mask_density = 0.03; });  // rows that see nothing
  add("mask_of_none", [](AttentionCase& c) { c.mask_density = 0; });
  add("mask_of_all", [](AttentionCase& c) { c.mask_density = 1; });
  add("mask_and_window", [](AttentionCase& c) {
    c.mask_density = 0.5;
    c.window_left = 5;
  });
  add("mask_and_cap", [](AttentionCase& c) {
    c.mask_density = 0.5;
    c.logits_soft_cap = 2;
  });
  add("mask_and_sinks", [](AttentionCase& c) {
    c.mask_density = 0.05;
    c.sinks = true;
  });
  add("window_and_cap", [](AttentionCase& c) {
    c.window_left = 9;
    c.logits_soft_cap = 2;
  });
  add("everything", [](AttentionCase& c) {
    c.mask_density = 0.4;
    c.window_left = 30;
    c.logits_soft_cap = 3;
    c.sm_scale = 0.4;
    c.sinks = true;
  });
  return cases;
}

class Options : public ConformanceSuite {};
TEST_P(Options, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
TEST_P(Options, AgreeWithTheOracleOn16BitCaches) {
  AttentionCase c = attention_case();
  c.head_dim = 40;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    c.kv_dtype = c.q_dtype = dtype;
    c.kv_layout = KVLayout::kHND;
    check_case(device_case(c, device()), device(), random);
  }
}
SEQATTN_INSTANTIATE_CASES(Options, option_cases());

class Sinks : public DeviceSuite {
 protected:
  // One run of the default rows and more, with these sinks.
  void check(std::vector<double> sinks, double mask_density = -1) {
    AttentionCase c = device_case({}, device());
    c.sinks = true;
    c.mask_density = mask_density;
    c.rows.push_back({1, 1700});  // of several chunks
    c.rows.push_back({2, 0});
    auto rows = random_rows(c, random);
    for (ref::Row& row : rows) row.sink_logits = sinks;
    const PagedBatch batch(c, rows, device(), random);
    expect_reference(c, rows, attend(c, rows, batch));
  }
};

TEST_P(Sinks, OfMinusInfinityAreNone) { check({-kInfinity, 0.5, -kInfinity, -0.5}); }
TEST_P(Sinks, MayBeAllMinusInfinity) { check(std::vector<double>(4, -kInfinity), 0.1); }
TEST_P(Sinks, MayTakeAllTheWeight) { check({1e30, 200, 3e38, 90}); }
TEST_P(Sinks, MayBeFarBelowEveryLogit) { check({-1e30, -200, -3e38, -90}); }
TEST_P(Sinks, AreTheLseOfQueriesThatSeeNothing) { check({1e30, -200, 3.5, -3e38}, 0); }

SEQATTN_INSTANTIATE_DEVICES(Sinks);

// The LSE is optional, and changes nothing.
class WithoutLse : public DeviceSuite {};
TEST_P(WithoutLse, OutputsAreTheSame) {
  AttentionCase c = device_case({}, device());
  c.rows.push_back({1, 1700});
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, device(), random);
  const CallTensors with = attend(c, rows, batch);
  CallTensors without(c, rows, device());
  BatchAttention attention(batch.manager(), c.options());
  attention.plan(batch.packed(), qo_indptr_of(rows));
  attention.run(without.q.view(), without.out.view());
  EXPECT_EQ(with.out.bytes(), without.out.bytes());
}
SEQATTN_INSTANTIATE_DEVICES(WithoutLse);

}  // namespace
}  // namespace seqattn::testing
