#pragma once

#include <cstddef>

#include "seqattn/cache_descriptor.h"

namespace seqattn {

// Finds the sequences of a batch. Most steps list the ids of the step before in the same places:
// what a growth has found is found again without a search.
class SequenceFinder {
 public:
  // What the last growth found at this place of its batch, if that was this id; else null.
  static SequenceData* known(const CacheDescriptor& descriptor, std::size_t place,
                             SeqId seq_id) noexcept {
    const auto& found = descriptor.found_;
    return place < found.size() && found[place].seq_id == seq_id ? found[place].data : nullptr;
  }
  // Throws UnknownSequenceError.
  static const SequenceData& find(const CacheDescriptor& descriptor, std::size_t place,
                                  SeqId seq_id) {
    const SequenceData* const data = known(descriptor, place, seq_id);
    return data != nullptr ? *data : descriptor.sequence(seq_id);
  }
  // A growth of so many sequences begins. May throw std::bad_alloc.
  static void make_room(CacheDescriptor& descriptor, std::size_t num_sequences) {
    if (descriptor.found_.size() < num_sequences) descriptor.found_.resize(num_sequences);
  }
  static void note(CacheDescriptor& descriptor, std::size_t place, SeqId seq_id,
                   SequenceData& data) noexcept {
    descriptor.found_[place] = {seq_id, &data};
  }
};

}  // namespace seqattn
