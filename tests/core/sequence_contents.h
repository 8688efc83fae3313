#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "byte_source.h"
#include "descriptor_state.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/prefix_cache.h"
#include "sequence_model.h"

namespace seqattn::testing {

// A sequence and the tokens that it was given. Tokens are numbered as they are appended, whatever
// the sequence.
struct NumberedSequence {
  SequenceModel slots;
  std::vector<std::int64_t> numbers;  // of the tokens that `slots` speaks of

  std::vector<std::int64_t> held() const;
};

// What the engines of one test have in common: what one has saved, another one may restore.
struct SharedContents {
  struct Saved {
    std::vector<std::byte> state;
    NumberedSequence sequence;
    int page_size = 0;
  };
  std::deque<Saved> saved;
  std::int64_t next_token = 0;
  // What has happened.
  std::int64_t num_copies = 0;
  std::int64_t num_found = 0;      // tokens, in the prefix cache
  std::int64_t num_reclaimed = 0;  // pages
  std::int64_t num_restored_elsewhere = 0;
  std::int64_t num_refused_states = 0;
};

// A manager, its sequences and, as a rule, a prefix cache that gives pages up when the pool falls
// short, in random use. Whatever happens to others, every sequence and every cached prefix holds
// the tokens that it was given.
class Contents {
 public:
  Contents(ByteSource& source, SharedContents& shared, KVLayout layout, bool copies_by_caller);

  void step();
  // All pages come back when everybody lets go.
  void finish();

 private:
  CacheDescriptor& descriptor() { return copies_by_caller_ ? over_pool_ : over_manager_; }
  PagePool& pool() { return manager_.pool(); }
  SeqId any_id() { return source_.below(6); }
  SeqId new_id();
  std::int64_t any_end(SeqId id);

  // Makes a call on a sequence of the descriptor: it has to be refused where the model refuses, may
  // fail for want of pages, and what throws leaves everything as it was.
  template <class RealCall, class ModelCall>
  bool attempt(SeqId id, const RealCall& real, const ModelCall& by_model) {
    NumberedSequence next = known_.at(id);
    bool is_allowed = true;
    try {
      by_model(next);
    } catch (const InvalidArgumentError&) {
      is_allowed = false;
    }
    const DescriptorState before = state_of(descriptor());
    try {
      real();
    } catch (const InvalidArgumentError& error) {
      EXPECT_FALSE(is_allowed) << error.what();
      EXPECT_EQ(state_of(descriptor()), before);
      return false;
    } catch (const NoPageError&) {
      EXPECT_EQ(state_of(descriptor()), before);
      return false;
    }
    EXPECT_TRUE(is_allowed) << "sequence " << id;
    known_.at(id) = next;
    return true;
  }

  void grow_much();
  void decode();
  void grow(int most);
  void append(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths,
              std::int64_t first_token);
  void fork();
  void truncate();
  void set_window();
  void release();
  // sequence_contents_compaction.cc
  void grow_by_a_tree();
  void end_tree(SeqId id, std::int64_t first_token);
  void keep();
  // sequence_contents_cache.cc
  void match();
  std::vector<std::int64_t> any_prompt();
  void insert();
  void evict();
  void save();
  void restore();
  void restore_wrong_bytes(SeqId id, std::vector<std::byte> state);
  void restore_into(SeqId id, std::span<const std::byte> state);
  // sequence_contents_check.cc
  void check();
  void expect_contents();
  void remember_a_batch();
  void expect_stale_batches_to_be_noticed();

  ByteSource& source_;
  SharedContents& shared_;
  PagedKVCacheManager manager_;
  CacheDescriptor over_manager_{manager_};
  CacheDescriptor over_pool_{manager_.pool()};
  bool copies_by_caller_;
  std::map<SeqId, NumberedSequence> known_;
  struct Batch {
    FlashInferPackedData packed;
    std::vector<std::uint32_t> generations;  // of its pages when it was packed
  };
  std::deque<Batch> batches_;
  std::optional<PrefixCache> cache_;
  std::int64_t num_evicted_ = 0;                    // pages, by the test's own calls
  std::deque<std::vector<std::int64_t>> inserted_;  // the tokens of cached prefixes, now or once
  struct Pinned {
    PrefixHandle handle;
    std::vector<std::int64_t> numbers;
  };
  std::deque<Pinned> pinned_;  // goes before the cache does
};

}  // namespace seqattn::testing
