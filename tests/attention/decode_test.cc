#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "seqattn/cache_descriptor.h"

// Sequences that live: they grow by prefill, chunk and decode step, fork, are cut short, share
// prefixes and end, and every step of attention agrees with the oracle over the tokens they have.
namespace seqattn::testing {
namespace {

constexpr int kLayers = 2;

std::vector<AttentionCase> decode_cases() {
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
      for (const int page_size : {1, 4, 7}) {
        AttentionCase c;
        c.name = std::string(to_string(dtype)) + "_" + std::string(to_string(layout)) + "_" +
                 std::to_string(page_size);
        c.kv_dtype = dtype;
        c.kv_layout = layout;
        c.page_size = page_size;
        c.head_dim = 16;
        c.head_dim_v = 9;
        c.rows.clear();
        cases.push_back(c);
      }
    }
  }
  return cases;
}

class Decoding : public ConformanceSuite {
 protected:
  // The tokens of a sequence, as the cache holds them: of each layer [num_heads, head_dim] and
  // [num_heads, head_dim_v] a token.
  struct Tokens {
    std::int64_t length = 0;
    std::vector<double> keys[kLayers], values[kLayers];
  };

  void prepare() override {
    c = attention_case();
    // Room for whatever the longest test draws: 63 sequences of 15 + 60 * 8 tokens.
    KVCacheConfig config = c.cache_config(63 * (495 / c.page_size + 1), device());
    config.num_layers = kLayers;
    manager = std::make_unique<PagedKVCacheManager>(config);
    for (int layer = 0; layer < kLayers; ++layer) {
      fill_with_nan(manager->key_cache(layer));
      fill_with_nan(manager->value_cache(layer));
    }
    descriptor = std::make_unique<CacheDescriptor>(*manager);
    attention = std::make_unique<BatchAttention>(*manager, c.options());
  }

  // Grows sequences and attends with their new tokens, in every layer.
  void step(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths) {
    descriptor->allocate(ids, lengths);
    std::vector<std::int32_t> indptr{0};
    for (const std::int64_t n : lengths) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(n));
    }
    attention->plan(descriptor->pack_for_flashinfer(ids), indptr);
    for (std::size_t i = 0; i < ids.size(); ++i) sequences[ids[i]].length += lengths[i];
    for (int layer = 0; layer < kLayers; ++layer) {
      append(ids, lengths, layer);
      check(ids, lengths, layer);
    }
  }

  void append(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths, int layer) {
    // Now in the type of the cache, now in float32.
    const DType dtype = random() % 2 == 0 ? c.kv_dtype : DType::kFloat32;
    std::int64_t total = 0;
    for (const std::int64_t n : lengths) total += n;
    const auto append_to = [&](int dim, std::vector<double>(Tokens::*stored)[kLayers]) {
      const std::int64_t per_token = std::int64_t{c.num_kv_heads} * dim;
      std::normal_distribution<double> normal;
      std::vector<double> fresh(static_cast<std::size_t>(total * per_token));
      for (double& x : fresh) x = rounded(DType::kFloat32, normal(random));
      auto at = fresh.begin();
      for (std::size_t i = 0; i < ids.size(); ++i) {
        auto& list = (sequences[ids[i]].*stored)[layer];
        for (std::int64_t n = lengths[i] * per_token; n > 0; --n) {
          list.push_back(rounded(c.kv_dtype, *at++));
        }
      }
      Tensor tensor(device(), dtype, {total, c.num_kv_heads, dim});
      tensor.write(fresh);
      return tensor;
    };
    const Tensor keys = append_to(c.head_dim, &Tokens::keys);
    const Tensor values = append_to(c.dim_v(), &Tokens::values);
    attention->append_kv(keys.read_only_view(), values.read_only_view(), layer);
  }

  void check(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths, int layer) {
    std::vector<ref::Row> rows;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Tokens& tokens = sequences[ids[i]];
      rows.push_back(random_row(c, {lengths[i], 0}, random));
      rows.back().kv_len = tokens.length;
      rows.back().k = tokens.keys[layer];
      rows.back().v = tokens.values[layer];
    }
    CallTensors tensors(c, rows, device());
    attention->run(tensors.q.view(), tensors.out.view(), tensors.run_options(), layer);
    expect_reference(c, rows, tensors);
  }

  void truncate_model(SeqId id, std::int64_t length) {
    Tokens& tokens = sequences[id];
    tokens.length = length;
    for (int layer = 0; layer < kLayers; ++layer) {
      tokens.keys[layer].resize(static_cast<std::size_t>(length * c.num_kv_heads * c.head_dim));
      tokens.values[layer].resize(static_cast<std::size_t>(length * c.num_kv_heads * c.dim_v()));
    }
  }

  void fork(SeqId parent, SeqId child, std::int64_t length) {
    descriptor->fork(parent, child, length);
    sequences[child] = sequences[parent];
    truncate_model(child, length);
  }

  void attach(SeqId from, SeqId id, std::int64_t length) {
    const auto pages = descriptor->pages(from);
    const auto num_pages = static_cast<std::size_t>((length + c.page_size - 1) / c.page_size);
    descriptor->attach(id, pages.first(num_pages), length);
    sequences[id] = sequences[from];
    truncate_model(id, length);
  }

  SeqId any_sequence() {
    auto entry = sequences.begin();
    std::advance(entry, static_cast<std::ptrdiff_t>(random() % sequences.size()));
    return entry->first;
  }

  AttentionCase c;
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> descriptor;
  std::unique_ptr<BatchAttention> attention;
  std::map<SeqId, Tokens> sequences;
};

