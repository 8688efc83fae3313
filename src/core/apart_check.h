#pragma once

#include <span>
#include <string_view>

#include "backend.h"
#include "seqattn/tensor_view.h"

// Which memory may not meet.
namespace seqattn {

struct NamedTensor {
  std::string_view name;
  const TensorView& tensor;
};

// Throws InvalidArgumentError when the output's byte range meets that of another tensor. Of the
// twins it may be the very one, element for element; meeting one otherwise would overwrite what is
// still to be read. "No tensor" meets nothing.
void check_apart(const NamedTensor& output, std::span<const NamedTensor> others,
                 std::span<const NamedTensor> twins = {});

// Throws InvalidArgumentError when the tensor's byte range meets a cache's: `planes` are the keys
// of layer 0, its values, the keys of layer 1, and so on. O(planes).
void check_apart_from_cache(const NamedTensor& tensor, std::span<const Plane> planes);

// Throws InvalidArgumentError when two layers share a byte. Layers may lie between one another,
// page by page or token by token, where their strides agree. Keys and values of one layer may share
// memory.
void check_layers_apart(std::span<const Plane> planes);

// Of planes with scales: throws InvalidArgumentError when those of tokens share a byte with the
// cache or one another, and when keys and values of a layer do, which have scales of their own.
void check_scales_apart(std::span<const Plane> planes);

}  // namespace seqattn
