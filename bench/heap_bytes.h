#pragma once

#include <cstdint>

namespace seqattn::bench {

// Bytes that operator new has handed out and that have not come back, as malloc rounds them up
// (without its own header of 8 bytes a block). Counts one thread only.
std::int64_t live_heap_bytes() noexcept;

}  // namespace seqattn::bench
