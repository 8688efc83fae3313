#pragma once

namespace seqattn::python {

// From now on the library's exceptions reach Python as the classes of seqattn/_errors.py, and
// std::bad_alloc as MemoryError.
void register_errors();

}  // namespace seqattn::python
