#include "seqattn/paged_kv_cache_manager.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "apart_check.h"
#include "append_batch.h"
#include "backend.h"
#include "layout_axes.h"
#include "message.h"
#include "packed_check.h"
#include "scale_bytes.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMaxBytes = std::int64_t{1} << 62;

// Bytes of one layer's keys (or values), all pages, with head_dim as given; above kMaxBytes when
// they are too many.
std::int64_t layer_bytes(const KVCacheConfig& config, std::int64_t head_dim) noexcept {
  std::int64_t bytes = size_of(config.dtype);
  for (const std::int64_t factor : {config.num_pages, std::int64_t{config.page_size},
                                    std::int64_t{config.num_heads}, head_dim}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) return kMaxBytes + 1;
  }
  return bytes;
}

KVCacheConfig checked(KVCacheConfig config) {
  if (config.head_dim_v == 0) config.head_dim_v = config.head_dim;
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    require(value >= least, name, ": got ", value, "; expected at least ", least);
  };
  at_least("num_pages", config.num_pages, 0);
  at_least("page_size", config.page_size, 1);
  at_least("num_heads", config.num_heads, 1);
  at_least("head_dim", config.head_dim, 1);
  at_least("head_dim_v", config.head_dim_v, 1);
  at_least("num_layers", config.num_layers, 1);
  require(config.kv_scaling == KVScaling::kFixed || has_scales(config.dtype), "kv_scaling: got '",
          to_string(config.kv_scaling), "' for ", to_string(config.dtype),
          "; expected 'fixed': float8_e4m3fn alone has scales");
  const std::int64_t most = kMaxBytes / config.num_layers;
  KVCacheConfig with_pages = config;  // a page has to fit even where there are none
  with_pages.num_pages = std::max<std::int64_t>(config.num_pages, 1);
  // Of a token and head, in elements of one byte.
  const std::int64_t scale = config.kv_scaling == KVScaling::kPerToken ? kScaleBytes : 0;
  const std::int64_t key_bytes = layer_bytes(with_pages, config.head_dim + scale);
  const std::int64_t value_bytes = layer_bytes(with_pages, config.head_dim_v + scale);
  require(key_bytes <= most && value_bytes <= most - key_bytes, "cache: ", config.num_layers,
          " layers of ", config.num_pages, " pages, ", config.page_size, " tokens, ",
          config.num_heads, " heads of ", config.head_dim, " and ", config.head_dim_v,
          " elements take more than 2^62 bytes; expected fewer pages");
  return config;
}

// Shape of one layer's keys or values.
std::array<std::int64_t, 4> cache_shape(const KVCacheConfig& config, int head_dim) noexcept {
  const auto [pages, outer, inner] = slots_shape(config);
  return {pages, outer, inner, head_dim};
}

Plane make_plane(const TensorView& cache, KVLayout layout) noexcept {
  const auto [token_axis, head_axis] = axes_of(layout);
  const auto stride = [&](int axis) { return cache.strides[axis] * size_of(cache.dtype); };
  return {.data = static_cast<std::byte*>(cache.data),
          .dtype = cache.dtype,
          .num_pages = cache.shape[0],
          .page_size = static_cast<int>(cache.shape[token_axis]),
          .num_heads = static_cast<int>(cache.shape[head_axis]),
          .head_dim = static_cast<int>(cache.shape[3]),
          .page_stride = stride(0),
          .token_stride = stride(token_axis),
          .head_stride = stride(head_axis)};
}

TensorView view_of(const Plane& plane, const KVCacheConfig& config) {
  TensorView view = TensorView::contiguous(static_cast<void*>(plane.data), plane.dtype,
                                           cache_shape(config, plane.head_dim), config.device);
  const auto [token_axis, head_axis] = axes_of(config.kv_layout);
  view.strides[0] = plane.page_stride / size_of(plane.dtype);
  view.strides[token_axis] = plane.token_stride / size_of(plane.dtype);
  view.strides[head_axis] = plane.head_stride / size_of(plane.dtype);
  return view;
}

// The keys (or values) of an append or a read.
void check_tokens(std::string_view name, const TensorView& tensor, std::int64_t num_tokens,
                  const Plane& plane, Device device, bool output) {
  const std::array<std::int64_t, 3> shape{num_tokens, plane.num_heads, plane.head_dim};
  check_tensor(tensor, {.name = name,
                        .shape = shape,
                        .dtype = unscaled(plane.dtype),
                        .or_float32 = true,
                        .device = device,
                        .output = output});
}

// Throws InvalidArgumentError unless the page is in use, by one holder only, and that no cache.
void check_target(const char* call, const PagePool& pool, PageId page) {
  const std::int32_t count = pool.ref_count(page);
  require(count > 0, call, ": page ", page, " is free; expected a page in use");
  require(count == 1, call, ": page ", page, " has ", count,
          " references; expected 1: a shared page is never written");
  require(!pool.is_cached(page), call, ": page ", page,
          " is in a prefix cache; expected one that a sequence or the caller holds: a cached page "
          "is never written");
}

}  // namespace

