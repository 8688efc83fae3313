#include "cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_set>
#include <vector>

#include "cuda_attention.h"
#include "cuda_check.h"
#include "device_memory.h"
#include "merge_kernels.h"
#include "message.h"
#include "page_kernels.h"
#include "seqattn/error.h"
#include "token_kernels.h"

namespace seqattn {
namespace {

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Copies made at the same time give what they give one after the other: no page is written twice,
// or read and written.
bool are_independent(std::span<const PageCopy> copies) {
  if (copies.size() < 2) return true;
  std::unordered_set<PageId> targets;
  for (const PageCopy& copy : copies) {
    if (!targets.insert(copy.target).second) return false;
  }
  return std::none_of(copies.begin(), copies.end(), [&](const PageCopy& copy) {
    return copy.source != copy.target && targets.contains(copy.source);
  });
}

// Whether moving tokens of `keys` moves those of `values` too (latent attention).
bool holds(const Plane& keys, const Plane& values) {
  const std::int64_t offset = values.data - keys.data;
  return offset >= 0 &&
         offset + values.head_dim * size_of(values.dtype) <= keys.head_dim * size_of(keys.dtype) &&
         keys.page_stride == values.page_stride && keys.token_stride == values.token_stride &&
         keys.head_stride == values.head_stride;
}

// The planes, and behind them the scales of those whose scales follow tokens.
std::vector<Plane> with_scale_planes(std::span<const Plane> planes) {
  std::vector<Plane> all(planes.begin(), planes.end());
  for (const Plane& plane : planes) {
    if (plane.scales.per_token) all.push_back(plane.scale_plane());
  }
  return all;
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device) : device_(device) {}

  void check_supported(const KVCacheConfig& config) const override;
  std::shared_ptr<void> allocate(std::int64_t bytes, Device device) override;
  void copy_pages(std::span<const Plane> planes, std::span<const PageCopy> copies,
                  Stream stream) override;
  void move_tokens(std::span<const Plane> planes, std::span<const TokenMove> moves,
                   Stream stream) override;
  void write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                    std::span<const TokenRange> ranges, Stream stream) override {
    exchange_tokens(planes, tensors, ranges, stream, launch_write_tokens);
  }
  void read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                   std::span<const TokenRange> ranges, Stream stream) override {
    exchange_tokens(planes, tensors, ranges, stream, launch_read_tokens);
  }
  std::unique_ptr<AttentionKernel> make_attention(const AttentionShape& shape,
                                                  const PlanCapacity& capacity) override {
    return make_cuda_attention(shape, capacity);
  }
  void merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                    const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                    Stream stream) override {
    const DeviceGuard guard(device_);
    launch_merge_states(out_a, lse_a, out_b, lse_b, out, lse, stream_of(stream));
  }
  void copy_bytes(void* to, const void* from, std::int64_t bytes, Stream stream) override {
    const DeviceGuard guard(device_);
    // Unified addressing: the pointers say which side is the host.
    SEQATTN_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault,
                                       stream_of(stream)));
    SEQATTN_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
  }
  void synchronize(Stream stream) override {
    const DeviceGuard guard(device_);
    SEQATTN_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
  }

 private:
  using Exchange = void (*)(std::span<const Plane>, std::span<const TensorView>, const TokenTable&,
                            cudaStream_t);
  void exchange_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                       std::span<const TokenRange> ranges, Stream stream, Exchange launch);

  // Fills a staging slot by `write(host)`, sends it to the device, and launches what reads it
  // there.
  template <class Write, class Launch>
  void with_upload(const char* call, std::size_t bytes, cudaStream_t stream, const Write& write,
                   const Launch& launch);

  int device_;
  Staging staging_{/*wants_device=*/true};
};

void CudaBackend::check_supported(const KVCacheConfig& config) const {
  if (config.dtype == DType::kFloat32) {
    throw UnsupportedError(
        concat("dtype ", to_string(config.dtype),
               " on a CUDA device; supported are float16, bfloat16 and float8_e4m3fn"));
  }
  for (const int head_dim : {config.head_dim, config.head_dim_v}) {
    if (head_dim % 8 == 0) continue;
    throw UnsupportedError(
        concat("head_dim ", head_dim, " on a CUDA device; supported are multiples of 8"));
  }
}

std::shared_ptr<void> CudaBackend::allocate(std::int64_t bytes, Device) {
  const DeviceGuard guard(device_);
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  void* memory = nullptr;
  SEQATTN_CUDA_CHECK(cudaMalloc(&memory, size));
  std::shared_ptr<void> owner(memory, [](void* p) { cudaFree(p); });
  // Finished before anybody's stream can write: streams do not wait for one another.
  SEQATTN_CUDA_CHECK(cudaMemset(memory, 0, size));
  SEQATTN_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  return owner;
}

template <class Write, class Launch>
void CudaBackend::with_upload(const char* call, std::size_t bytes, cudaStream_t stream,
                              const Write& write, const Launch& launch) {
  const DeviceGuard guard(device_);
  if (is_capturing(stream)) {
    throw UnsupportedError(concat(call,
                                  ": the stream is being captured; a replay would read tables "
                                  "of the past: use BatchAttention with a capacity"));
  }
  Staging::Slot* const slot = staging_.take(bytes);
  try {
    write(slot->host);
    SEQATTN_CUDA_CHECK(
        cudaMemcpyAsync(slot->device, slot->host, bytes, cudaMemcpyHostToDevice, stream));
    launch(slot->device);
  } catch (...) {
    staging_.release(slot, stream);  // some of it may be under way
    throw;
  }
  staging_.release(slot, stream);
}

