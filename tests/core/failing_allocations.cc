#include "failing_allocations.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace seqattn::testing {
namespace {

thread_local std::int64_t countdown = 0;  // 0: nothing fails
thread_local bool failed = false;

void* allocate(std::size_t size, std::size_t alignment) {
  if (countdown > 0 && --countdown == 0) {
    failed = true;
    throw std::bad_alloc();
  }
  // aligned_alloc wants whole multiples of the alignment.
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* const memory = alignment <= alignof(std::max_align_t)
                           ? std::malloc(size == 0 ? 1 : size)
                           : std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

FailingAllocations::FailingAllocations(std::int64_t n) {
  failed = false;
  countdown = n;
}

FailingAllocations::~FailingAllocations() { countdown = 0; }

bool FailingAllocations::have_failed() { return failed; }

}  // namespace seqattn::testing

// The other forms of new call these two.
void* operator new(std::size_t size) { return seqattn::testing::allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return seqattn::testing::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
