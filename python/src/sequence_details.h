#pragma once

#include "arguments.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn::python {

// A seqattn._types.SequenceDetails, and back; throws TypeError for what is none.
nb::object from_sequence_data(const SequenceData& data);
SequenceData to_sequence_data(nb::handle details);

}  // namespace seqattn::python
