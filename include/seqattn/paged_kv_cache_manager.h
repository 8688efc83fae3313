#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "seqattn/export.h"
#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

namespace seqattn {

struct KVCacheConfig {
  std::int64_t num_pages = 0;  // pages of the pool; every layer has storage for each
  int page_size = 16;          // tokens a page, >= 1
  int num_heads = 0;           // KV heads
  int head_dim = 0;            // elements of a key
  int head_dim_v = 0;          // elements of a value; 0 = head_dim
  int num_layers = 1;          // layers that share one page table
  DType dtype = DType::kFloat16;
  Device device = cpu();
  KVLayout kv_layout = KVLayout::kNHD;
  KVScaling kv_scaling = KVScaling::kFixed;  // of kFloat8E4M3; others have no scales
};

class Backend;  // src/core/backend.h
struct Plane;

// A page pool and its storage: keys and values of `num_layers` layers, all under one page table.
//
// Cache of one layer: [num_pages, page_size, num_heads, head_dim] (NHD) or
// [num_pages, num_heads, page_size, head_dim] (HND); values likewise with head_dim_v. Own storage
// is one allocation for the keys and one for the values, with the layer as leading dimension, zero
// at first and untouched until written.
//
// A cache of kFloat8E4M3 holds what is appended divided by a scale, to nearest, ties to even; what
// is beyond 448 then saturates. Whatever reads it multiplies. Scales follow their tokens through
// copies, moves, save and restore. docs/formulas.md has both kinds.
//
// Threads: const members may run at the same time; mutators, `append_kv` among them, need the
// caller's lock.
class SEQATTN_EXPORT PagedKVCacheManager {
 public:
  // Throws InvalidArgumentError for a size below its minimum or a total of more than 2^62 bytes,
  // UnsupportedError for a device or dtype that this build cannot serve, OutOfMemoryError (or
  // BackendError, on a device) when the memory is not there.
  explicit PagedKVCacheManager(const KVCacheConfig& config);

  // A manager over the caller's tensors: one view a layer, shaped as above, with any page, token
  // and head strides that keep slots apart, innermost contiguous. Borrowed: never freed, never
  // cleared. `config.num_layers` must equal the number of views. Every page starts free: take those
  // that hold data with `allocate`. Keys and values of one layer may share memory (latent
  // attention: values are a part of the keys); whoever appends then gives the shared elements the
  // same content in both, since only a CPU writes keys first and values second. Throws
  // InvalidArgumentError naming the view and what was expected; layers that share memory are
  // refused (those that lie between one another need equal strides to be told apart). With
  // KVScaling::kPerToken the caller brings the scales, too: one float32 view a layer for the keys
  // and one for the values, shaped as the caches without their last dimension, of any strides. Keys
  // and values of 8 bits, which have scales of their own, may not share memory. With kFixed the
  // scales are 1, whatever the elements were divided by, until set_kv_scales.
  static std::unique_ptr<PagedKVCacheManager> from_tensors(
      std::span<const TensorView> keys, std::span<const TensorView> values,
      const KVCacheConfig& config, std::span<const TensorView> key_scales = {},
      std::span<const TensorView> value_scales = {});
  ~PagedKVCacheManager();
  PagedKVCacheManager(const PagedKVCacheManager&) = delete;  // descriptors and plans point at it
  PagedKVCacheManager& operator=(const PagedKVCacheManager&) = delete;

  const KVCacheConfig& config() const noexcept { return config_; }  // head_dim_v resolved
  PagePool& pool() noexcept { return pool_; }
  const PagePool& pool() const noexcept { return pool_; }

  // The pool's members, forwarded.
  std::vector<PageId> allocate(std::int64_t num_pages) { return pool_.allocate(num_pages); }
  void ref(PageIds pages) { pool_.ref(pages); }
  void unref(PageIds pages) { pool_.unref(pages); }
  void release_pages(PageIds pages) { pool_.release_pages(pages); }
  std::int64_t available_pages_count() const noexcept { return pool_.available_pages_count(); }
  std::int32_t ref_count(PageId page) const { return pool_.ref_count(page); }

  // Storage of one layer. Throws InvalidArgumentError for a layer outside [0, num_layers).
  TensorView key_cache(int layer = 0);
  TensorView value_cache(int layer = 0);

  // Scales of one layer of 8-bit elements, float32: [num_heads], read-only, with KVScaling::kFixed,
  // else shaped as the cache without its last dimension. Throws InvalidArgumentError where there
  // are none.
  TensorView key_scales(int layer = 0);
  TensorView value_scales(int layer = 0);

  // Sets the scales of one layer, which are 1 until then: {s} for all heads, or one a head. An
  // element x is stored as x / s; the greatest magnitude over 448 makes use of the whole range.
  // Throws InvalidArgumentError, having changed nothing, unless the cache has KVScaling::kFixed;
  // for another count, a scale beyond 1.18e-38 to 7.59e35 (it is normal, and 448 times it finite),
  // and while pages are in use, whose tokens were written under the scales before. On a device wait
  // for what is enqueued first.
  void set_kv_scales(ListView<float> key_scales, ListView<float> value_scales, int layer = 0);

