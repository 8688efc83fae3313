#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "host_tensor.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"

namespace seqattn::testing {

// A cache for the tests of saved sequences: what the sequences hold, as bytes or as floats.
class SavedCache {
 public:
  explicit SavedCache(const KVCacheConfig& config) : manager(config), descriptor(manager) {}

  // A new sequence whose tokens have random bits, NaN and infinities among them.
  void add(std::mt19937_64& random, SeqId seq_id, std::int64_t num_tokens) {
    descriptor.allocate({seq_id}, {num_tokens});
    for (int layer = 0; layer < manager.config().num_layers; ++layer) {
      const HostTensor keys = tensor(manager.config().head_dim, num_tokens);
      const HostTensor values = tensor(manager.config().head_dim_v, num_tokens);
      randomise(random, keys);
      randomise(random, values);
      manager.write_kv(descriptor.pages(seq_id), 0, num_tokens, keys.view(), values.view(), layer);
    }
  }

  // Keys and values of all layers in the given dtype, one after the other.
  std::vector<HostTensor> tokens(SeqId seq_id, DType dtype) const {
    std::vector<HostTensor> all;
    const std::int64_t count = descriptor.num_kv_tokens(seq_id);
    const KVCacheConfig& config = manager.config();
    for (int layer = 0; layer < config.num_layers; ++layer) {
      all.emplace_back(dtype, std::vector<std::int64_t>{count, config.num_heads, config.head_dim});
      all.emplace_back(dtype,
                       std::vector<std::int64_t>{count, config.num_heads, config.head_dim_v});
      manager.read_kv(descriptor.pages(seq_id), 0, count, all[all.size() - 2].view(),
                      all.back().view(), layer);
    }
    return all;
  }

  // The same in the cache's own dtype, as bytes.
  std::vector<std::byte> bits(SeqId seq_id) const {
    std::vector<std::byte> all;
    for (const HostTensor& part : tokens(seq_id, manager.config().dtype)) {
      const auto bytes = bytes_of(part.view());
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  PagedKVCacheManager manager;
  CacheDescriptor descriptor;

 private:
  HostTensor tensor(int head_dim, std::int64_t num_tokens) const {
    return {manager.config().dtype, {num_tokens, manager.config().num_heads, head_dim}};
  }
  static void randomise(std::mt19937_64& random, const HostTensor& tensor) {
    auto* const bytes = static_cast<std::byte*>(tensor.view().data);
    const auto count = static_cast<std::size_t>(tensor.size() * size_of(tensor.view().dtype));
    for (std::size_t i = 0; i < count; i += 8) {
      const std::uint64_t bits = random();
      std::memcpy(bytes + i, &bits, std::min<std::size_t>(8, count - i));
    }
  }
};

}  // namespace seqattn::testing
