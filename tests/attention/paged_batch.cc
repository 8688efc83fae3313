#include "paged_batch.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>

namespace seqattn::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::int64_t pages_of(std::int64_t kv_len, int page_size) {
  return (kv_len + page_size - 1) / page_size;
}

double unused_value(Unused unused, std::mt19937_64& random) {
  constexpr std::array kAll{kNan, kInfinity, -kInfinity};
  switch (unused) {
    case Unused::kNaN:
      return kNan;
    case Unused::kInfinity:
      return kAll[1 + random() % 2];
    case Unused::kMixed:
      break;
  }
  return kAll[random() % 3];
}

std::vector<std::int64_t> cache_shape(const KVCacheConfig& config, int head_dim) {
  if (config.kv_layout == KVLayout::kNHD) {
    return {config.num_pages, config.page_size, config.num_heads, head_dim};
  }
  return {config.num_pages, config.num_heads, config.page_size, head_dim};
}

// With gaps of some multiples of `unit` elements; 0: without.
Layout cache_layout(const std::vector<std::int64_t>& shape, std::int64_t unit) {
  if (unit == 0) return {};
  const std::int64_t inner = shape[3] + 3 * unit, outer = shape[2] * inner + 7 * unit;
  return {{shape[1] * outer + 11 * unit, outer, inner, 1}, unit};
}

// The cache's elements: those of the rows' tokens in their slots, traps everywhere else.
class CacheImage {
 public:
  CacheImage(const KVCacheConfig& config, int head_dim, Unused unused, std::mt19937_64& random)
      : config_(config), head_dim_(head_dim) {
    const auto size = config.num_pages * config.page_size * config.num_heads * head_dim;
    values_.resize(static_cast<std::size_t>(size));
    for (double& value : values_) value = unused_value(unused, random);
  }
  // tokens: [kv_len, num_heads, head_dim].
  void put(std::span<const PageId> pages, const std::vector<double>& tokens) {
    const auto per_token = static_cast<std::int64_t>(config_.num_heads) * head_dim_;
    const auto kv_len = static_cast<std::int64_t>(tokens.size()) / per_token;
    for (std::int64_t token = 0; token < kv_len; ++token) {
      const PageId page = pages[static_cast<std::size_t>(token / config_.page_size)];
      for (std::int64_t head = 0; head < config_.num_heads; ++head) {
        const auto* from = tokens.data() + token * per_token + head * head_dim_;
        std::copy_n(from, head_dim_,
                    values_.data() + offset(page, token % config_.page_size, head));
      }
    }
  }
  const std::vector<double>& values() const { return values_; }

 private:
  std::int64_t offset(std::int64_t page, std::int64_t slot, std::int64_t head) const {
    const bool tokens_outside = config_.kv_layout == KVLayout::kNHD;
    const std::int64_t outer = tokens_outside ? slot : head, inner = tokens_outside ? head : slot;
    const std::int64_t num_inner = tokens_outside ? config_.num_heads : config_.page_size;
    const std::int64_t page_size = std::int64_t{config_.page_size} * config_.num_heads;
    return (page * page_size + outer * num_inner + inner) * head_dim_;
  }

  const KVCacheConfig& config_;
  int head_dim_;
  std::vector<double> values_;
};

}  // namespace

FlashInferPackedData random_table(const std::vector<std::int64_t>& kv_lens, int page_size,
                                  std::int64_t num_pages, std::mt19937_64& random) {
  std::vector<PageId> shuffled(static_cast<std::size_t>(num_pages));
  std::iota(shuffled.begin(), shuffled.end(), 0);
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  std::vector<std::int32_t> indptr{0}, last_page_len;
  for (const std::int64_t kv_len : kv_lens) {
    const std::int64_t pages = pages_of(kv_len, page_size);
    indptr.push_back(indptr.back() + static_cast<std::int32_t>(pages));
    last_page_len.push_back(
        pages == 0 ? 0 : static_cast<std::int32_t>(kv_len - (pages - 1) * page_size));
  }
  shuffled.resize(static_cast<std::size_t>(indptr.back()));
  return {std::move(shuffled), std::move(indptr), std::move(last_page_len)};
}

