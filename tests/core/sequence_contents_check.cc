#include "host_tensor.h"
#include "sequence_contents.h"
#include "stored_tokens.h"

// What has to hold after every step.
namespace seqattn::testing {

void Contents::check() {
  descriptor().check_invariants();
  if (cache_) cache_->check_invariants();
  expect_contents();
  expect_stale_batches_to_be_noticed();
}

void Contents::expect_contents() {
  EXPECT_EQ(descriptor().num_sequences(), std::ssize(known_));
  for (const auto& [id, sequence] : known_) {
    const std::vector<std::int64_t> held = sequence.held();
    ASSERT_EQ(descriptor().length(id), sequence.slots.length);
    ASSERT_EQ(descriptor().num_kv_tokens(id), std::ssize(held));
    SCOPED_TRACE(::testing::Message() << "sequence " << id);
    expect_numbers(manager_, descriptor().pages(id), held);
  }
  for (const auto& [handle, numbers] : pinned_) {
    expect_numbers(manager_, handle.pages(), numbers);
  }
  for (const auto& numbers : inserted_) {
    const std::vector<TokenId> tokens(numbers.begin(), numbers.end());
    const PrefixHandle handle = cache_->pin(tokens);
    const auto found = std::span(numbers).first(static_cast<std::size_t>(handle.num_tokens()));
    expect_numbers(manager_, handle.pages(), found);
  }
}

// Keeps a batch over a few sequences, to be used when it has become stale.
void Contents::remember_a_batch() {
  std::vector<SeqId> ids;
  for (const auto& [id, sequence] : known_) {
    if (source_.one_in(2)) ids.push_back(id);
  }
  batches_.push_back({descriptor().pack_for_flashinfer(ids), {}});
  for (const PageId page : batches_.back().packed.kv_page_indices()) {
    batches_.back().generations.push_back(pool().generation(page));
  }
  if (batches_.size() > 6) batches_.pop_front();
}

// A batch is refused exactly when one of its pages is free by now, or in debug builds was in
// between, even for no new tokens.
void Contents::expect_stale_batches_to_be_noticed() {
  const KVCacheConfig& config = manager_.config();
  const HostTensor keys(DType::kFloat32, {0, config.num_heads, config.head_dim});
  const HostTensor values(DType::kFloat32, {0, config.num_heads, config.head_dim_v});
  for (const auto& [batch, generations] : batches_) {
    const auto pages = batch.kv_page_indices();
    bool is_stale = false;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      is_stale |=
          manager_.ref_count(pages[i]) == 0 || pool().generation(pages[i]) != generations[i];
    }
    const std::vector<std::int32_t> indptr(static_cast<std::size_t>(batch.batch_size()) + 1);
    bool is_refused = false;
    try {
      manager_.append_kv(keys.view(), values.view(), batch, indptr);
    } catch (const InvalidArgumentError&) {
      is_refused = true;
    }
    ASSERT_EQ(is_refused, is_stale);
  }
}

}  // namespace seqattn::testing
