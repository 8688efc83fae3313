#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/prefix_cache.h"

// Requests that start over what earlier ones left, on a pool that is always short: each computes
// its new tokens alone and has to end up where the oracle does with all of them.
namespace seqattn::testing {
namespace {

class PrefixReuse : public DeviceSuite {
 protected:
  using Tokens = std::vector<TokenId>;
  struct KeyAndValue {
    std::vector<double> key, value;
  };

  // A prompt that often begins like others: of two tokens, and of many lengths.
  Tokens any_prompt() {
    Tokens prompt(1 + random() % 30);
    for (TokenId& token : prompt) token = random() % 8 == 0 ? 1 : 0;
    return prompt;
  }

  // A row whose keys and values depend on the token and all before it, as a model's do.
  ref::Row row_of(const AttentionCase& c, const Tokens& prompt, std::int64_t num_cached) {
    const auto kv_len = std::ssize(prompt);
    ref::Row row = random_row(c, {kv_len - num_cached, kv_len}, random);
    const auto per_token = static_cast<std::ptrdiff_t>(c.num_kv_heads) * c.head_dim;
    for (std::ptrdiff_t i = 0; i < kv_len; ++i) {
      const auto key = row.k.begin() + i * per_token, value = row.v.begin() + i * per_token;
      const auto [entry, is_new] =
          memory_.try_emplace({prompt.begin(), prompt.begin() + i + 1},
                              KeyAndValue{{key, key + per_token}, {value, value + per_token}});
      if (is_new) continue;
      std::copy(entry->second.key.begin(), entry->second.key.end(), key);
      std::copy(entry->second.value.begin(), entry->second.value.end(), value);
    }
    return row;
  }

  // The last `num_new` tokens of the row.
  Tensor new_tokens(const AttentionCase& c, const std::vector<double>& all, std::int64_t num_new) {
    const auto per_token = static_cast<std::int64_t>(c.num_kv_heads) * c.head_dim;
    Tensor tensor(device(), c.kv_dtype, {num_new, c.num_kv_heads, c.head_dim});
    tensor.write(std::span(all).last(static_cast<std::size_t>(num_new * per_token)));
    return tensor;
  }

  std::map<Tokens, KeyAndValue> memory_;
};

TEST_P(PrefixReuse, AgreesWithTheOracle) {
  AttentionCase c = device_case({}, device());
  PagedKVCacheManager manager(c.cache_config(16, device()));
  CacheDescriptor sequences(manager);
  PrefixCache cache(manager.pool());
  BatchAttention attention(manager, c.options());
  std::int64_t num_inside = 0;
  for (SeqId id = 0; id < 60; ++id) {
    const Tokens prompt = any_prompt();
    PrefixHandle handle = cache.match(prompt);
    cache.attach(sequences, id, handle);
    const std::int64_t num_cached = handle.num_tokens(), num_new = std::ssize(prompt) - num_cached;
    if (num_cached % c.page_size != 0) ++num_inside;
    handle.release();
    sequences.allocate({id}, {num_new});
    const std::vector<ref::Row> rows = {row_of(c, prompt, num_cached)};
    c.rows = {{num_new, std::ssize(prompt)}};
    attention.plan(sequences.pack_for_flashinfer({id}), qo_indptr_of(rows));
    attention.append_kv(new_tokens(c, rows[0].k, num_new).view(),
                        new_tokens(c, rows[0].v, num_new).view());
    CallTensors tensors(c, rows, device());
    attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options());
    expect_reference(c, rows, tensors);
    cache.insert(sequences, id, prompt);
    sequences.release({id});
    cache.check_invariants();
    ASSERT_FALSE(HasFailure()) << "request " << id;
  }
  const PrefixCacheStats stats = cache.stats();
  EXPECT_GT(stats.num_tokens_found, 100);
  EXPECT_GT(stats.num_pages_evicted, 20);
  EXPECT_GT(num_inside, 10);
}

SEQATTN_INSTANTIATE_DEVICES(PrefixReuse);

}  // namespace
}  // namespace seqattn::testing
