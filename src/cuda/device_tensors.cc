#include "device_tensors.h"

#include <algorithm>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 32;  // FA2 counts elements in 32 bits

// Strides in bytes.
void check_vectors(std::string_view name, const void* data, std::int64_t token, std::int64_t head,
                   std::int64_t page = 0) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  require((address | static_cast<std::uintptr_t>(token | head | page)) % 16 == 0, name,
          ": got an address or strides that are not multiples of 16 bytes; kernels on a device "
          "expect them to be");
}

}  // namespace

std::int64_t token_stride(const TensorView& tokens) noexcept {
  return tokens.shape[0] == 1 ? tokens.shape[1] * tokens.shape[2] : tokens.strides[0];
}

std::int64_t head_stride(const TensorView& tokens) noexcept {
  return tokens.shape[1] == 1 ? tokens.shape[2] : tokens.strides[1];
}

Fa2Cache cache_of(const Plane& plane) noexcept {
  const std::int64_t bytes = size_of(plane.dtype);
  return {plane.data, plane.num_pages == 1 ? 0 : plane.page_stride / bytes,
          plane.page_size == 1 ? 0 : plane.token_stride / bytes,
          plane.num_heads == 1 ? 0 : plane.head_stride / bytes};
}

bool is_aligned(const void* data) noexcept {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

void check_aligned(std::string_view name, const void* data) { check_vectors(name, data, 0, 0); }

void check_queries(const TensorView& q) {
  const std::int64_t token = token_stride(q), head = head_stride(q), bytes = size_of(q.dtype);
  check_vectors("q", q.data, token * bytes, head * bytes);
  const std::int64_t last = (q.shape[0] - 1) * token + (q.shape[1] - 1) * head + q.shape[2];
  if (std::max(token, head) < kMost / 2 && last <= kMost) return;
  throw UnsupportedError(concat("q: strides of ", token, " and ", head, " elements over ",
                                q.shape[0], " tokens and ", q.shape[1],
                                " heads; kernels on a device take tensors that span up to 2^32 "
                                "elements, with strides below 2^31"));
}

void check_cache(std::string_view name, const Plane& plane) {
  const Fa2Cache cache = cache_of(plane);
  const std::int64_t bytes = size_of(plane.dtype);
  check_vectors(name, cache.data, cache.token_stride * bytes, cache.head_stride * bytes,
                cache.page_stride * bytes);
  const std::int64_t longest = std::max({cache.page_stride, cache.token_stride, cache.head_stride});
  if (longest < kMost) return;
  throw UnsupportedError(concat(name, ": a stride of ", longest,
                                " elements; kernels on a device take fewer than 2^32"));
}

}  // namespace seqattn
