#include "token_copy.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "convert.h"
#include "quantise.h"
#include "threads.h"

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

// Calls body(plane) for the elements, and for the scales where they follow tokens.
template <class Body>
void with_scales(const Plane& plane, const Body& body) {
  body(plane);
  if (plane.scales.per_token) body(plane.scale_plane());
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

void move_token(const Plane& plane, const TokenMove& move) {
  for (int head = 0; head < plane.num_heads; ++head) {
    std::memcpy(plane.slot(move.target_page, move.target_slot, head),
                plane.slot(move.source_page, move.source_slot, head),
                static_cast<std::size_t>(row_bytes(plane)));
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

// Calls body(slot, element, scale) for every head of every token of a plane with scales.
template <class Body>
void for_each_scaled_head(const Plane& plane, const TensorView& tensor, const TokenRange& range,
                          const Body& body) {
  const std::int64_t element_bytes = size_of(tensor.dtype);
  for (std::int64_t i = 0; i < range.count; ++i) {
    const std::int64_t token = range.first + i, slot = token % plane.page_size;
    const PageId page = range.pages[token / plane.page_size];
    auto* element =
        static_cast<std::byte*>(tensor.data) + (range.row + i) * tensor.strides[0] * element_bytes;
    for (int head = 0; head < plane.num_heads; ++head) {
      body(plane.slot(page, slot, head), element, plane.scale(page, slot, head));
      element += tensor.strides[1] * element_bytes;
    }
  }
}

void write_scaled(const Plane& plane, const TensorView& tensor, const TokenRange& range) {
  const Quantisation& functions = quantisation(tensor.dtype);
  for_each_scaled_head(plane, tensor, range,
                       [&](std::byte* slot, const std::byte* element, float& scale) {
                         if (plane.scales.per_token)
                           scale = token_scale(functions.largest(element, plane.head_dim));
                         functions.quantise(element, slot, plane.head_dim, 1 / scale);
                       });
}

void read_scaled(const Plane& plane, const TensorView& tensor, const TokenRange& range) {
  const Quantisation& functions = quantisation(tensor.dtype);
  for_each_scaled_head(plane, tensor, range,
                       [&](const std::byte* slot, std::byte* element, float scale) {
                         functions.dequantise(slot, element, plane.head_dim, scale);
                       });
}

// Calls body(range) for parts of the ranges, each thread with its share of the tokens.
template <class Body>
void for_each_part(std::span<const TokenRange> ranges, std::int64_t token_bytes, int num_threads,
                   const Body& body) {
  std::int64_t total = 0;
  for (const TokenRange& range : ranges) total += range.count;
  const int most = copy_threads(total * token_bytes, num_threads);
#pragma omp parallel num_threads(most) if (most > 1)
  {
    const std::int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const std::int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    std::int64_t before = 0;  // tokens of the ranges in front
    for (const TokenRange& range : ranges) {
      const std::int64_t first = std::clamp<std::int64_t>(begin - before, 0, range.count);
      const std::int64_t last = std::clamp<std::int64_t>(end - before, 0, range.count);
      if (first < last) {
        body({range.pages, range.first + first, last - first, range.row + first});
      }
      before += range.count;
    }
  }
}

}  // namespace

void copy_pages_cpu(std::span<const Plane> planes, std::span<const PageCopy> copies) {
  std::int64_t bytes = 0;
  for (const Plane& plane : planes) bytes += row_bytes(plane) * plane.page_size * plane.num_heads;
  const int num_threads = copy_threads(bytes * static_cast<std::int64_t>(copies.size()), 0);
  // Copies follow one another, and keys and values of a layer may share memory: a layer is one
  // thread's.
  const auto num_layers = static_cast<std::int64_t>(planes.size() / 2);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (const PageCopy& copy : copies) {
      if (copy.source == copy.target) continue;
      for (const Plane& plane : planes.subspan(2 * static_cast<std::size_t>(layer), 2)) {
        with_scales(plane, [copy](const Plane& part) { copy_page(part, copy); });
      }
    }
  }
}

void move_tokens_cpu(std::span<const Plane> planes, std::span<const TokenMove> moves) {
  std::int64_t bytes = 0;
  for (const Plane& plane : planes) bytes += row_bytes(plane) * plane.num_heads;
  const int num_threads = copy_threads(bytes * static_cast<std::int64_t>(moves.size()), 0);
  // As for pages. Of a move keys and values go together: were they the same memory, a second round
  // of moves would not find what the first one did.
  const auto num_layers = static_cast<std::int64_t>(planes.size() / 2);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (const TokenMove& move : moves) {
      if (move.source_page == move.target_page && move.source_slot == move.target_slot) continue;
      for (const Plane& plane : planes.subspan(2 * static_cast<std::size_t>(layer), 2)) {
        with_scales(plane, [&move](const Plane& part) { move_token(part, move); });
      }
    }
  }
}

// One plane after the other: where keys and values share memory, values are written second.
void write_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                      std::span<const TokenRange> ranges, int num_threads) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const std::int64_t token_bytes = row_bytes(planes[i]) * planes[i].num_heads;
    if (planes[i].scales.data != nullptr) {
      for_each_part(ranges, token_bytes * size_of(tensors[i].dtype), num_threads,
                    [&](const TokenRange& part) { write_scaled(planes[i], tensors[i], part); });
      continue;
    }
    const Conversion convert = conversion(tensors[i].dtype, planes[i].dtype);
    const auto write = [convert](std::byte* slot, std::byte* element, std::int64_t count) {
      convert(element, slot, count);
    };
    for_each_part(ranges, token_bytes, num_threads, [&](const TokenRange& part) {
      for_each_run(planes[i], tensors[i], part, write);
    });
  }
}

void read_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     std::span<const TokenRange> ranges) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const std::int64_t token_bytes = row_bytes(planes[i]) * planes[i].num_heads;
    if (planes[i].scales.data != nullptr) {
      for_each_part(ranges, token_bytes * size_of(tensors[i].dtype), /*num_threads=*/0,
                    [&](const TokenRange& part) { read_scaled(planes[i], tensors[i], part); });
      continue;
    }
    const Conversion convert = conversion(planes[i].dtype, tensors[i].dtype);
    const auto read = [convert](std::byte* slot, std::byte* element, std::int64_t count) {
      convert(slot, element, count);
    };
    for_each_part(ranges, token_bytes, /*num_threads=*/0,
                  [&](const TokenRange& part) { for_each_run(planes[i], tensors[i], part, read); });
  }
}

}  // namespace seqattn
