#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cases.h"
#include "ceilings.h"
#include "seqattn/seqattn.h"

// The tensors of a case, and seqattn's side of it.
namespace seqattn::bench {

// Bytes at an address that is a multiple of a page of memory.
class Bytes {
 public:
  explicit Bytes(std::size_t size);
  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_;
};

// Random inputs of one layer: keys and values [batch, kv_len, num_kv_heads, head_dim] in the
// case's type, queries [batch, q_len, num_qo_heads, head_dim] as floats.
struct Inputs {
  Inputs(const CpuCase& spec, std::mt19937_64& random);
  Inputs(Bytes k, Bytes v, std::vector<float> q)
      : keys(std::move(k)), values(std::move(v)), queries(std::move(q)) {}
  Bytes keys, values;
  std::vector<float> queries;
};

// The same of float16, from inputs of bfloat16.
Inputs to_half(const Inputs& inputs);

// So many layers that a run never finds in a cache what an earlier one has read: at least 512 MiB.
int num_layers(const CpuCase& spec);

// The largest distance of `out`, [batch, q_len, num_qo_heads, head_dim], from the oracle in double,
// at the first, the middle and the last query of the first and the last sequence.
double largest_error(const CpuCase& spec, const Inputs& inputs, const std::vector<float>& out);

// A paged cache in which every layer holds the inputs, its pages in random order.
class SeqattnSide {
 public:
  SeqattnSide(const CpuCase& spec, const Inputs& inputs, std::mt19937_64& random);

  // For so many threads; has to come before the rest.
  void use_threads(int num_threads);
  // Whether this machine has products of bfloat16 for this case.
  bool has_bfloat16_products() const;
  // `rounded`: by products of bfloat16.
  void run(int layer, std::vector<float>& out, bool rounded = false) const;

  // The bytes that a run has to read, in their order in memory or as the page table has them.
  Reader plain_reader(int layer, int num_threads) const;
  Reader gather_reader(int layer, int num_threads) const;

 private:
  CpuCase spec_;
  const Inputs& inputs_;
  std::vector<Bytes> keys_, values_;  // by layer
  std::vector<PageId> pages_;
  FlashInferPackedData packed_;
  std::unique_ptr<PagedKVCacheManager> manager_;
  std::unique_ptr<BatchAttention> attention_, rounded_attention_;
};

}  // namespace seqattn::bench
