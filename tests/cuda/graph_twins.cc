#include "graph_twins.h"

#include <array>
#include <limits>

namespace seqattn::testing {
namespace {

KVCacheConfig config_of(const TwinShape& shape, std::int64_t num_pages) {
  return {.num_pages = num_pages,
          .num_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .num_layers = kTwinLayers,
          .dtype = shape.is_float8 ? DType::kFloat8E4M3 : shape.dtype,
          .device = cuda(0),
          .kv_scaling = shape.is_float8 ? KVScaling::kPerToken : KVScaling::kFixed};
}

void fill(const Tensor& tensor, std::int64_t num_tokens, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> elements(static_cast<std::size_t>(tensor.view().num_elements()),
                               std::numeric_limits<double>::quiet_NaN());
  const std::int64_t per_token = tensor.view().strides[0];
  for (std::int64_t i = 0; i < num_tokens * per_token; ++i) {
    elements[static_cast<std::size_t>(i)] = normal(random);
  }
  Tensor writer = tensor;  // the same memory
  writer.write(elements);
}

}  // namespace

StepTensors::StepTensors(const TwinShape& shape, std::int64_t num_tokens) {
  for (int layer = 0; layer < kTwinLayers; ++layer) {
    const auto add = [&](std::vector<Tensor>& list, DType dtype, int heads) {
      list.emplace_back(cuda(0), dtype,
                        std::vector<std::int64_t>{num_tokens, heads, shape.head_dim});
    };
    add(keys, shape.dtype, shape.num_kv_heads);
    add(values, shape.dtype, shape.num_kv_heads);
    add(q, shape.dtype, shape.num_qo_heads);
    add(out, shape.dtype, shape.num_qo_heads);
    lse.emplace_back(cuda(0), DType::kFloat32,
                     std::vector<std::int64_t>{num_tokens, shape.num_qo_heads});
  }
}

void StepTensors::refill(std::int64_t num_tokens, std::mt19937_64& random) {
  for (std::size_t layer = 0; layer < keys.size(); ++layer) {
    for (const Tensor* tensor : {&keys[layer], &values[layer], &q[layer]}) {
      fill(*tensor, num_tokens, random);
    }
    fill_with_nan(out[layer].view());
    fill_with_nan(lse[layer].view());
  }
}

TensorView first_tokens(const TensorView& view, std::int64_t num_tokens) {
  TensorView part = view;
  part.shape[0] = num_tokens;
  return part;
}

Twin::Twin(const TwinShape& shape, std::int64_t num_pages, std::int64_t num_taken)
    : manager(config_of(shape, num_pages + num_taken)), sequences(manager) {
  manager.allocate(num_taken);
}

void Twin::start(SeqId id, const Tensor& keys, const Tensor& values, const OwnStream& stream) {
  const std::int64_t num_tokens = keys.view().shape[0];
  sequences.allocate({id}, {num_tokens});
  const auto packed = sequences.pack_for_flashinfer({id});
  const std::array indptr{0, static_cast<std::int32_t>(num_tokens)};
  for (int layer = 0; layer < kTwinLayers; ++layer) {
    manager.append_kv(keys.view(), values.view(), packed, indptr, layer, stream.get());
  }
}

}  // namespace seqattn::testing
