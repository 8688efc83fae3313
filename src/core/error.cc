#include "seqattn/error.h"

#include "message.h"

namespace seqattn {

// Out of line, so that each class has one vtable and one type_info across shared objects.
Error::~Error() = default;
InvalidArgumentError::~InvalidArgumentError() = default;
UnknownSequenceError::~UnknownSequenceError() = default;
NoPageError::~NoPageError() = default;
PinnedError::~PinnedError() = default;
OutOfMemoryError::~OutOfMemoryError() = default;
UnsupportedError::~UnsupportedError() = default;
SequenceStateError::~SequenceStateError() = default;
FileError::~FileError() = default;
BackendError::~BackendError() = default;

UnknownSequenceError::UnknownSequenceError(std::int64_t seq_id)
    : Error(concat("Sequence ID ", seq_id, " not found in cache descriptor")), seq_id_(seq_id) {}

NoPageError::NoPageError(std::int64_t needed, std::int64_t available, bool has_reclaimer)
    : Error(concat("Need ", needed, " pages but only ", available, " available",
                   has_reclaimer
                       ? ", and the pool's reclaimer cannot free enough (a prefix cache keeps what "
                         "sequences or handles hold): release or truncate sequences, or release "
                         "handles"
                       : ": release or truncate sequences, or give the pool a reclaimer "
                         "(PrefixCache, set_reclaimer)",
                   "; for sequences that grow, try_allocate reports this as a value")),
      needed_(needed),
      available_(available) {}

PinnedError::PinnedError(std::int64_t num_handles)
    : Error(concat("PrefixCache: got clear while ", num_handles,
                   " handles live; expected none: release them first")),
      num_handles_(num_handles) {}

}  // namespace seqattn
