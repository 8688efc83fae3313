#pragma once

#include <cstdint>

#include "seqattn/types.h"

namespace seqattn {

// Copies `count` elements from one type to another; the two must not overlap. Conversions to 16
// bits round to nearest, ties to even.
using Conversion = void (*)(const void* from, void* to, std::int64_t count);

// Between equal types it is a copy of bytes. REQUIRES others than 8 bits otherwise: those have
// scales (quantise.h). The instruction set is this machine's best.
Conversion conversion(DType from, DType to);

}  // namespace seqattn
