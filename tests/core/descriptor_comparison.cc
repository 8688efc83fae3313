#include "descriptor_comparison.h"

namespace seqattn::testing {

bool equals(const CacheDescriptor& descriptor, const DescriptorModel& model, int number) {
  const DescriptorModel::Table& table = model.tables.at(static_cast<std::size_t>(number));
  if (descriptor.num_sequences() != static_cast<std::int64_t>(table.size())) return false;
  for (const auto& [id, expected] : table) {
    if (!descriptor.contains(id)) return false;
    const SequenceData& actual = descriptor.sequence(id);
    if (actual.kv_page_indices != expected.pages || actual.length != expected.length ||
        actual.last_page_len != model.last_page_len(expected) || actual.window != expected.window ||
        actual.num_dropped != expected.num_missing() ||
        actual.dropped_to != expected.dropped_to() ||
        actual.num_in_front != expected.num_in_front() || actual.compacted_to != expected.floor ||
        actual.tree_parents != expected.parents) {
      return false;
    }
  }
  return true;
}

}  // namespace seqattn::testing
