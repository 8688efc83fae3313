#pragma once

#include "descriptor_model.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn::testing {

// Whether the descriptor has the sequences of the model's one of that number, field by field.
bool equals(const CacheDescriptor& descriptor, const DescriptorModel& model, int number);

}  // namespace seqattn::testing
