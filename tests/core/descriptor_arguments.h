#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "checked_descriptors.h"

namespace seqattn::testing {

// What random calls are made with. Most of it is good; every kind of bad argument comes up.
class DescriptorArguments : public CheckedDescriptors {
 protected:
  using CheckedDescriptors::CheckedDescriptors;

  SeqId any_id();
  SeqId new_id();
  SeqId known_id();
  std::vector<SeqId> known_ids();
  std::pair<std::vector<SeqId>, std::vector<std::int64_t>> growth();
  std::int64_t any_length();
  std::int64_t any_end(SeqId id);
  SlidingWindow any_window();
  std::vector<std::int32_t> any_parents();
  std::vector<std::int32_t> any_path(const DescriptorModel::Sequence& sequence);
  std::vector<std::int64_t> any_slots(const DescriptorModel::Sequence& sequence);
  PageId any_page();
  std::vector<PageId> any_pages();
  std::vector<PageId> callers_pages();
};

}  // namespace seqattn::testing
