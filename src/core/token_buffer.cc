#include "token_buffer.h"

#include "scale_bytes.h"

namespace seqattn {

TokenBuffer::TokenBuffer(const KVCacheConfig& config, DType dtype, std::int64_t most_tokens,
                         std::size_t host_extra)
    : config_(config),
      dtype_(dtype),
      key_bytes_(std::int64_t{config.num_heads} * config.head_dim * size_of(dtype)),
      value_bytes_(std::int64_t{config.num_heads} * config.head_dim_v * size_of(dtype)),
      scale_bytes_(token_scale_bytes(dtype, config.num_heads)),
      host_(static_cast<std::size_t>(num_bytes(most_tokens)) + host_extra) {
  if (config.device.type == DeviceType::kCPU) return;
  device_ = find_backend(config.device).allocate(num_bytes(most_tokens), config.device);
}

TensorView TokenBuffer::view(std::int64_t offset, DType dtype, std::int64_t n, int head_dim) {
  auto* const begin = device_ ? static_cast<std::byte*>(device_.get()) : host_.data();
  return TensorView::contiguous(static_cast<void*>(begin + offset), dtype,
                                {n, config_.num_heads, head_dim}, config_.device);
}

TensorView TokenBuffer::key_scales(std::int64_t n) { return view(0, DType::kFloat32, n, 1); }
TensorView TokenBuffer::value_scales(std::int64_t n) {
  return view(n * scale_bytes_, DType::kFloat32, n, 1);
}
TensorView TokenBuffer::keys(std::int64_t n) {
  return view(2 * n * scale_bytes_, dtype_, n, config_.head_dim);
}
TensorView TokenBuffer::values(std::int64_t n) {
  return view(n * (2 * scale_bytes_ + key_bytes_), dtype_, n, config_.head_dim_v);
}

void TokenBuffer::to_host(std::int64_t n, Stream stream) {
  if (!device_) return;
  find_backend(config_.device).copy_bytes(host_.data(), device_.get(), num_bytes(n), stream);
}

void TokenBuffer::to_device(std::int64_t n, Stream stream) {
  if (!device_) return;
  find_backend(config_.device).copy_bytes(device_.get(), host_.data(), num_bytes(n), stream);
}

}  // namespace seqattn
