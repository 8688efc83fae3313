#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

namespace seqattn {

// Keys and values of a few tokens of one layer, in host memory and where the device can reach them:
// keys [n, num_heads, head_dim], right behind them values [n, num_heads, head_dim_v]. Where they
// are of 8 bits, their scales come first, [n, num_heads, 1] each. On a CPU both places are one.
class TokenBuffer {
 public:
  // Room for that many tokens, and for `host_extra` bytes behind them on the host. REQUIRES a cache
  // that these sizes are good for.
  TokenBuffer(const KVCacheConfig& config, DType dtype, std::int64_t most_tokens,
              std::size_t host_extra = 0);

  // Views of the first n tokens on the device.
  TensorView keys(std::int64_t n);
  TensorView values(std::int64_t n);
  TensorView key_scales(std::int64_t n);
  TensorView value_scales(std::int64_t n);
  // Their bytes on the host, and whatever lies behind.
  std::byte* host() noexcept { return host_.data(); }
  std::int64_t num_bytes(std::int64_t n) const noexcept {
    return n * (key_bytes_ + value_bytes_ + 2 * scale_bytes_);
  }

  // Between the two places, for the first n tokens, behind the stream's work; done on return.
  void to_host(std::int64_t n, Stream stream);
  void to_device(std::int64_t n, Stream stream);

 private:
  TensorView view(std::int64_t offset, DType dtype, std::int64_t n, int head_dim);

  KVCacheConfig config_;
  DType dtype_;
  std::int64_t key_bytes_;    // of a token
  std::int64_t value_bytes_;  // likewise
  std::int64_t scale_bytes_;  // of the keys, or the values, of a token
  std::vector<std::byte> host_;
  std::shared_ptr<void> device_;  // null on a CPU
};

}  // namespace seqattn
