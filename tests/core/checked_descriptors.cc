#include "checked_descriptors.h"

#include <algorithm>
#include <array>
#include <sstream>

#include "descriptor_comparison.h"

namespace seqattn::testing {
namespace {

// Of one model, so that every state fits, but for its pages.
KVCacheConfig any_config(ByteSource& source) {
  constexpr std::array<DType, 3> kDTypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  KVCacheConfig config{.num_heads = 1, .head_dim = 2, .head_dim_v = 1, .num_layers = 2};
  config.num_pages = source.one_in(2) ? source.below(25) : 20 + source.below(30);
  config.page_size = 1 + source.below(5);
  config.dtype = kDTypes.at(static_cast<std::size_t>(source.below(3)));
  config.kv_layout = source.one_in(2) ? KVLayout::kHND : KVLayout::kNHD;
  return config;
}

}  // namespace

CheckedDescriptors::CheckedDescriptors(ByteSource& source, OperationsResult& result)
    : source_(source),
      result_(result),
      manager_(any_config(source)),
      model_(static_cast<int>(pool_.num_pages()), pool_.page_size()),
      has_reclaimer_(source_.one_in(3)),
      misuse_(source_.one_in(8)) {
  model_.windows = {first_.window(), second_.window()};
  model_.has_storage = {true, false};
  if (has_reclaimer_) pool_.set_reclaimer(&reclaimer_);
}

SlidingWindow CheckedDescriptors::good_window() {
  if (source_.one_in(2)) return {};
  const int window = 1 + source_.below(source_.one_in(4) ? 3 * pool_.page_size() : 4);
  return {.window = window, .num_sink_tokens = source_.below(2 * pool_.page_size())};
}

void CheckedDescriptors::follow_reclaimer() {
  const std::size_t count = model_.reclaimable.size() - reclaimer_.references.size();
  model_.unref(std::span(model_.reclaimable).first(count));
  model_.reclaimable = reclaimer_.references;
}

void CheckedDescriptors::compare_states(const char* name) {
  if (!std::ranges::equal(pool_.ref_counts(), model_.counts)) {
    differ(name, "left other counts");
  }
  if (pool_.free_pages() != model_.free_pages) differ(name, "left another free list");
#ifndef NDEBUG
  for (PageId page = 0; page < pool_.num_pages(); ++page) {
    if (pool_.generation(page) != model_.generations.at(page)) {
      differ(name, "left another generation");
    }
  }
#endif
  if (reclaimer_.references != model_.reclaimable) differ(name, "reclaimed something else");
  if (!equals(first_, model_, 0)) differ(name, "left another first descriptor");
  if (!equals(second_, model_, 1)) differ(name, "left another second descriptor");
  try {
    if (misuse_) return pool_.check_invariants();
    first_.check_invariants();
    second_.check_invariants();
  } catch (const Error& error) {
    differ(name, error.what());
  }
}

void CheckedDescriptors::differ(const char* name, const std::string& what) {
  if (!result_.difference.empty()) return;
  std::ostringstream text;
  text << "operation " << result_.num_operations << ", " << name << ": " << what << " (pool of "
       << pool_.num_pages() << " pages of " << pool_.page_size()
       << (has_reclaimer_ ? ", with a reclaimer" : "") << (misuse_ ? ", misused)" : ")");
  result_.difference = text.str();
}

}  // namespace seqattn::testing
