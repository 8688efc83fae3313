#include "wide_pages.h"

#include "float8_kernels.h"

namespace seqattn {

namespace {
constexpr std::int64_t kElementBytes = 2;
}

std::int64_t WidePages::page_bytes() const noexcept {
  return std::int64_t{shape_.page_size} * shape_.num_kv_heads * shape_.head_dim * kElementBytes;
}

void WidePages::reserve(std::int64_t num_pages, cudaStream_t stream) {
  buffer_.reserve(static_cast<std::size_t>(2 * num_pages * page_bytes()), stream);
}

std::array<Plane, 2> WidePages::widen(std::span<const Plane> planes, DType dtype,
                                      const std::int32_t* pages, std::int64_t num_pages,
                                      cudaStream_t stream) const {
  const std::int64_t head = shape_.head_dim * kElementBytes;
  Plane copy{.data = buffer_.data(),
             .dtype = dtype,
             .num_pages = num_pages,
             .page_size = shape_.page_size,
             .num_heads = shape_.num_kv_heads,
             .head_dim = shape_.head_dim,
             .page_stride = page_bytes(),
             .token_stride = shape_.num_kv_heads * head,
             .head_stride = head};
  std::array<Plane, 2> copies{copy, copy};
  copies[1].data += num_pages * page_bytes();
  launch_widen_pages(planes, copies, pages, num_pages, stream);
  return copies;
}

}  // namespace seqattn
