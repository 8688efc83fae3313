#include "token_copy.h"

#include <cstring>

#include "convert.h"

namespace seqattn {
namespace {

std::int64_t row_bytes(const Plane& plane) { return plane.head_dim * size_of(plane.dtype); }

// Whether the slots of a page fill one block of memory, in whatever order.
bool is_dense(const Plane& plane) {
  const std::int64_t row = row_bytes(plane);
  const bool tokens_outside =
      plane.head_stride == row && plane.token_stride == plane.num_heads * row;
  const bool heads_outside =
      plane.token_stride == row && plane.head_stride == plane.page_size * row;
  return tokens_outside || heads_outside;
}

void copy_page(const Plane& plane, PageCopy copy) {
  const auto row = static_cast<std::size_t>(row_bytes(plane));
  if (is_dense(plane)) {
    std::memcpy(plane.slot(copy.target, 0, 0), plane.slot(copy.source, 0, 0),
                row * static_cast<std::size_t>(plane.page_size) *
                    static_cast<std::size_t>(plane.num_heads));
    return;
  }
  for (int token = 0; token < plane.page_size; ++token) {
    for (int head = 0; head < plane.num_heads; ++head) {
      std::memcpy(plane.slot(copy.target, token, head), plane.slot(copy.source, token, head), row);
    }
  }
}

// Calls body(slot, element, count) for every run of elements that is contiguous on both sides: the
// plane's bytes at `slot`, the tensor's at `element`.
template <class Body>
void for_each_run(const Plane& plane, const TensorView& tensor, const TokenRange& range,
                  const Body& body) {
  const std::int64_t element_bytes = size_of(tensor.dtype);
  const bool heads_together =
      plane.head_stride == row_bytes(plane) && tensor.strides[1] == plane.head_dim;
  const int num_runs = heads_together ? 1 : plane.num_heads;
  const std::int64_t run = heads_together ? std::int64_t{plane.num_heads} * plane.head_dim
                                          : std::int64_t{plane.head_dim};
  for (std::int64_t i = 0; i < range.count; ++i) {
    const std::int64_t token = range.first + i;
    const PageId page = range.pages[token / plane.page_size];
    auto* element =
        static_cast<std::byte*>(tensor.data) + (range.row + i) * tensor.strides[0] * element_bytes;
    for (int head = 0; head < num_runs; ++head) {
      body(plane.slot(page, token % plane.page_size, head), element, run);
      element += tensor.strides[1] * element_bytes;
    }
  }
}

}  // namespace

void copy_pages_cpu(std::span<const Plane> planes, std::span<const PageCopy> copies) {
  for (const PageCopy& copy : copies) {
    if (copy.source == copy.target) continue;
    for (const Plane& plane : planes) copy_page(plane, copy);
  }
}

void write_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                      std::span<const TokenRange> ranges) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const Conversion convert = conversion(tensors[i].dtype, planes[i].dtype);
    for (const TokenRange& range : ranges) {
      for_each_run(planes[i], tensors[i], range,
                   [convert](std::byte* slot, std::byte* element, std::int64_t count) {
                     convert(element, slot, count);
                   });
    }
  }
}

void read_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     std::span<const TokenRange> ranges) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const Conversion convert = conversion(planes[i].dtype, tensors[i].dtype);
    for (const TokenRange& range : ranges) {
      for_each_run(planes[i], tensors[i], range,
                   [convert](std::byte* slot, std::byte* element, std::int64_t count) {
                     convert(slot, element, count);
                   });
    }
  }
}

}  // namespace seqattn
