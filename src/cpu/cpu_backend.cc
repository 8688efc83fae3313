#include "cpu_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "cpu_attention.h"
#include "merge_states_cpu.h"
#include "message.h"
#include "token_copy.h"

namespace seqattn {
namespace {

class CpuBackend final : public Backend {
 public:
  void check_supported(const KVCacheConfig& config) const override {
    if (config.device.index != 0) {
      throw UnsupportedError(concat("device: got CPU number ", config.device.index,
                                    "; expected 0, the only one there is"));
    }
  }

  std::shared_ptr<void> allocate(std::int64_t bytes, Device) override {
    // The system hands out zeros when a page is first touched.
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
    void* const memory =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return {memory, [size](void* p) { munmap(p, size); }};
  }

  void copy_pages(std::span<const Plane> planes, std::span<const PageCopy> copies,
                  Stream) override {
    copy_pages_cpu(planes, copies);
  }

  void move_tokens(std::span<const Plane> planes, std::span<const TokenMove> moves,
                   Stream) override {
    move_tokens_cpu(planes, moves);
  }

  void write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                    std::span<const TokenRange> ranges, Stream) override {
    write_tokens_cpu(planes, tensors, ranges);
  }

  void read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                   std::span<const TokenRange> ranges, Stream) override {
    read_tokens_cpu(planes, tensors, ranges);
  }

  std::unique_ptr<AttentionKernel> make_attention(const AttentionShape& shape,
                                                  const PlanCapacity& capacity) override {
    return make_cpu_attention(shape, capacity);
  }

  void merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                    const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                    Stream) override {
    merge_states_cpu(out_a, lse_a, out_b, lse_b, out, lse);
  }

  void copy_bytes(void* to, const void* from, std::int64_t bytes, Stream) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  void synchronize(Stream) override {}  // every call is complete when it returns
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

}  // namespace seqattn
