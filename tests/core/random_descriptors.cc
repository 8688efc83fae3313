#include "random_descriptors.h"

#include <array>

namespace seqattn::testing {

void RandomDescriptors::step() {
  which_ = source_.one_in(4) ? 1 : 0;
  using Operation = void (RandomDescriptors::*)();
  using Random = RandomDescriptors;
  constexpr std::array<Operation, 22> kOperations = {
      &Random::allocate,      &Random::allocate,
      &Random::try_allocate,  &Random::decode,
      &Random::decode,        &Random::release,
      &Random::fork,          &Random::attach,
      &Random::adopt,         &Random::allocate_pages,
      &Random::ref_pages,     &Random::unref_pages,
      &Random::truncate,      &Random::set_window,
      &Random::allocate_tree, &Random::commit_tree,
      &Random::keep,          &Random::pack,
      &Random::save,          &Random::restore,
      &Random::look_up,       &Random::give_to_reclaimer};
  (this->*kOperations.at(static_cast<std::size_t>(source_.below(kOperations.size()))))();
}

void RandomDescriptors::allocate() {
  const auto [ids, lengths] = growth();
  compare(
      "allocate", [&, &i = ids, &n = lengths] { return descriptor().allocate(i, n); },
      [&, &i = ids, &n = lengths](DescriptorModel& model) {
        return model.allocate(which_, i, n).copies;
      });
}

void RandomDescriptors::try_allocate() {
  const auto [ids, lengths] = growth();
  compare(
      "try_allocate",
      [&, &i = ids, &n = lengths] { return value_of(descriptor().try_allocate(i, n)); },
      [&, &i = ids, &n = lengths](DescriptorModel& model) {
        return value_of(model.grow(which_, i, n));
      });
}

void RandomDescriptors::decode() {
  const std::vector<SeqId> ids = known_ids();
  compare(
      "allocate_decoding", [&] { return descriptor().allocate_decoding(ids); },
      [&](DescriptorModel& model) { return model.decode(which_, ids).copies; });
}

void RandomDescriptors::release() {
  std::vector<SeqId> ids = known_ids();
  if (!source_.one_in(4) && !ids.empty()) ids.erase(ids.begin() + 1, ids.end());
  compare(
      "release", [&] { return descriptor().release(ids); },
      [&](DescriptorModel& model) { return model.release(which_, ids); });
}

void RandomDescriptors::clear() {
  const std::vector<SeqId> ids = descriptor().seq_ids();  // the order in which pages become free
  compare(
      "clear", [&] { descriptor().clear(); },
      [&](DescriptorModel& model) { model.release(which_, ids); });
}

OperationsResult run_descriptor_operations(std::span<const std::uint8_t> bytes) {
  ByteSource source(bytes);
  SavedSequences saved;
  OperationsResult result;
  RandomDescriptors here(source, saved, result), elsewhere(source, saved, result);
  while (!source.empty() && result.difference.empty()) {
    (source.one_in(4) ? elsewhere : here).step();
  }
  return result;
}

}  // namespace seqattn::testing
