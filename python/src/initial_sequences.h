#pragma once

#include "arguments.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn::python {

// Gives a descriptor without sequences those of a mapping from id to SequenceData, with the
// references that the caller holds for them, as `adopt` does it for one. O(pages). Throws what
// adopt throws, and TypeError for what is no such mapping; then the caller's references are still
// the caller's.
void adopt_all(CacheDescriptor& descriptor, nb::handle mapping);

}  // namespace seqattn::python