void CudaBackend::exchange_tokens(std::span<const Plane> planes,
                                  std::span<const TensorView> tensors,
                                  std::span<const TokenRange> ranges, Stream stream,
                                  Exchange launch) {
  const std::int64_t page_size = planes[0].page_size;
  const auto pages_of = [page_size](const TokenRange& range) {
    const std::int64_t first = range.first / page_size;
    const std::int64_t last = (range.first + range.count - 1) / page_size;
    return std::span(range.pages + first, static_cast<std::size_t>(last - first + 1));
  };
  const std::size_t rows = ranges.size();
  std::size_t num_pages = 0;
  for (const TokenRange& range : ranges) num_pages += pages_of(range).size();

  // page_begin [rows], begin [rows], indptr [rows + 1], page_indices.
  const std::size_t ints = 3 * rows + 1 + num_pages;
  const auto write = [&](std::byte* host) {
    auto* const page_begin = reinterpret_cast<std::int32_t*>(host);
    std::int32_t *const begin = page_begin + rows, *const indptr = begin + rows;
    std::int32_t* page = indptr + rows + 1;
    std::int32_t* const pages = page;
    for (std::size_t i = 0; i < rows; ++i) {
      page_begin[i] = static_cast<std::int32_t>(page - pages);
      begin[i] = static_cast<std::int32_t>(ranges[i].first % page_size);
      indptr[i] = static_cast<std::int32_t>(ranges[i].row);
      const auto list = pages_of(ranges[i]);
      std::memcpy(page, list.data(), list.size_bytes());
      page += list.size();
    }
    indptr[rows] = static_cast<std::int32_t>(ranges[rows - 1].row + ranges[rows - 1].count);
  };
  with_upload("append or read", ints * sizeof(std::int32_t), stream_of(stream), write,
              [&](const std::byte* device) {
                const auto* const page_begin = reinterpret_cast<const std::int32_t*>(device);
                TokenTable table;
                table.page_begin = page_begin;
                table.begin = page_begin + rows;
                table.indptr = page_begin + 2 * rows;
                table.page_indices = page_begin + 3 * rows + 1;
                table.num_rows = static_cast<std::int32_t>(rows);
                table.num_tokens = ranges[rows - 1].row + ranges[rows - 1].count;
                launch(planes, tensors, table, stream_of(stream));
              });
}

void CudaBackend::copy_pages(std::span<const Plane> planes, std::span<const PageCopy> copies,
                             Stream stream) {
  const std::vector<Plane> all = with_scale_planes(planes);
  const std::size_t plane_bytes = all.size() * sizeof(Plane);
  const bool at_once = are_independent(copies);
  const auto write = [&](std::byte* host) {
    std::memcpy(host, all.data(), plane_bytes);
    std::memcpy(host + plane_bytes, copies.data(), copies.size_bytes());
  };
  with_upload("copy_pages", plane_bytes + copies.size_bytes(), stream_of(stream), write,
              [&](const std::byte* device) {
                const PageList list{
                    .planes = reinterpret_cast<const Plane*>(device),
                    .copies = reinterpret_cast<const PageCopy*>(device + plane_bytes),
                    .num_planes = static_cast<std::int64_t>(all.size()),
                    .num_copies = static_cast<std::int64_t>(copies.size()),
                    .at_once = at_once};
                launch_copy_pages(list, planes[0], stream_of(stream));
              });
}

void CudaBackend::move_tokens(std::span<const Plane> planes, std::span<const TokenMove> moves,
                              Stream stream) {
  std::vector<Plane> apart;
  for (std::size_t i = 0; i < planes.size(); ++i) {
    if (i % 2 == 0 || !holds(planes[i - 1], planes[i])) apart.push_back(planes[i]);
  }
  apart = with_scale_planes(apart);
  const std::size_t plane_bytes = apart.size() * sizeof(Plane);
  const auto write = [&](std::byte* host) {
    std::memcpy(host, apart.data(), plane_bytes);
    std::memcpy(host + plane_bytes, moves.data(), moves.size_bytes());
  };
  with_upload("move_tokens", plane_bytes + moves.size_bytes(), stream_of(stream), write,
              [&](const std::byte* device) {
                const MoveList list{
                    .planes = reinterpret_cast<const Plane*>(device),
                    .moves = reinterpret_cast<const TokenMove*>(device + plane_bytes),
                    .num_planes = static_cast<std::int64_t>(apart.size()),
                    .num_moves = static_cast<std::int64_t>(moves.size())};
                launch_move_tokens(list, apart, stream_of(stream));
              });
}

}  // namespace

Backend& cuda_backend(int device_index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status != cudaSuccess || device_index < 0 || device_index >= count) {
    throw UnsupportedError(concat(
        "device cuda:", device_index, ": there are ", status == cudaSuccess ? count : 0,
        " CUDA devices here",
        status == cudaSuccess ? std::string() : concat(" (", cudaGetErrorString(status), ")"),
        "; cpu is always there"));
  }
  // Never destroyed: the driver may be gone when statics are.
  static std::mutex mutex;
  static auto* const backends = new std::vector<std::unique_ptr<CudaBackend>>();
  const std::lock_guard lock(mutex);
  while (static_cast<int>(backends->size()) <= device_index) {
    backends->push_back(std::make_unique<CudaBackend>(static_cast<int>(backends->size())));
  }
  return *(*backends)[static_cast<std::size_t>(device_index)];
}

}  // namespace seqattn
