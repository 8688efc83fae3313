#include "threads.h"

#include <omp.h>
#include <unistd.h>

namespace seqattn {
namespace {

const pid_t kLoadedIn = getpid();

}  // namespace

int usable_threads(int requested) noexcept {
  if (getpid() != kLoadedIn) return 1;
  return requested > 0 ? requested : omp_get_max_threads();
}

}  // namespace seqattn