TEST_P(Decoding, TokenByTokenAfterAPrefill) {
  step({1, 2, 3}, {9, 1, 20});
  for (int i = 0; i < 30 && !HasFailure(); ++i) step({3, 1, 2}, {1, 1, 1});
}

TEST_P(Decoding, OfAPromptInChunks) {
  for (const std::int64_t chunk : {5, 16, 1, 3, 0, 30, 7}) step({1}, {chunk});
}

TEST_P(Decoding, OfBranchesOfOnePrompt) {
  step({0}, {10});
  for (const SeqId child : {1, 2, 3}) fork(0, child, 10);
  for (int i = 0; i < 12; ++i) step({0, 1, 2, 3}, {1, 1, 1, 1});
}

TEST_P(Decoding, WhileSequencesForkShrinkShareAndEnd) {
  SeqId next_id = 0;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    std::vector<SeqId> ids;
    std::vector<std::int64_t> lengths;
    if (sequences.size() < 3) {
      ids.push_back(next_id++);
      lengths.push_back(static_cast<std::int64_t>(random() % 15));
    }
    if (!sequences.empty()) {
      const SeqId id = any_sequence();
      const std::int64_t length = sequences[id].length;
      const auto part =
          static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(length + 1));
      switch (random() % 6) {
        case 0:
          fork(id, next_id++, part);
          break;
        case 1:
          attach(id, next_id++, part);
          break;
        case 2:
          descriptor->truncate(id, part);
          truncate_model(id, part);
          break;
        case 3:
          descriptor->release({id});
          sequences.erase(id);
          break;
        default:
          break;
      }
    }
    for (const auto& [id, tokens] : sequences) {
      if (random() % 4 == 0) continue;
      ids.push_back(id);
      lengths.push_back(random() % 5 == 0 ? static_cast<std::int64_t>(random() % 9) : 1);
    }
    std::sort(ids.begin() + static_cast<std::ptrdiff_t>(ids.size() / 2), ids.end(),
              std::greater<>());
    step(ids, lengths);
    descriptor->check_invariants();
  }
}

SEQATTN_INSTANTIATE_CASES(Decoding, decode_cases());

}  // namespace
}  // namespace seqattn::testing