  // Writes the last n_i = append_indptr[i + 1] - append_indptr[i] tokens of every row of `packed`,
  // which already counts them: token j of row i goes to slot kv_len_i - n_i + j.
  //   keys    [total_new_tokens, num_heads, head_dim], cache dtype or float32; for an 8-bit cache
  //           float32, float16 or bfloat16
  //   values  [total_new_tokens, num_heads, head_dim_v], likewise
  //   append_indptr  [batch_size + 1], from 0, never falling, ending at total_new_tokens
  // Throws InvalidArgumentError, having written nothing, for tensors of another shape, dtype,
  // stride or device, or inside the cache; n_i > kv_len_i; a page outside the pool; a page to be
  // written that is free, that another holder shares (count above 1), or that two rows would both
  // write. O(pages + bytes written). What the cache holds in fewer bits rounds to nearest,
  // ties to even.
  void append_kv(const TensorView& keys, const TensorView& values,
                 const FlashInferPackedData& packed, ListView<std::int32_t> append_indptr,
                 int layer = 0, Stream stream = {});

  // Reads tokens [first, first + count) of the sequence whose pages are listed into
  // keys [count, num_heads, head_dim] and values [count, num_heads, head_dim_v], of types as
  // append_kv takes them. Throws InvalidArgumentError for a range beyond the pages, an unknown
  // page, wrong tensors, or ones that meet each other or the cache.
  void read_kv(PageIds pages, std::int64_t first, std::int64_t count, const TensorView& keys,
               const TensorView& values, int layer = 0, Stream stream = {}) const;

  // Writes tokens [first, first + count) of the sequence whose pages are listed, from tensors as
  // read_kv gives them; what comes from elsewhere gets into pages this way, while `append_kv`
  // writes a batch's new tokens. Throws InvalidArgumentError, having written nothing, for a range
  // beyond the pages; a page to be written that is unknown, free, shared (count above 1) or listed
  // twice; wrong tensors or ones inside the cache. O(pages + bytes written).
  void write_kv(PageIds pages, std::int64_t first, std::int64_t count, const TensorView& keys,
                const TensorView& values, int layer = 0, Stream stream = {});

  // Copies pages in every layer, in order. Throws InvalidArgumentError, having copied nothing, for
  // an unknown or free page and a target that another holder shares (count above 1).
  void copy_pages(std::span<const PageCopy> copies, Stream stream = {});

  // Copies token slots in every layer, in order, so that a move reads what those before it wrote.
  // Throws as copy_pages does, but for sources, which may be free by now, and for a slot outside
  // [0, page_size).
  void move_tokens(std::span<const TokenMove> moves, Stream stream = {});

  // Waits until the work that was enqueued on the stream is done; on a CPU it is.
  void synchronize(Stream stream = {}) const;

  // Bytes of keys and values that one page takes, over all layers, scales of tokens included.
  std::int64_t bytes_per_page() const noexcept;

  // "PagedKVCacheManager(num_pages=1024, page_size=16, ..., available=1020)".
  std::string to_string() const;

 private:
  friend class BatchAttention;
  friend class GrowTransaction;
  friend class CompactTransaction;
  friend struct StoredTokens;  // src/core/sequence_state_records.h
  struct Borrowed {};
  PagedKVCacheManager(const KVCacheConfig& config, Borrowed);
  std::span<const Plane> layer_planes(
      int layer) const;  // {keys, values}; throws for an unknown layer
  // Throws InvalidArgumentError unless the pages exist and hold these tokens.
  void check_range(const char* call, PageIds pages, std::int64_t first, std::int64_t count) const;
  void enqueue_copies(std::span<const PageCopy> copies, Stream stream) const;
  void enqueue_moves(std::span<const TokenMove> moves, Stream stream) const;
  void* add_storage(std::int64_t bytes, std::string_view what);
  void add_fixed_scales();  // own storage, for the planes there are
  void add_token_scales();
  void borrow_token_scales(std::span<const TensorView> keys, std::span<const TensorView> values);
  TensorView scales_of(const char* call, int layer, std::int64_t plane) const;
  // Throws InvalidArgumentError unless these are the keys and values of that many new tokens.
  void check_new_tokens(const TensorView& keys, const TensorView& values, std::int64_t num_tokens,
                        int layer) const;

  KVCacheConfig config_;
  Backend& backend_;
  PagePool pool_;
  std::vector<std::shared_ptr<void>> storage_;  // own allocations; empty for from_tensors
  std::vector<Plane> planes_;  // keys of layer 0, values of layer 0, keys of layer 1, ...
};

}  // namespace seqattn
