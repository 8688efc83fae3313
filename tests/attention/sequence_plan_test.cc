#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "conformance_suite.h"
#include "error_text.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

// Plans of sequences as they are, without packed data: the same as packing them, whatever has
// become of the sequences, and of the batch before.
namespace seqattn::testing {
namespace {

using ::testing::HasSubstr;

class SequencePlans : public DeviceSuite {
 protected:
  void prepare() override {
    c = device_case({}, device());
    c.page_size = 16;
    make_pool(400);
    make_queries(32);
  }
  void make_pool(int num_pages) {
    attention.reset(), packed.reset(), sequences.reset();
    manager = std::make_unique<PagedKVCacheManager>(c.cache_config(num_pages, device()));
    sequences = std::make_unique<CacheDescriptor>(*manager);
    for (const TensorView& cache : {manager->key_cache(), manager->value_cache()}) {
      Tensor tensor(device(), cache.dtype, {num_pages * c.page_size, c.num_kv_heads, c.head_dim});
      fill_with_normals(tensor, random);
      const auto bytes = tensor.bytes();
      copy_to_device(device(), cache.data, bytes);
    }
    attention = std::make_unique<BatchAttention>(*manager, c.options());
    packed = std::make_unique<BatchAttention>(*manager, c.options());
  }
  void make_queries(std::int64_t most) {
    q = Tensor(device(), c.q_dtype, {most, c.num_qo_heads, c.head_dim});
    fill_with_normals(q, random);
  }
  std::vector<std::byte> run(const BatchAttention& by) {
    TensorView queries = q.view();
    queries.shape[0] = by.num_q_tokens();
    const Tensor out(device(), c.out_dtype, {by.num_q_tokens(), c.num_qo_heads, c.dim_v()});
    by.run(queries, out.view());
    return out.bytes();
  }
  // Every sequence asks with its last tokens, so many at most.
  std::vector<std::int32_t> indptr_of(const std::vector<SeqId>& ids, std::int64_t most) {
    std::vector<std::int32_t> indptr{0};
    for (const SeqId id : ids) {
      const auto q_len = std::min<std::int64_t>(most, sequences->num_kv_tokens(id));
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(q_len));
    }
    return indptr;
  }
  void expect_as_packed(const std::vector<SeqId>& ids, std::int64_t most) {
    const auto indptr = indptr_of(ids, most);
    attention->plan_sequences(*sequences, ids, indptr);
    packed->plan(sequences->pack_for_flashinfer(ids), indptr);
    ASSERT_EQ(attention->num_q_tokens(), packed->num_q_tokens());
    ASSERT_LE(packed->num_q_tokens(), q.view().shape[0]);
    EXPECT_TRUE(run(*attention) == run(*packed));
    EXPECT_EQ(attention->kernel_name(), packed->kernel_name());
  }

