#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "tensor.h"

// A window or a tree of one sequence is no affair of the others in the batch: those keep their
// kernels, and so their bits.
namespace seqattn::testing {
namespace {

struct Step {
  SeqId id;
  std::int64_t num_queries;
};

// Sequences in one cache, each with the queries that it always asks.
class Sequences {
 public:
  Sequences(const AttentionCase& attention_case, Device device, std::mt19937_64& random)
      : case_(attention_case),
        device_(device),
        random_(random),
        manager_(case_.cache_config(400, device)),
        descriptor_(manager_),
        attention_(manager_, case_.options()) {
    fill_with_nan(manager_.key_cache());
    fill_with_nan(manager_.value_cache());
  }

  CacheDescriptor& descriptor() { return descriptor_; }

  // Of which the last `num_queries` will ask.
  void add(SeqId id, std::int64_t num_tokens, std::int64_t num_queries, SlidingWindow window = {},
           const std::vector<std::int32_t>& parents = {}) {
    descriptor_.allocate({id}, {0});
    descriptor_.set_window(id, window);
    descriptor_.allocate({id}, {parents.empty() ? num_tokens : 0});
    if (!parents.empty()) descriptor_.allocate_tree(id, parents, num_tokens);
    const auto new_tokens = num_tokens + static_cast<std::int64_t>(parents.size());
    attention_.plan(descriptor_.pack_for_flashinfer({id}),
                    {0, static_cast<std::int32_t>(new_tokens)});
    const Tensor keys = random_tensor(new_tokens, case_.num_kv_heads);
    const Tensor values = random_tensor(new_tokens, case_.num_kv_heads);
    attention_.append_kv(keys.read_only_view(), values.read_only_view());
    queries_[id] = random_values(num_queries, case_.num_qo_heads);
    num_queries_[id] = num_queries;
  }

  // The bytes of out and lse of each sequence, all in one batch.
  std::map<SeqId, std::vector<std::byte>> attend(const std::vector<SeqId>& ids) {
    std::vector<std::int32_t> indptr{0};
    std::vector<double> queries;
    for (const SeqId id : ids) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(num_queries_[id]));
      queries.insert(queries.end(), queries_[id].begin(), queries_[id].end());
    }
    Tensor q(device_, case_.q_dtype, {indptr.back(), case_.num_qo_heads, case_.head_dim});
    q.write(queries);
    const Tensor out(device_, case_.out_dtype, {indptr.back(), case_.num_qo_heads, case_.head_dim});
    const Tensor lse(device_, DType::kFloat32, {indptr.back(), case_.num_qo_heads});
    attention_.plan(descriptor_.pack_for_flashinfer(ids), indptr);
    attention_.run(q.read_only_view(), out.view(), {.lse = lse.view()});
    std::map<SeqId, std::vector<std::byte>> parts;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      for (const Tensor& tensor : {out, lse}) {
        const auto bytes = tensor.bytes();
        const auto per_token = static_cast<std::ptrdiff_t>(bytes.size()) / indptr.back();
        parts[ids[i]].insert(parts[ids[i]].end(), bytes.begin() + indptr[i] * per_token,
                             bytes.begin() + indptr[i + 1] * per_token);
      }
    }
    return parts;
  }

 private:
  std::vector<double> random_values(std::int64_t tokens, int heads) {
    std::normal_distribution<double> normal;
    std::vector<double> values(static_cast<std::size_t>(tokens * heads * case_.head_dim));
    for (double& x : values) x = rounded(case_.kv_dtype, normal(random_));
    return values;
  }
  Tensor random_tensor(std::int64_t tokens, int heads) {
    Tensor tensor(device_, case_.kv_dtype, {tokens, heads, case_.head_dim});
    tensor.write(random_values(tokens, heads));
    return tensor;
  }

  AttentionCase case_;
  Device device_;
  std::mt19937_64& random_;
  PagedKVCacheManager manager_;
  CacheDescriptor descriptor_;
  BatchAttention attention_;
  std::map<SeqId, std::vector<double>> queries_;
  std::map<SeqId, std::int64_t> num_queries_;
};

class MaskNeighbours : public ConformanceSuite {};

// Rows of every kernel that a device has: short and long, of one chunk of keys and of several.
TEST_P(MaskNeighbours, LeaveARowItsBits) {
  Sequences world(attention_case(), device(), random);
  const std::vector<SeqId> plain{1, 2, 3, 4};
  world.add(1, 300, 1);
  world.add(2, 2500, 3);
  world.add(3, 500, 400);
  world.add(4, 90, 60);
  world.add(5, 400, 1, {.window = 30, .num_sink_tokens = 4});
  world.add(6, 200, 150, {.window = 190, .num_sink_tokens = 0});
  world.add(7, 100, 4, {}, {-1, 0, 0, 1});
  const auto expected = world.attend(plain);
  const auto masked = world.attend({5, 6, 7});
  for (const SeqId neighbour : {5, 6, 7}) {
    const auto together = world.attend({1, neighbour, 2, 3, 4});
    for (const SeqId id : plain) {
      EXPECT_TRUE(together.at(id) == expected.at(id)) << id << " beside " << neighbour;
      EXPECT_TRUE(world.attend({neighbour, id}).at(id) == expected.at(id)) << id;
    }
    EXPECT_TRUE(together.at(neighbour) == masked.at(neighbour)) << neighbour;
  }
}

std::vector<AttentionCase> neighbour_cases() {
  std::vector<AttentionCase> cases;
  for (const int head_dim : {64, 128}) {
    for (const int window_left : {-1, 2200}) {
      AttentionCase c;
      c.name = "head_dim_" + std::to_string(head_dim) + (window_left < 0 ? "" : "_window");
      c.num_kv_heads = 8;
      c.num_qo_heads = 32;
      c.head_dim = head_dim;
      c.page_size = 16;
      c.kv_dtype = c.q_dtype = c.out_dtype = DType::kBFloat16;
      c.window_left = window_left;
      cases.push_back(c);
    }
  }
  return cases;
}

SEQATTN_INSTANTIATE_CASES(MaskNeighbours, neighbour_cases());

}  // namespace
}  // namespace seqattn::testing