PagedKVCacheManager::PagedKVCacheManager(const KVCacheConfig& config, Borrowed)
    : config_(checked(config)),
      backend_(find_backend(config_.device)),
      pool_(config_.num_pages, config_.page_size) {
  backend_.check_supported(config_);
}

PagedKVCacheManager::PagedKVCacheManager(const KVCacheConfig& config)
    : PagedKVCacheManager(config, Borrowed{}) {
  const std::array head_dims{config_.head_dim, config_.head_dim_v};
  for (const int head_dim : head_dims) {
    add_storage(layer_bytes(config_, head_dim) * config_.num_layers,
                storage_.empty() ? "keys" : "values");
  }
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    for (std::size_t i = 0; i < head_dims.size(); ++i) {
      auto* const data =
          static_cast<std::byte*>(storage_[i].get()) + layer * layer_bytes(config_, head_dims[i]);
      const auto cache = TensorView::contiguous(static_cast<void*>(data), config_.dtype,
                                                cache_shape(config_, head_dims[i]), config_.device);
      planes_.push_back(make_plane(cache, config_.kv_layout));
    }
  }
  if (!has_scales(config_.dtype)) return;
  if (config_.kv_scaling == KVScaling::kPerToken) {
    add_token_scales();
  } else {
    add_fixed_scales();
  }
}

void* PagedKVCacheManager::add_storage(std::int64_t bytes, std::string_view what) {
  try {
    storage_.push_back(backend_.allocate(bytes, config_.device));
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(
        concat("cache: no memory for the ", bytes, " bytes of the ", what, " of ",
               config_.num_layers, " layers and ", config_.num_pages,
               " pages; expected a size that fits: use fewer pages (num_pages)"));
  }
  return storage_.back().get();
}

std::unique_ptr<PagedKVCacheManager> PagedKVCacheManager::from_tensors(
    std::span<const TensorView> keys, std::span<const TensorView> values,
    const KVCacheConfig& config, std::span<const TensorView> key_scales,
    std::span<const TensorView> value_scales) {
  std::unique_ptr<PagedKVCacheManager> manager(new PagedKVCacheManager(config, Borrowed{}));
  const KVCacheConfig& resolved = manager->config_;
  const auto num_layers = static_cast<std::size_t>(resolved.num_layers);
  require(keys.size() == num_layers && values.size() == num_layers, "from_tensors: got ",
          keys.size(), " key and ", values.size(), " value tensors; expected num_layers, ",
          num_layers, ", of each");
  const auto add = [&](const char* name, std::size_t layer, const TensorView& cache, int head_dim) {
    check_tensor(cache, {.name = concat(name, "[", layer, "]"),
                         .shape = cache_shape(resolved, head_dim),
                         .dtype = resolved.dtype,
                         .device = resolved.device,
                         .output = true});
    manager->planes_.push_back(make_plane(cache, resolved.kv_layout));
  };
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    add("keys", layer, keys[layer], resolved.head_dim);
    add("values", layer, values[layer], resolved.head_dim_v);
  }
  check_layers_apart(manager->planes_);
  manager->borrow_token_scales(key_scales, value_scales);
  if (!has_scales(resolved.dtype)) return manager;
  check_scales_apart(manager->planes_);
  if (resolved.kv_scaling == KVScaling::kFixed) manager->add_fixed_scales();
  return manager;
}

PagedKVCacheManager::~PagedKVCacheManager() = default;

TensorView PagedKVCacheManager::key_cache(int layer) {
  return view_of(layer_planes(layer)[0], config_);
}

TensorView PagedKVCacheManager::value_cache(int layer) {
  return view_of(layer_planes(layer)[1], config_);
}

std::span<const Plane> PagedKVCacheManager::layer_planes(int layer) const {
  require(layer >= 0 && layer < config_.num_layers, "layer: got ", layer,
          "; expected 0 <= layer < ", config_.num_layers);
  return std::span(planes_).subspan(2 * static_cast<std::size_t>(layer), 2);
}

