#pragma once

#include <cstdint>

namespace seqattn::testing {

// Memory allocations of this thread that fail. Linking failing_allocations.cc replaces the global
// operator new of the program.
class FailingAllocations {
 public:
  // From now on the n-th allocation of this thread throws std::bad_alloc, n from 1 on; all others
  // succeed.
  explicit FailingAllocations(std::int64_t n);
  ~FailingAllocations();
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;

  // Whether there have been so many.
  static bool have_failed();
};

}  // namespace seqattn::testing
