#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "devices.h"
#include "element.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

namespace seqattn::testing {

// `value` as an element of that type holds it.
double rounded(DType dtype, double value);

using ref::decode;
using ref::encode;

// How the elements of a tensor lie in memory: strides in elements, from an offset on.
struct Layout {
  std::vector<std::int64_t> strides;  // empty: row-major without gaps
  std::int64_t offset = 0;
};

// A tensor on a device that shows its elements as doubles, in row-major order. All of its memory,
// gaps between elements included, is NaN at first.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Device device, DType dtype, std::vector<std::int64_t> shape, const Layout& layout = {});

  TensorView view() const { return view_; }
  TensorView read_only_view() const;
  void write(std::span<const double> values);
  std::vector<double> read() const;
  std::vector<std::byte> bytes() const;  // the whole memory, gaps included
  // Whether everything but the elements is as it was at first.
  bool gaps_are_untouched() const;

 private:
  // Calls visit(element number, byte offset in memory) for every element, in row-major order.
  template <class Visit>
  void for_each_element(Visit visit) const;

  DeviceMemory memory_{cpu(), 0};
  TensorView view_;
};

// Fills memory that a row-major view covers.
void fill_with_nan(const TensorView& view);

// Writes elements of mean 0 and deviation 1.
void fill_with_normals(Tensor& tensor, std::mt19937_64& random);

// Layouts of [tokens, heads, dim].
// Gaps after each head and each token, of some multiples of `unit` elements.
Layout with_gaps(std::int64_t heads, std::int64_t dim, std::int64_t unit = 1);
Layout heads_first(std::int64_t tokens, std::int64_t dim);  // [heads, tokens, dim] in memory

// Heads [first, first + count) of a tensor [tokens, heads, dim].
TensorView head_slice(const TensorView& tensor, std::int64_t first, std::int64_t count);

}  // namespace seqattn::testing
