#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// The result of a row is the same to the bit however many threads run, whatever else is in the
// batch, wherever pages lie: on every path of every device.
namespace seqattn::testing {
namespace {

// The bytes of each row's out and lse.
std::vector<std::vector<std::byte>> row_bytes(const std::vector<ref::Row>& rows,
                                              const CallTensors& result) {
  const auto out = result.out.bytes(), lse = result.lse.bytes();
  const auto tokens = static_cast<std::size_t>(result.out.view().shape[0]);
  std::vector<std::vector<std::byte>> parts;
  std::size_t first = 0;
  for (const ref::Row& row : rows) {
    const std::size_t end = first + static_cast<std::size_t>(row.q_len);
    auto& part = parts.emplace_back();
    for (const auto* bytes : {&out, &lse}) {
      const std::size_t per_token = tokens == 0 ? 0 : bytes->size() / tokens;
      part.insert(part.end(), bytes->begin() + static_cast<std::ptrdiff_t>(first * per_token),
                  bytes->begin() + static_cast<std::ptrdiff_t>(end * per_token));
    }
    first = end;
  }
  return parts;
}

std::vector<AttentionCase> identity_cases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](const char* name, auto change) {
    AttentionCase c;
    c.name = name;
    c.num_kv_heads = 3;
    c.num_qo_heads = 9;
    c.page_size = 16;
    c.kv_dtype = c.out_dtype = DType::kFloat16;
    // Split rows, tiled rows, few and many queries.
    c.rows = {{1, 2500}, {40, 40}, {1, 1}, {3, 900}, {2, 770}, {0, 9}, {70, 95}, {1, 767}, {5, 0}};
    change(c);
    cases.push_back(c);
  };
  add("plain", [](AttentionCase&) {});
  add("float32", [](AttentionCase& c) { c.kv_dtype = c.out_dtype = DType::kFloat32; });
  add("head_dim_20", [](AttentionCase& c) { c.head_dim = 20; });
  add("one_head", [](AttentionCase& c) { c.num_kv_heads = c.num_qo_heads = 1; });
  add("everything", [](AttentionCase& c) {
    c.kv_dtype = c.out_dtype = DType::kBFloat16;
    c.mask_density = 0.5;
    c.window_left = 1800;
    c.logits_soft_cap = 2;
    c.sinks = true;
  });
  return cases;
}

class BitIdentity : public ConformanceSuite {
 protected:
  void prepare() override {
    rows = random_rows(attention_case(), random);
    batch = std::make_unique<PagedBatch>(attention_case(), rows, device(), random);
  }
  // What each row gives on this path in the batch of all, on one thread.
  std::vector<std::vector<std::byte>> expected() const {
    return row_bytes(rows, attend(attention_case(), rows, *batch, 1));
  }
  // Calls body on every path of the device.
  template <class Body>
  void on_every_path(const Body& body) {
    for (const std::string& path : paths_of(device())) {
      SCOPED_TRACE(path);
      const ForcedPath forced(path);
      body();
    }
  }

  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
};

TEST_P(BitIdentity, AcrossThreadCounts) {
  on_every_path([&] {
    const auto parts = expected();
    for (const int num_threads : {2, 3, 4, 5, 6, 7, 8, 0}) {
      const auto result = attend(attention_case(), rows, *batch, num_threads);
      EXPECT_TRUE(row_bytes(rows, result) == parts) << num_threads << " threads";
    }
  });
}

// A wish, not a size: what the machine cannot give is cut down.
TEST_P(BitIdentity, HoweverManyThreadsAreAskedFor) {
  const auto parts = expected();
  for (const int num_threads : {64, 65, 2000, 1 << 30, std::numeric_limits<int>::max()}) {
    const auto result = attend(attention_case(), rows, *batch, num_threads);
    EXPECT_TRUE(row_bytes(rows, result) == parts) << num_threads << " threads";
  }
}

TEST_P(BitIdentity, AcrossRepeatedRuns) {
  on_every_path([&] {
    const auto parts = expected();
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(row_bytes(rows, attend(attention_case(), rows, *batch)) == parts);
    }
  });
}

TEST_P(BitIdentity, AcrossPagePlacements) {
  const PagedBatch moved(attention_case(), rows, device(), random, {.spare_pages = 31});
  const PagedBatch apart(attention_case(), rows, device(), random, {.with_gaps = true});
  on_every_path([&] {
    const auto parts = expected();
    EXPECT_TRUE(row_bytes(rows, attend(attention_case(), rows, moved)) == parts);
    EXPECT_TRUE(row_bytes(rows, attend(attention_case(), rows, apart)) == parts);
  });
}

TEST_P(BitIdentity, OfARowAloneAndAmongOthers) {
  std::vector<std::unique_ptr<PagedBatch>> alone;
  for (const ref::Row& row : rows) {
    alone.push_back(
        std::make_unique<PagedBatch>(attention_case(), std::vector{row}, device(), random));
  }
  on_every_path([&] {
    const auto parts = expected();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (const int num_threads : {1, 2, 8}) {
        const auto result = attend(attention_case(), {rows[i]}, *alone[i], num_threads);
        EXPECT_TRUE(row_bytes({rows[i]}, result)[0] == parts[i])
            << "row " << i << ", " << num_threads << " threads";
      }
    }
  });
}

TEST_P(BitIdentity, InAnyOrderAndCompany) {
  on_every_path([&] {
    const auto parts = expected();
    std::vector<std::size_t> order(rows.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (int round = 0; round < 3; ++round) {
      std::shuffle(order.begin(), order.end(), random);
      std::vector<ref::Row> some;
      for (std::size_t i = 0; i < 5; ++i) some.push_back(rows[order[i]]);
      some.push_back(rows[order[0]]);  // the same work twice
      const PagedBatch other(attention_case(), some, device(), random);
      const auto result = row_bytes(some, attend(attention_case(), some, other));
      for (std::size_t i = 0; i < 5; ++i) EXPECT_TRUE(result[i] == parts[order[i]]) << order[i];
      EXPECT_TRUE(result[5] == parts[order[0]]);
    }
  });
}

SEQATTN_INSTANTIATE_CASES(BitIdentity, identity_cases());

}  // namespace
}  // namespace seqattn::testing
