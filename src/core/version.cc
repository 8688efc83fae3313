#include "seqattn/version.h"

#define SEQATTN_TEXT_OF(x) #x
#define SEQATTN_TEXT(x) SEQATTN_TEXT_OF(x)

namespace seqattn {

const char* version() noexcept {
  return SEQATTN_TEXT(SEQATTN_VERSION_MAJOR) "." SEQATTN_TEXT(
      SEQATTN_VERSION_MINOR) "." SEQATTN_TEXT(SEQATTN_VERSION_PATCH);
}

}  // namespace seqattn
