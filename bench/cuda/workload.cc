#include "workload.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace seqattn::bench {
namespace {

constexpr int kPageSize = 16;
constexpr double kRotatedBytes = 1 << 30;
constexpr int kMostLayers = 256;
constexpr int kFewestRuns = 4;
constexpr int kSparePages = 16;

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageSize - 1) / kPageSize; }

// As many sets of so many bytes as fill the rotation.
int sets_of(double bytes, int most) {
  const double sets = kRotatedBytes / std::max(bytes, 1.0);
  return std::clamp(static_cast<int>(sets) + 1, 1, most);
}

std::vector<std::int32_t> tokens_of_rows(const CaseSpec& spec, bool positions) {
  std::vector<std::int32_t> list;
  for (std::size_t i = 0; i < spec.rows.size(); ++i) {
    const RowLengths& row = spec.rows[i];
    for (std::int64_t j = 0; j < row.q_len; ++j) {
      list.push_back(static_cast<std::int32_t>(positions ? row.kv_len - row.q_len + j
                                                         : static_cast<std::int64_t>(i)));
    }
  }
  return list;
}

}  // namespace

Workload::Workload(const CaseSpec& spec)
    : spec_(spec),
      token_row_(tokens_of_rows(spec, /*positions=*/false)),
      token_position_(tokens_of_rows(spec, /*positions=*/true)) {
  make_tables();
  make_cache(sets_of(spec_.kv_bytes(), kMostLayers));
  make_tensors();
  SEQATTN_BENCH_CHECK(cudaDeviceSynchronize());
}

void Workload::make_tables() {
  page_indptr_ = q_indptr_ = {0};
  for (const RowLengths& row : spec_.rows) {
    const std::int64_t pages = pages_of(row.kv_len);
    page_indptr_.push_back(page_indptr_.back() + static_cast<std::int32_t>(pages));
    last_page_len_.push_back(static_cast<std::int32_t>(row.kv_len - (pages - 1) * kPageSize));
    q_indptr_.push_back(q_indptr_.back() + static_cast<std::int32_t>(row.q_len));
    peer_.kv_len.push_back(static_cast<std::int32_t>(row.kv_len));
  }
  pool_pages_ = page_indptr_.back() + kSparePages;
  page_indices_.resize(static_cast<std::size_t>(pool_pages_));
  std::iota(page_indices_.begin(), page_indices_.end(), 0);
  std::mt19937_64 random(7);
  std::shuffle(page_indices_.begin(), page_indices_.end(), random);
  page_indices_.resize(static_cast<std::size_t>(page_indptr_.back()));
  packed_ = FlashInferPackedData(page_indices_, page_indptr_, last_page_len_);

  for (const auto* table : {&page_indices_, &page_indptr_, &last_page_len_, &q_indptr_}) {
    tables_.emplace_back(*table);
  }
  peer_.num_qo_heads = spec_.num_qo_heads;
  peer_.num_kv_heads = spec_.num_kv_heads;
  peer_.head_dim = spec_.head_dim;
  peer_.page_size = kPageSize;
  peer_.is_hnd = spec_.is_hnd;
  peer_.is_float8 = spec_.is_float8;
  peer_.q_indptr = q_indptr_;
  peer_.page_indptr = page_indptr_;
  peer_.page_indices_device = tables_[0].as<std::int32_t>();
  peer_.page_indptr_device = tables_[1].as<std::int32_t>();
  peer_.last_page_len_device = tables_[2].as<std::int32_t>();
  peer_.q_indptr_device = tables_[3].as<std::int32_t>();
}

