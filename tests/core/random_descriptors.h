#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "descriptor_arguments.h"

namespace seqattn::testing {

// What was saved of sequences, by whatever descriptor: each may restore what another one saved.
struct SavedSequence {
  std::vector<std::byte> state;
  SequenceModel sequence;
  int page_size = 0;
};
using SavedSequences = std::deque<SavedSequence>;

// Makes random calls.
class RandomDescriptors : public DescriptorArguments {
 public:
  RandomDescriptors(ByteSource& source, SavedSequences& saved, OperationsResult& result)
      : DescriptorArguments(source, result), saved_(saved) {}

  void step();

 private:
  // Growth and release.
  void allocate();
  void try_allocate();
  void decode();
  void release();
  void clear();
  // Pages that several hold.
  void fork();
  void attach();
  void adopt();
  void attach_or_adopt(bool attach);
  void attach_what_the_other_has();
  void allocate_pages();
  void ref_pages();
  void unref_pages();
  void ref_or_unref(bool ref);
  void give_to_reclaimer();
  // Sequences that lose tokens.
  void truncate();
  void set_window();
  void allocate_tree();
  void commit_tree();
  void keep();
  // Sequences as bytes.
  void save();
  void restore();
  void restore_wrong_bytes(SeqId id, const SavedSequence& saved);
  // What one can see of them.
  void pack();
  void look_up();

  SavedSequences& saved_;
};

}  // namespace seqattn::testing
