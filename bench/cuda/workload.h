#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cases.h"
#include "device.h"
#include "kernels.h"
#include "peer.h"
#include "seqattn/seqattn.h"

namespace seqattn::bench {

// Sizes of FlashInfer's workspace that hold every case.
inline constexpr std::int64_t kPeerFloatBytes = std::int64_t{384} << 20;
inline constexpr std::int64_t kPeerIntBytes = std::int64_t{32} << 20;

// A case's data on the device: caches of several layers full of random numbers, one page table for
// all of them with pages in random order, queries, outputs. Run i uses layer i modulo the number of
// layers, and so on, so that runs in a row share nothing in the caches of the device.
class Workload {
 public:
  explicit Workload(const CaseSpec& spec);

  const CaseSpec& spec() const { return spec_; }
  int num_layers() const { return manager_->config().num_layers; }
  int layer_of(int run) const { return run % num_layers(); }
  // Runs after which everything has been used, and at least four.
  int num_runs() const;

  PagedKVCacheManager& manager() const { return *manager_; }
  const FlashInferPackedData& packed() const { return packed_; }
  const std::vector<std::int32_t>& q_indptr() const { return q_indptr_; }
  TensorView q(int run) const { return tokens(set_of(q_, run), spec_.num_qo_heads); }
  TensorView out(int run) const { return tokens(set_of(out_, run), spec_.num_qo_heads); }
  const Buffer& out_buffer(int run) const { return set_of(out_, run); }
  // New tokens, for cases of the append group.
  TensorView new_keys(int run) const { return tokens(set_of(new_keys_, run), spec_.num_kv_heads); }
  TensorView new_values(int run) const {
    return tokens(set_of(new_values_, run), spec_.num_kv_heads);
  }
  const Buffer& rows_of_tokens() const { return token_row_; }
  const Buffer& positions_of_tokens() const { return token_position_; }

  PagedCache cache(int run) const;
  std::int64_t num_pages() const { return static_cast<std::int64_t>(page_indices_.size()); }
  const PeerBatch& peer_batch() const { return peer_; }
  PeerTensors peer_tensors(int run) const;
  // The bytes of one layer's keys, and of its values.
  std::int64_t layer_bytes() const;

 private:
  static const Buffer& set_of(const std::vector<Buffer>& sets, int run) {
    return sets[static_cast<std::size_t>(run) % sets.size()];
  }
  TensorView tokens(const Buffer& buffer, int num_heads) const;
  void make_tables();
  void make_cache(int num_layers);
  void make_tensors();

  CaseSpec spec_;
  std::vector<std::int32_t> page_indices_, page_indptr_, last_page_len_, q_indptr_;
  std::int64_t pool_pages_ = 0;
  std::unique_ptr<PagedKVCacheManager> manager_;
  FlashInferPackedData packed_;
  std::vector<Buffer> q_, out_, new_keys_, new_values_;
  std::vector<Buffer> tables_;  // indices, indptr, last_page_len, q_indptr
  Buffer token_row_, token_position_;
  PeerBatch peer_;
};

}  // namespace seqattn::bench