PagedBatch::PagedBatch(const AttentionCase& attention_case, const std::vector<ref::Row>& rows,
                       Device device, std::mt19937_64& random, const Placement& placement) {
  std::vector<std::int64_t> kv_lens;
  std::int64_t num_pages = placement.spare_pages;
  for (const ref::Row& row : rows) {
    kv_lens.push_back(row.kv_len);
    num_pages += pages_of(row.kv_len, attention_case.page_size);
  }
  packed_ = random_table(kv_lens, attention_case.page_size, num_pages, random);

  const KVCacheConfig config = attention_case.cache_config(num_pages, device);
  // Of one element a token and head where head_dim is 1.
  const auto make_image = [&](int head_dim, const auto& tokens_of) {
    CacheImage image(config, head_dim, placement.unused, random);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto begin = static_cast<std::size_t>(packed_.kv_page_indptr()[i]);
      image.put(packed_.kv_page_indices().subspan(begin), tokens_of(rows[i]));
    }
    return image;
  };
  const bool has_scales = config.dtype == DType::kFloat8E4M3;
  const auto make_cache = [&](int head_dim, std::vector<double> ref::Row::*tokens, bool with_gaps) {
    const CacheImage image = make_image(head_dim, [&](const ref::Row& row) {
      std::vector<double> elements = row.*tokens;
      if (!has_scales) return elements;
      const auto scales = attention_case.token_scales(elements, head_dim, tokens == &ref::Row::v);
      for (std::size_t i = 0; i < elements.size(); ++i) {
        elements[i] /= scales[i / static_cast<std::size_t>(head_dim)];
      }
      return elements;
    });
    const auto shape = cache_shape(config, head_dim);
    Tensor cache(device, config.dtype, shape,
                 cache_layout(shape, with_gaps ? gap_unit(device) : 0));
    cache.write(image.values());
    return cache;
  };
  const auto make_scales = [&](int head_dim, std::vector<double> ref::Row::*tokens,
                               bool with_gaps) {
    const CacheImage image = make_image(1, [&](const ref::Row& row) {
      const auto scales = attention_case.token_scales(row.*tokens, head_dim, false);
      return std::vector<double>(scales.begin(), scales.end());
    });
    auto shape = cache_shape(config, 1);
    shape.pop_back();
    const std::int64_t inner = shape[2] + 3;
    const Layout gaps{{shape[1] * inner + 5, inner, 1}, 1};
    Tensor scales(device, DType::kFloat32, shape, with_gaps ? gaps : Layout{});
    scales.write(image.values());
    return scales;
  };
  const bool values_with_gaps = placement.with_gaps || placement.values_with_gaps;
  keys_ = make_cache(attention_case.head_dim, &ref::Row::k, placement.with_gaps);
  values_ = make_cache(attention_case.dim_v(), &ref::Row::v, values_with_gaps);
  const TensorView keys = keys_.view(), values = values_.view();
  std::vector<TensorView> key_scales, value_scales;
  if (config.kv_scaling == KVScaling::kPerToken) {
    key_scales_ = make_scales(attention_case.head_dim, &ref::Row::k, placement.with_gaps);
    value_scales_ = make_scales(attention_case.dim_v(), &ref::Row::v, values_with_gaps);
    key_scales.push_back(key_scales_.view());
    value_scales.push_back(value_scales_.view());
  }
  manager_ = PagedKVCacheManager::from_tensors(std::span(&keys, 1), std::span(&values, 1), config,
                                               key_scales, value_scales);
  if (has_scales && config.kv_scaling == KVScaling::kFixed) {
    manager_->set_kv_scales(attention_case.fixed_scales(false), attention_case.fixed_scales(true));
  }
}

}  // namespace seqattn::testing
