#include "apart_check.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "message.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

bool is_same(const TensorView& a, const TensorView& b) noexcept {
  if (a.data != b.data || a.dtype != b.dtype || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// A plane as rows of bytes along up to three axes, the widest stride first.
struct Lattice {
  struct Axis {
    std::int64_t stride = 0;
    std::int64_t size = 1;
  };
  std::array<Axis, 3> axes = {};
  std::int64_t row_bytes = 0;

  explicit Lattice(const Plane& plane) : row_bytes(plane.head_dim * size_of(plane.dtype)) {
    axes = {Axis{plane.page_stride, plane.num_pages}, Axis{plane.token_stride, plane.page_size},
            Axis{plane.head_stride, plane.num_heads}};
    for (Axis& axis : axes) {
      if (axis.size == 1) axis.stride = 0;
    }
    std::sort(axes.begin(), axes.end(),
              [](const Axis& a, const Axis& b) { return a.stride > b.stride; });
  }
  // From the first byte of what lies below `axis` to behind the last.
  std::int64_t extent(std::size_t axis) const noexcept {
    std::int64_t bytes = row_bytes;
    for (; axis < axes.size(); ++axis) bytes += axes[axis].stride * (axes[axis].size - 1);
    return bytes;
  }
};

// Whether what lies from `axis` on in `a` meets the same in `b`, which begins `offset` bytes later.
// Lattices of different strides are told apart by their ends only.
bool meet(const Lattice& a, const Lattice& b, std::int64_t offset, std::size_t axis = 0) noexcept {
  if (offset >= a.extent(axis) || -offset >= b.extent(axis)) return false;
  if (axis == a.axes.size()) return true;
  const auto [stride, size] = a.axes[axis];
  if (b.axes[axis].stride != stride || b.axes[axis].size != size) return true;
  if (stride == 0) return meet(a, b, offset, axis + 1);
  // A stride clears what lies below it, so that only the nearest neighbours can meet.
  const std::int64_t nearest = -offset / stride;
  for (std::int64_t k = nearest - 1; k <= nearest + 1; ++k) {
    if (k > -size && k < size && meet(a, b, offset + k * stride, axis + 1)) return true;
  }
  return false;
}

bool meet(const Plane& a, const Plane& b) noexcept {
  if (a.num_pages == 0) return false;
  return meet(Lattice(a), Lattice(b), b.data - a.data);
}

const char* kind_of(std::size_t plane) noexcept { return plane % 2 == 0 ? "key" : "value"; }

}  // namespace

void check_apart(const NamedTensor& output, std::span<const NamedTensor> others,
                 std::span<const NamedTensor> twins) {
  const auto refuse = [&](const NamedTensor& other) {
    throw InvalidArgumentError(concat(output.name, ": shares memory with ", other.name,
                                      "; expected an output of its own",
                                      twins.empty() ? "" : ", or in place of an input"));
  };
  for (const NamedTensor& twin : twins) {
    if (ranges_meet(output.tensor, twin.tensor) && !is_same(output.tensor, twin.tensor)) {
      refuse(twin);
    }
  }
  for (const NamedTensor& other : others) {
    if (ranges_meet(output.tensor, other.tensor)) refuse(other);
  }
}

void check_apart_from_cache(const NamedTensor& tensor, std::span<const Plane> planes) {
  if (!tensor.tensor || tensor.tensor.num_elements() == 0) return;
  const ByteRange range = byte_range(tensor.tensor);
  const std::less<const std::byte*> before;
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const auto check = [&](const Plane& plane, const char* what) {
      if (!before(range.begin, plane.end()) || !before(plane.data, range.end)) return;
      throw InvalidArgumentError(concat(tensor.name, ": shares memory with the ", kind_of(i), what,
                                        " of layer ", i / 2,
                                        "; expected a tensor apart from the cache"));
    };
    if (planes[i].num_pages == 0) continue;
    check(planes[i], " cache");
    if (planes[i].scales.data != nullptr) check(planes[i].scale_plane(), " scales");
  }
}

void check_layers_apart(std::span<const Plane> planes) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    for (std::size_t other = 0; other < i / 2 * 2; ++other) {
      require(!meet(planes[other], planes[i]), kind_of(i), "s[", i / 2, "]: shares memory with ",
              kind_of(other), "s[", other / 2, "]; expected layers apart from one another");
    }
  }
}

void check_scales_apart(std::span<const Plane> planes) {
  for (std::size_t i = 0; i < planes.size(); ++i) {
    const std::size_t layer = i / 2;
    require(i % 2 == 0 || !meet(planes[i - 1], planes[i]), "values[", layer,
            "]: shares memory with keys[", layer,
            "]; expected values apart from the keys, since each have scales of their own");
    if (!planes[i].scales.per_token) continue;
    const Plane scales = planes[i].scale_plane();
    for (std::size_t other = 0; other < planes.size(); ++other) {
      require(!meet(planes[other], scales), kind_of(i), "_scales[", layer, "]: shares memory with ",
              kind_of(other), "s[", other / 2, "]; expected scales apart from the cache");
    }
    for (std::size_t other = 0; other < i; ++other) {
      require(!meet(planes[other].scale_plane(), scales), kind_of(i), "_scales[", layer,
              "]: shares memory with ", kind_of(other), "_scales[", other / 2,
              "]; expected scales of their own for each layer's keys and values");
    }
  }
}

}  // namespace seqattn
