#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "gpu_support.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

namespace seqattn::testing {

inline constexpr int kTwinLayers = 2;

struct TwinShape {
  DType dtype = DType::kFloat16;
  int num_qo_heads = 8;
  int num_kv_heads = 2;
  int head_dim = 128;
  bool is_float8 = false;  // the cache, with scales of tokens
  AttentionOptions options() const { return {.num_qo_heads = num_qo_heads}; }
};

// The tensors of one step, for every layer, of a fixed number of tokens.
class StepTensors {
 public:
  StepTensors(const TwinShape& shape, std::int64_t num_tokens);
  // New random keys, values and queries for the first `num_tokens` tokens, NaN behind them, and
  // NaN in all outputs.
  void refill(std::int64_t num_tokens, std::mt19937_64& random);

  std::vector<Tensor> keys, values, q, out, lse;  // [layers]
};

// A view of the first tokens of a tensor.
TensorView first_tokens(const TensorView& view, std::int64_t num_tokens);

// One of two caches that go through the same steps, each with its own pages.
class Twin {
 public:
  // `num_taken` pages are never used, so that twins place sequences differently.
  Twin(const TwinShape& shape, std::int64_t num_pages, std::int64_t num_taken);
  // Starts a sequence whose tokens are the rows of `keys` and `values`, float32, in every layer.
  void start(SeqId id, const Tensor& keys, const Tensor& values, const OwnStream& stream);

  PagedKVCacheManager manager;
  CacheDescriptor sequences;
};

}  // namespace seqattn::testing
