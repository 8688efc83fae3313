#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// Several objects over one cache, several layers under one plan, several threads in one object.
namespace seqattn::testing {
namespace {

class SharedUse : public DeviceSuite {};

// A model with full and windowed layers: the same batch, two sets of options.
TEST_P(SharedUse, OfOneBatchByObjectsWithDifferentOptions) {
  AttentionCase full = device_case({}, device());
  AttentionCase windowed = full, capped = full;
  windowed.window_left = 3;
  capped.logits_soft_cap = 1;
  capped.causal = false;
  const auto rows = random_rows(full, random);
  const PagedBatch batch(full, rows, device(), random);
  std::vector<std::unique_ptr<BatchAttention>> objects;
  for (const auto* c : {&full, &windowed, &capped}) {
    objects.push_back(std::make_unique<BatchAttention>(batch.manager(), c->options()));
    objects.back()->plan(batch.packed(), qo_indptr_of(rows));
  }
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < objects.size(); ++i) {
      const AttentionCase& c = *std::array{&full, &windowed, &capped}[i];
      CallTensors tensors(c, rows, device());
      objects[i]->run(tensors.q.view(), tensors.out.view(), tensors.run_options());
      expect_reference(c, rows, tensors);
    }
  }
}

TEST_P(SharedUse, OfOneCacheByDifferentNumbersOfQueryHeads) {
  for (const int num_qo_heads : {2, 4, 10}) {
    AttentionCase c = device_case({}, device());
    c.num_qo_heads = num_qo_heads;
    check_case(c, device(), random);
  }
}

TEST_P(SharedUse, OfOnePlanByEveryLayer) {
  constexpr int kLayers = 3;
  AttentionCase c = device_case({}, device());
  c.rows = {{9, 9}, {1, 1}, {6, 6}};
  KVCacheConfig config = c.cache_config(12, device());
  config.num_layers = kLayers;
  PagedKVCacheManager manager(config);
  BatchAttention attention(manager, c.options());
  attention.plan(random_table({9, 1, 6}, c.page_size, 12, random),
                 std::vector<std::int32_t>{0, 9, 10, 16});
  std::vector<std::vector<ref::Row>> layers;
  for (int layer = 0; layer < kLayers; ++layer) {
    layers.push_back(random_rows(c, random));
    Tensor keys(device(), c.kv_dtype, {16, c.num_kv_heads, c.head_dim});
    Tensor values(device(), c.kv_dtype, {16, c.num_kv_heads, c.head_dim});
    std::vector<double> all_keys, all_values;
    for (const ref::Row& row : layers.back()) {
      all_keys.insert(all_keys.end(), row.k.begin(), row.k.end());
      all_values.insert(all_values.end(), row.v.begin(), row.v.end());
    }
    keys.write(all_keys);
    values.write(all_values);
    attention.append_kv(keys.view(), values.view(), layer);
  }
  for (const int layer : {2, 0, 1, 2}) {
    const auto& rows = layers[static_cast<std::size_t>(layer)];
    CallTensors tensors(c, rows, device());
    attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options(), layer);
    expect_reference(c, rows, tensors);
  }
}

// Runs of one const object, each thread with its own outputs.
TEST_P(SharedUse, OfOneObjectByManyThreads) {
  AttentionCase c;
  c.kv_dtype = DType::kFloat16;
  c.rows.push_back({1, 2500});
  c.rows.push_back({40, 60});
  c.sinks = true;
  c = device_case(c, device());
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, device(), random);
  for (const int num_threads : {1, 3}) {
    BatchAttention attention(batch.manager(), c.options(num_threads));
    attention.plan(batch.packed(), qo_indptr_of(rows));
    const BatchAttention& shared = attention;
    std::vector<CallTensors> results;
    for (int i = 0; i < 4; ++i) results.emplace_back(c, rows, device());
    std::vector<std::thread> threads;
    for (const CallTensors& result : results) {
      threads.emplace_back([&shared, &result] {
        for (int i = 0; i < 5; ++i) {
          shared.run(result.q.view(), result.out.view(), result.run_options());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    expect_reference(c, rows, results[0]);
    for (const CallTensors& result : results) {
      EXPECT_EQ(result.out.bytes(), results[0].out.bytes());
      EXPECT_EQ(result.lse.bytes(), results[0].lse.bytes());
    }
  }
}

// Objects are independent: each thread plans and runs its own, over one cache.
TEST_P(SharedUse, OfOneCacheByObjectsOfManyThreads) {
  AttentionCase c = device_case({}, device());
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, device(), random);
  const CallTensors expected = attend(c, rows, batch);
  std::vector<CallTensors> results(4, expected);
  std::vector<std::thread> threads;
  for (CallTensors& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) result = attend(c, rows, batch, 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const CallTensors& result : results) EXPECT_EQ(result.out.bytes(), expected.out.bytes());
}

SEQATTN_INSTANTIATE_DEVICES(SharedUse);

}  // namespace
}  // namespace seqattn::testing
