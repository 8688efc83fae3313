#include <cstdint>
#include <vector>

#include "random_descriptors.h"

namespace seqattn::testing {

void RandomDescriptors::truncate() {
  const SeqId id = known_id();
  const std::int64_t num_tokens = any_end(id);
  compare(
      "truncate", [&] { descriptor().truncate(id, num_tokens); },
      [&](DescriptorModel& model) { model.truncate(which_, id, num_tokens); });
}

void RandomDescriptors::set_window() {
  const SeqId id = known_id();
  SlidingWindow window = any_window();
  const auto entry = table().find(id);
  if (entry != table().end() && entry->second.dropped_to() > 0 && source_.one_in(2)) {
    // About the most that what was dropped allows.
    window = {.window = entry->second.length - entry->second.dropped_to() + source_.below(3),
              .num_sink_tokens = source_.below(static_cast<int>(entry->second.num_in_front()) + 2)};
  }
  compare(
      "set_window", [&] { descriptor().set_window(id, window); },
      [&](DescriptorModel& model) { model.set_window(which_, id, window); });
}

void RandomDescriptors::allocate_tree() {
  const SeqId id = known_id();
  const std::vector<std::int32_t> parents = any_parents();
  const std::int64_t num_tokens = source_.one_in(4) ? any_length() : 0;
  compare(
      "allocate_tree", [&] { return descriptor().allocate_tree(id, parents, num_tokens); },
      [&](DescriptorModel& model) {
        return model.allocate_tree(which_, id, parents, num_tokens).copies;
      });
}

void RandomDescriptors::commit_tree() {
  SeqId id = known_id();
  for (const auto& [other, sequence] : table()) {
    if (!sequence.parents.empty() && !source_.one_in(4)) id = other;
  }
  const auto entry = table().find(id);
  const bool has_tree = entry != table().end() && !entry->second.parents.empty();
  if (!has_tree && !source_.one_in(4)) return;
  const std::vector<std::int32_t> path =
      any_path(entry == table().end() ? DescriptorModel::Sequence() : entry->second);
  compare(
      "commit_tree", [&] { return descriptor().commit_tree(id, path); },
      [&](DescriptorModel& model) { return model.commit_tree(which_, id, path); });
}

void RandomDescriptors::keep() {
  const SeqId id = known_id();
  const auto entry = table().find(id);
  const std::vector<std::int64_t> slots =
      any_slots(entry == table().end() ? DescriptorModel::Sequence() : entry->second);
  compare(
      "keep", [&] { return descriptor().keep(id, slots); },
      [&](DescriptorModel& model) { return model.keep(which_, id, slots); });
}

}  // namespace seqattn::testing
