#include "heap_bytes.h"

#include <malloc.h>

#include <cstdlib>
#include <new>

namespace {

std::int64_t live_bytes = 0;

}  // namespace

std::int64_t seqattn::bench::live_heap_bytes() noexcept { return live_bytes; }

// The arrays' operators call these two.
void* operator new(std::size_t size) {
  void* const block = std::malloc(size == 0 ? 1 : size);
  if (block == nullptr) throw std::bad_alloc();
  live_bytes += static_cast<std::int64_t>(malloc_usable_size(block));
  return block;
}

void operator delete(void* block) noexcept {
  live_bytes -= static_cast<std::int64_t>(malloc_usable_size(block));
  std::free(block);
}

void operator delete(void* block, std::size_t) noexcept { operator delete(block); }