void PagedKVCacheManager::append_kv(const TensorView& keys, const TensorView& values,
                                    const FlashInferPackedData& packed,
                                    ListView<std::int32_t> append_indptr, int layer,
                                    Stream stream) {
  check_packed(pool_, packed);
  check_indptr("append_indptr", append_indptr, packed.batch_size() + 1, -1);
  std::vector<AppendRow> rows(static_cast<std::size_t>(packed.batch_size()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {.page_begin = packed.kv_page_indptr()[i],
               .kv_len = packed.kv_len(static_cast<std::int64_t>(i), config_.page_size),
               .num_new = append_indptr[i + 1] - append_indptr[i]};
  }
  const AppendBatch batch{
      .page_indices = packed.kv_page_indices(), .rows = rows, .foreign = packed.pool_id() == 0};
  check_new_tokens(keys, values, num_new_tokens(batch), layer);
  const auto ranges = plan_append(pool_, batch);
  if (ranges.empty()) return;
  backend_.write_tokens(layer_planes(layer), std::array{keys, values}, ranges, stream);
}

void PagedKVCacheManager::check_new_tokens(const TensorView& keys, const TensorView& values,
                                           std::int64_t num_tokens, int layer) const {
  const auto planes = layer_planes(layer);
  check_tokens("keys", keys, num_tokens, planes[0], config_.device, /*output=*/false);
  check_tokens("values", values, num_tokens, planes[1], config_.device, /*output=*/false);
  check_apart_from_cache({"keys", keys}, planes_);
  check_apart_from_cache({"values", values}, planes_);
}

void PagedKVCacheManager::check_range(const char* call, PageIds pages, std::int64_t first,
                                      std::int64_t count) const {
  const std::int64_t held = static_cast<std::int64_t>(pages.size()) * config_.page_size;
  require(first >= 0 && first <= held && count >= 0 && count <= held - first, call, ": got first ",
          first, " and count ", count, "; expected a part of the ", held, " tokens of ",
          pages.size(), " pages");
  for (const PageId page : pages) pool_.ref_count(page);
}

void PagedKVCacheManager::read_kv(PageIds pages, std::int64_t first, std::int64_t count,
                                  const TensorView& keys, const TensorView& values, int layer,
                                  Stream stream) const {
  const auto planes = layer_planes(layer);
  check_range("read_kv", pages, first, count);
  check_tokens("keys", keys, count, planes[0], config_.device, /*output=*/true);
  check_tokens("values", values, count, planes[1], config_.device, /*output=*/true);
  check_apart({"keys", keys}, std::array{NamedTensor{"values", values}});
  check_apart_from_cache({"keys", keys}, planes_);
  check_apart_from_cache({"values", values}, planes_);
  const TokenRange range{.pages = pages.data(), .first = first, .count = count, .row = 0};
  if (count > 0) {
    backend_.read_tokens(planes, std::array{keys, values}, std::span(&range, 1), stream);
  }
}

void PagedKVCacheManager::write_kv(PageIds pages, std::int64_t first, std::int64_t count,
                                   const TensorView& keys, const TensorView& values, int layer,
                                   Stream stream) {
  check_range("write_kv", pages, first, count);
  check_new_tokens(keys, values, count, layer);
  const AppendRow row{.page_begin = 0, .kv_len = first + count, .num_new = count};
  const auto ranges = plan_append(
      pool_,
      {.page_indices = {pages.data(), pages.size()}, .rows = std::span(&row, 1), .foreign = false});
  if (ranges.empty()) return;
  backend_.write_tokens(layer_planes(layer), std::array{keys, values}, ranges, stream);
}

void PagedKVCacheManager::copy_pages(std::span<const PageCopy> copies, Stream stream) {
  for (const PageCopy& copy : copies) {
    require(pool_.ref_count(copy.source) > 0, "copy_pages: page ", copy.source,
            " is free; expected a page in use");
    check_target("copy_pages", pool_, copy.target);
  }
  enqueue_copies(copies, stream);
}

void PagedKVCacheManager::enqueue_copies(std::span<const PageCopy> copies, Stream stream) const {
  if (!copies.empty()) backend_.copy_pages(planes_, copies, stream);
}

void PagedKVCacheManager::move_tokens(std::span<const TokenMove> moves, Stream stream) {
  for (const TokenMove& move : moves) {
    pool_.ref_count(move.source_page);  // which the call that moves tokens may have freed
    check_target("move_tokens", pool_, move.target_page);
    for (const int slot : {move.source_slot, move.target_slot}) {
      require(slot >= 0 && slot < config_.page_size, "move_tokens: got slot ", slot,
              "; expected 0 <= slot < ", config_.page_size, ", the page size");
    }
  }
  enqueue_moves(moves, stream);
}

void PagedKVCacheManager::enqueue_moves(std::span<const TokenMove> moves, Stream stream) const {
  if (!moves.empty()) backend_.move_tokens(planes_, moves, stream);
}

void PagedKVCacheManager::synchronize(Stream stream) const { backend_.synchronize(stream); }

std::int64_t PagedKVCacheManager::bytes_per_page() const noexcept {
  const std::int64_t slots = std::int64_t{config_.page_size} * config_.num_heads;
  const std::int64_t elements = std::int64_t{config_.head_dim} + config_.head_dim_v;
  const std::int64_t of_scales = config_.kv_scaling == KVScaling::kPerToken ? 2 * kScaleBytes : 0;
  return slots * (elements * size_of(config_.dtype) + of_scales) * config_.num_layers;
}

std::string PagedKVCacheManager::to_string() const {
  return concat("PagedKVCacheManager(num_pages=", config_.num_pages,
                ", page_size=", config_.page_size, ", num_heads=", config_.num_heads,
                ", head_dim=", config_.head_dim, ", head_dim_v=", config_.head_dim_v,
                ", num_layers=", config_.num_layers, ", dtype=", seqattn::to_string(config_.dtype),
                ", device=", seqattn::to_string(config_.device),
                ", kv_layout=", seqattn::to_string(config_.kv_layout),
                has_scales(config_.dtype) ? ", kv_scaling=" : "",
                has_scales(config_.dtype) ? seqattn::to_string(config_.kv_scaling) : "",
                ", available=", available_pages_count(), ")");
}

}  // namespace seqattn
