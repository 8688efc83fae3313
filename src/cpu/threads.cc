#include "threads.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>

namespace seqattn {
namespace {

const pid_t kLoadedIn = getpid();

// More threads than processors gain nothing, but a small machine can still try out what a larger
// one does.
constexpr int kAlwaysAllowed = 64;

}  // namespace

int usable_threads(int requested) noexcept {
  if (getpid() != kLoadedIn) return 1;
  // Beyond what the system has, OpenMP ends the process instead of reporting it.
  const int most = std::min(std::max(omp_get_num_procs(), kAlwaysAllowed), omp_get_thread_limit());
  return std::clamp(requested > 0 ? requested : omp_get_max_threads(), 1, std::max(most, 1));
}

}  // namespace seqattn
