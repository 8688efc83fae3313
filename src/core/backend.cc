#include "backend.h"

namespace seqattn {

// Out of line, so that each class has one vtable.
AttentionKernel::~AttentionKernel() = default;
Backend::~Backend() = default;

}  // namespace seqattn