  AttentionCase c;
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> sequences;
  std::unique_ptr<BatchAttention> attention, packed;
  Tensor q;
};

TEST_P(SequencePlans, AreThoseOfPackedSequences) {
  sequences->allocate({1, 2, 3}, {100, 1, 17});
  expect_as_packed({1, 2, 3}, 1);
  expect_as_packed({3, 1}, 2);
  expect_as_packed({2, 2}, 1);
  expect_as_packed({1, 2, 3}, 9);  // more than a device's own kernel takes
  expect_as_packed({}, 1);
  expect_as_packed({1, 2, 3}, 1);
}

TEST_P(SequencePlans, FollowEverySequence) {
  std::vector<SeqId> ids;
  SeqId next = 0;
  for (int step = 0; step < 200; ++step) {
    const auto roll = random() % 12;
    const SeqId any = ids.empty() ? 0 : ids[random() % ids.size()];
    if (ids.size() < 4 || (roll == 0 && ids.size() < 12)) {
      ids.push_back(next);
      sequences->allocate({next++}, {static_cast<std::int64_t>(random() % 150)});
    } else if (roll == 1 && sequences->sequence(any).compacted_to == 0) {
      sequences->truncate(any, sequences->length(any) / 2);
    } else if (roll == 2 && ids.size() < 12) {
      sequences->fork(any, next);  // then both grow on a copy of the last page
      ids.push_back(next++);
    } else if (roll == 3) {
      sequences->release({any});
      ids.erase(std::find(ids.begin(), ids.end(), any));
    } else if (roll == 4 && sequences->num_kv_tokens(any) > 2) {
      sequences->keep(any, {0, sequences->num_kv_tokens(any) - 1});
    } else if (roll == 5 && ids.size() < 12) {
      const auto held = sequences->pages(any);
      const std::vector<PageId> pages(held.begin(), held.end());
      const std::int64_t tokens = sequences->num_kv_tokens(any);
      sequences->attach(next, pages, tokens);
      ids.push_back(next++);
    } else if (roll == 6) {
      std::shuffle(ids.begin(), ids.end(), random);
    }
    sequences->allocate_decoding(ids);
    expect_as_packed(ids, step % 5 == 4 ? 2 : 1);
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
}

// A device takes several of them a thread then, and a copy of what changed instead of a kernel's
// parameters. They share pages, so that they fit.
TEST_P(SequencePlans, OfThousandsOfSequences) {
  constexpr SeqId kParents = 4, kSequences = 3000;
  std::vector<SeqId> ids;
  for (SeqId id = 0; id < kParents; ++id) {
    sequences->allocate({id}, {1 + static_cast<std::int64_t>(random() % 300)});
  }
  for (SeqId id = kParents; id < kParents + kSequences; ++id) {
    const SeqId parent = id % kParents;
    sequences->fork(parent, id);
    const auto length = static_cast<std::uint64_t>(sequences->length(parent));
    sequences->truncate(id, static_cast<std::int64_t>(random() % (length + 1)));
    ids.push_back(id);
  }
  make_queries(2 * kSequences);
  expect_as_packed(ids, 1);
  for (std::size_t i = 0; i < ids.size(); i += 1 + random() % 40) {
    sequences->truncate(ids[i], sequences->length(ids[i]) / 2);
  }
  expect_as_packed(ids, 2);
  std::shuffle(ids.begin(), ids.end(), random);
  expect_as_packed(ids, 1);
  ids.resize(1025);  // one more than a thread block has threads
  expect_as_packed(ids, 2);
}

// Rows that a device cuts in every way that it has, by what it works out itself. They share pages.
TEST_P(SequencePlans, OfRaggedSequences) {
  constexpr std::int64_t kLongest = 70001;
  make_pool(kLongest / 16 + 40);
  sequences->allocate({0}, {kLongest});
  std::vector<SeqId> ids{0};
  for (const std::int64_t length :
       {1, 2, 15, 16, 17, 129, 1024, 1025, 2048, 2049, 4096, 4097, 8193, 16385, 40000, 65536}) {
    ids.push_back(static_cast<SeqId>(ids.size()));
    sequences->fork(0, ids.back(), length);
  }
  make_queries(2 * static_cast<std::int64_t>(ids.size()));
  expect_as_packed(ids, 2);
  const auto before = run(*attention);
  std::reverse(ids.begin(), ids.end());
  expect_as_packed(ids, 2);
  std::reverse(ids.begin(), ids.end());
  expect_as_packed(ids, 2);
  EXPECT_TRUE(run(*attention) == before);
}

TEST_P(SequencePlans, TakeWindowsAndTrees) {
  sequences->allocate({1, 2, 3}, {100, 40, 17});
  sequences->set_window(1, {.window = 20, .num_sink_tokens = 2});
  sequences->allocate_tree(2, {-1, 0, 0});
  expect_as_packed({1, 2, 3}, 1);
  expect_as_packed({3, 2}, 3);
  expect_as_packed({3}, 1);
}

TEST_P(SequencePlans, AppendWherePackedOnesWould) {
  sequences->allocate({1, 2}, {30, 16});
  attention->plan_sequences(*sequences, {1, 2}, {0, 2, 3});
  Tensor keys(device(), c.kv_dtype, {3, c.num_kv_heads, c.head_dim});
  Tensor values(device(), c.kv_dtype, {3, c.num_kv_heads, c.dim_v()});
  std::vector<double> elements(static_cast<std::size_t>(keys.view().num_elements()));
  for (std::size_t i = 0; i < elements.size(); ++i) elements[i] = static_cast<double>(i % 97);
  keys.write(elements);
  values.write(elements);
  attention->append_kv(keys.view(), values.view());
  const std::size_t per_token = elements.size() / 3;
  const auto expect_read = [&](SeqId id, std::int64_t first, std::int64_t count, std::size_t from) {
    const Tensor k(device(), c.kv_dtype, {count, c.num_kv_heads, c.head_dim});
    const Tensor v(device(), c.kv_dtype, {count, c.num_kv_heads, c.dim_v()});
    manager->read_kv(sequences->pages(id), first, count, k.view(), v.view());
    const auto begin = elements.begin() + static_cast<std::ptrdiff_t>(from * per_token);
    const std::vector<double> want(
        begin, begin + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(count) * per_token));
    EXPECT_EQ(k.read(), want);
    EXPECT_EQ(v.read(), want);
  };
  expect_read(1, 28, 2, 0);
  expect_read(2, 15, 1, 2);
  sequences->fork(1, 9);  // whose pages are shared now
  attention->plan_sequences(*sequences, {1, 2}, {0, 2, 3});
  EXPECT_THAT(error_of([&] { attention->append_kv(keys.view(), values.view()); }),
              HasSubstr("append before sharing"));
}

TEST_P(SequencePlans, ThatCannotBeAreRefusedAndTheOneBeforeStays) {
  sequences->allocate({1, 2}, {30, 16});
  expect_as_packed({1, 2}, 1);
  const auto before = run(*attention);
  EXPECT_THROW(attention->plan_sequences(*sequences, {1, 7}, {0, 1, 2}), UnknownSequenceError);
  EXPECT_THAT(error_of([&] {
                attention->plan_sequences(*sequences, {1, 2}, {0, 1});
              }),
              HasSubstr("qo_indptr: got 2 entries; expected 3"));
  EXPECT_THAT(error_of([&] {
                attention->plan_sequences(*sequences, {1, 2}, {0, 1, 18});
              }),
              HasSubstr("row 1 has 17 queries and 16 keys"));
  PagedKVCacheManager other(c.cache_config(4, device()));
  const CacheDescriptor others(other);
  EXPECT_THAT(error_of([&] { attention->plan_sequences(others, {}, {0}); }),
              HasSubstr("plan: got a descriptor of another pool"));
  BatchAttention small(*manager, c.options(),
                       {.max_sequences = 1, .max_q_tokens = 4, .max_q_len = 2, .max_pages = 4});
  EXPECT_THAT(error_of([&] {
                small.plan_sequences(*sequences, {1, 2}, {0, 1, 2});
              }),
              HasSubstr("got a batch of 2 sequences; expected at most 1"));
  EXPECT_THROW(small.plan_sequences(*sequences, {1}, {0, 3}), UnsupportedError);
  EXPECT_TRUE(run(*attention) == before);
}

SEQATTN_INSTANTIATE_DEVICES(SequencePlans);

}  // namespace
}  // namespace seqattn::testing