void Workload::make_cache(int num_layers) {
  KVCacheConfig config;
  config.num_pages = pool_pages_;
  config.page_size = kPageSize;
  config.num_heads = spec_.num_kv_heads;
  config.head_dim = spec_.head_dim;
  if (spec_.is_hnd) config.kv_layout = KVLayout::kHND;
  if (spec_.scales_per_token) config.kv_scaling = KVScaling::kPerToken;
  config.num_layers = num_layers;
  config.dtype = spec_.is_float8 ? DType::kFloat8E4M3 : DType::kBFloat16;
  config.device = cuda(0);
  manager_ = std::make_unique<PagedKVCacheManager>(config);
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto seed = static_cast<std::uint64_t>(layer);
    const auto fill = spec_.is_float8 ? fill_normal_float8 : fill_normal;
    const std::int64_t elements = layer_bytes() / spec_.element_bytes();
    fill(manager_->key_cache(layer).data, elements, 100 + seed, nullptr);
    fill(manager_->value_cache(layer).data, elements, 1000 + seed, nullptr);
    if (!spec_.scales_per_token) continue;
    for (const TensorView& scales : {manager_->key_scales(layer), manager_->value_scales(layer)}) {
      fill_ones(static_cast<float*>(scales.data), scales.num_elements(), nullptr);
    }
  }
}

void Workload::make_tensors() {
  const auto add = [&](std::vector<Buffer>& list, int num_heads, int count, std::uint64_t seed) {
    const std::int64_t elements = spec_.num_q_tokens() * num_heads * spec_.head_dim;
    for (int i = 0; i < count; ++i) {
      list.emplace_back(2 * elements);
      fill_normal(list.back().data(), elements, seed + static_cast<std::uint64_t>(i), nullptr);
    }
  };
  if (spec_.group == Group::kAppend) {
    const int sets = sets_of(spec_.append_bytes() / 2, 8);
    add(new_keys_, spec_.num_kv_heads, sets, 10);
    add(new_values_, spec_.num_kv_heads, sets, 30);
    return;
  }
  // Of decode these are few bytes; of prefill, as many as the keys.
  const int sets = spec_.group == Group::kPrefill ? 4 : 1;
  add(q_, spec_.num_qo_heads, sets, 50);
  add(out_, spec_.num_qo_heads, sets, 70);
}

int Workload::num_runs() const {
  const std::size_t sets = std::max(q_.size(), new_keys_.size());
  return std::max({kFewestRuns, num_layers(), static_cast<int>(sets)});
}

TensorView Workload::tokens(const Buffer& buffer, int num_heads) const {
  return TensorView::contiguous(buffer.data(), DType::kBFloat16,
                                {spec_.num_q_tokens(), num_heads, spec_.head_dim}, cuda(0));
}

PagedCache Workload::cache(int run) const {
  const int layer = layer_of(run);
  PagedCache cache{.keys = manager_->key_cache(layer).data,
                   .values = manager_->value_cache(layer).data,
                   .page_indices = tables_[0].as<std::int32_t>(),
                   .page_indptr = tables_[1].as<std::int32_t>(),
                   .page_size = kPageSize,
                   .num_kv_heads = spec_.num_kv_heads,
                   .head_dim = spec_.head_dim,
                   .is_hnd = spec_.is_hnd,
                   .element_bytes = static_cast<int>(spec_.element_bytes())};
  if (spec_.scales_per_token) {
    cache.key_scales = static_cast<const float*>(manager_->key_scales(layer).data);
    cache.value_scales = static_cast<const float*>(manager_->value_scales(layer).data);
  }
  return cache;
}

PeerTensors Workload::peer_tensors(int run) const {
  const int layer = layer_of(run);
  PeerTensors tensors;
  tensors.keys = manager_->key_cache(layer).data;
  tensors.values = manager_->value_cache(layer).data;
  if (!q_.empty()) {
    tensors.q = set_of(q_, run).data();
    tensors.out = set_of(out_, run).data();
  }
  return tensors;
}

std::int64_t Workload::layer_bytes() const {
  return pool_pages_ * kPageSize * spec_.num_kv_heads * spec_.head_dim * spec_.element_bytes();
}

}  // namespace seqattn::bench
