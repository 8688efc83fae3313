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

// Less is not worth waking a thread for: of 512 KiB in cache two threads save a third of the time.
constexpr std::int64_t kBytesPerThread = 256 << 10;

}  // namespace

int usable_threads(int requested) noexcept {
  if (getpid() != kLoadedIn) return 1;
  // Beyond what the system has, OpenMP ends the process instead of reporting it.
  const int most = std::min(std::max(omp_get_num_procs(), kAlwaysAllowed), omp_get_thread_limit());
  return std::clamp(requested > 0 ? requested : omp_get_max_threads(), 1, std::max(most, 1));
}

int copy_threads(std::int64_t bytes, int requested) noexcept {
  const std::int64_t worth = bytes / kBytesPerThread;
  if (worth <= 1) return 1;
  return static_cast<int>(std::min<std::int64_t>(worth, usable_threads(requested)));
}

}  // namespace seqattn
