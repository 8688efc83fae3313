#pragma once

#include <string>
#include <utility>
#include <vector>

#include "byte_source.h"
#include "call_outcome.h"
#include "descriptor_model.h"
#include "descriptor_operations.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"

namespace seqattn::testing {

// Holds references that it can give up, as a prefix cache does.
class ListReclaimer : public Reclaimer {
 public:
  explicit ListReclaimer(PagePool& pool) : pool_(pool) {}

  bool reclaim(std::int64_t num_pages) override {
    const auto counts = pool_.ref_counts();
    const auto count = num_to_give_up(references, {counts.begin(), counts.end()}, num_pages);
    if (count == 0) return false;
    pool_.unref(std::span(references).first(count));
    references.erase(references.begin(), references.begin() + static_cast<std::ptrdiff_t>(count));
    return true;
  }

  std::vector<PageId> references;

 private:
  PagePool& pool_;
};

// A manager, one descriptor over it and one over its bare pool, beside what they are meant to hold.
class CheckedDescriptors {
 public:
  // Reads sizes, windows and layout from the bytes.
  CheckedDescriptors(ByteSource& source, OperationsResult& result);

 protected:
  CacheDescriptor& descriptor() { return which_ == 0 ? first_ : second_; }
  const DescriptorModel::Table& table() const { return model_.tables.at(which_); }
  SlidingWindow good_window();

  // Does it by the model, on a copy, and by the library. An operation that would drop somebody
  // else's reference is left out, unless this run is one of misuse. `may_have_reclaimed`: even a
  // call that throws may leave pages free that the reclaimer gave up for it.
  template <class RealCall, class ModelCall>
  void compare(const char* name, const RealCall& real, const ModelCall& by_model,
               bool may_have_reclaimed = false) {
    DescriptorModel next = model_;
    const auto expected = outcome_of([&] { return by_model(next); });
    if (expected.thrown != Thrown::kNothing) {
      ++result_.num_errors;
    } else if (misuse_ || !next.has_stolen_references()) {
      model_ = std::move(next);
    } else {
      return;
    }
    ++result_.num_operations;
    if (outcome_of(real) != expected) differ(name, "gave another result");
    // A call may find that a page of its own is gone when its reclaimer, misused, has helped
    // already.
    may_have_reclaimed |= misuse_;
    if (may_have_reclaimed && expected.thrown != Thrown::kNothing) follow_reclaimer();
    compare_states(name);
  }
  void compare_states(const char* name);
  void differ(const char* name, const std::string& what);

  ByteSource& source_;
  OperationsResult& result_;
  PagedKVCacheManager manager_;
  PagePool& pool_ = manager_.pool();
  CacheDescriptor first_{manager_, good_window()}, second_{pool_, good_window()};
  ListReclaimer reclaimer_{pool_};
  DescriptorModel model_;
  bool has_reclaimer_;
  bool misuse_;
  int which_ = 0;  // descriptor

 private:
  void follow_reclaimer();
};

}  // namespace seqattn::testing
