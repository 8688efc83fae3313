#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "attention_plan.h"
#include "scale_bytes.h"
#include "seqattn/batch_attention.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

// What a device has to be able to do. Core validates every argument before it calls; an
// implementation may rely on shapes, dtypes, strides, ranges and liveness being right.
namespace seqattn {

// One tensor of one layer's storage: keys, or values. Strides are in bytes; a token of one head is
// `head_dim` contiguous elements. Copies, appends and reads walk planes and ask no more of them;
// scales that follow tokens go where their elements go.
struct Plane {
  std::byte* data = nullptr;
  DType dtype = DType::kFloat16;
  std::int64_t num_pages = 0;
  int page_size = 0;
  int num_heads = 0;
  int head_dim = 0;
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  // Of 8-bit elements: one float for each token and head, or for each head.
  struct Scales {
    float* data = nullptr;  // null: elements are what they are
    std::int64_t page_stride = 0, token_stride = 0, head_stride = 0;  // in floats
    bool per_token = false;
  } scales = {};

  std::byte* slot(PageId page, std::int64_t token, std::int64_t head) const noexcept {
    return data + page * page_stride + token * token_stride + head * head_stride;
  }
  float& scale(PageId page, std::int64_t token, std::int64_t head) const noexcept {
    return scales
        .data[page * scales.page_stride + token * scales.token_stride + head * scales.head_stride];
  }
  // The scales as a plane of their own, and the elements without them, for those who move bytes.
  // Where scales are of heads alone, every token of the former is the same one. REQUIRES scales.
  Plane scale_plane() const noexcept;
  Plane without_scales() const noexcept;
  // Behind the last slot. REQUIRES num_pages > 0.
  const std::byte* end() const noexcept {
    return slot(static_cast<PageId>(num_pages - 1), page_size - 1, num_heads - 1) +
           head_dim * size_of(dtype);
  }
};

inline Plane Plane::scale_plane() const noexcept {
  return {.data = reinterpret_cast<std::byte*>(scales.data),
          .dtype = DType::kFloat32,
          .num_pages = num_pages,
          .page_size = page_size,
          .num_heads = num_heads,
          .head_dim = 1,
          .page_stride = scales.page_stride * kScaleBytes,
          .token_stride = scales.token_stride * kScaleBytes,
          .head_stride = scales.head_stride * kScaleBytes};
}

inline Plane Plane::without_scales() const noexcept {
  Plane plane = *this;
  plane.scales = {};
  return plane;
}

// Tokens [first, first + count) of the sequence with these pages <-> rows [row, row + count) of a
// tensor.
struct TokenRange {
  const PageId* pages = nullptr;
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t row = 0;
};

// One configured attention: made once, planned each step, run for each layer.
class AttentionKernel {
 public:
  virtual ~AttentionKernel();
  virtual std::string_view name() const noexcept = 0;
  // Takes the batch for the appends and runs to come; the reference stays good until the next plan.
  // When it throws, the batch before stays planned; after a BackendError there may be none.
  virtual void plan(const AttentionPlan& plan, Stream stream) = 0;
  // Whether plan_sequences may ever take a batch.
  virtual bool keeps_tables() const noexcept { return false; }
  // The same as plan for rows without masks, at a cost that does not grow with their pages; false,
  // with nothing changed, for a batch that has to be packed.
  virtual bool plan_sequences(const SequenceBatch&, Stream) { return false; }
  // Whether a captured graph holds an append, which will write the tokens of every later plan
  // without a call of `append`.
  virtual bool replays_appends() const noexcept { return false; }
  // Backend::write_tokens for the last q_len tokens of every planned row, which `ranges` lists.
  virtual void append(std::span<const Plane> planes, std::span<const TensorView> tensors,
                      std::span<const TokenRange> ranges, Stream stream) const = 0;
  virtual void run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
                   const TensorView& lse, const TensorView& sink_logits, Stream stream) const = 0;
};

class Backend {
 public:
  virtual ~Backend();
  // Throws UnsupportedError, naming what there is, for a device index or dtype it cannot serve.
  virtual void check_supported(const KVCacheConfig& config) const = 0;
  // Zero bytes, without touching them where the device allows; aligned to 64. Throws std::bad_alloc
  // or BackendError.
  virtual std::shared_ptr<void> allocate(std::int64_t bytes, Device device) = 0;
  virtual void copy_pages(std::span<const Plane> planes, std::span<const PageCopy> copies,
                          Stream stream) = 0;
  // Token slots, in order: what a move reads may have been written by one before. `planes` are the
  // keys and values of each layer, which may share memory.
  virtual void move_tokens(std::span<const Plane> planes, std::span<const TokenMove> moves,
                           Stream stream) = 0;
  // planes[i] <- tensors[i] and tensors[i] <- planes[i]; tensors are [rows, num_heads, head_dim],
  // plane dtype or float32. Elements with scales are divided by them, which are first made where
  // they follow tokens, or multiplied: the tensor is float16, bfloat16 or float32.
  virtual void write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                            std::span<const TokenRange> ranges, Stream stream) = 0;
  virtual void read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                           std::span<const TokenRange> ranges, Stream stream) = 0;
  // Throws UnsupportedError, naming what there is, for a shape without a kernel.
  virtual std::unique_ptr<AttentionKernel> make_attention(const AttentionShape& shape,
                                                          const PlanCapacity& capacity) = 0;
  virtual void merge_states(const TensorView& out_a, const TensorView& lse_a,
                            const TensorView& out_b, const TensorView& lse_b, const TensorView& out,
                            const TensorView& lse, Stream stream) = 0;
  // Copies bytes between host memory and the device's, in either direction, behind the stream's
  // work; done when it returns.
  virtual void copy_bytes(void* to, const void* from, std::int64_t bytes, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;
};

// The backend of a device. Defined in src/backends.cc, which knows what this build holds.
// Throws UnsupportedError, naming the devices there are.
Backend& find_backend(Device device);

}  // namespace seqattn
