#include "seqattn/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "message.h"
#include "prefix_cache_state.h"

namespace seqattn {
namespace {

PagePool& checked_pool(PagePool& pool, const PrefixCacheOptions& options) {
  require(pool.reclaimer() == nullptr,
          "pool: got one that has a reclaimer; expected one without, since a prefix cache becomes "
          "that: remove it first, or let go of the prefix cache that it is, and of its handles");
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  require(options.event_capacity >= 0 && options.event_capacity <= kMost, "event_capacity: got ",
          options.event_capacity, "; expected 0 to ", kMost);
  return pool;
}

void check_pool(const CacheDescriptor& descriptor, const PagePool& pool) {
  require(&descriptor.pool() == &pool,
          "descriptor: got one of another pool; expected one of the cache's");
}

}  // namespace

PrefixCache::PrefixCache(PagePool& pool, PrefixCacheOptions options)
    : state_(std::make_unique<State>(checked_pool(pool, options), std::move(options))) {
  pool.set_reclaimer(this);
}

PrefixCache::~PrefixCache() {
  PagePool& pool = state_->pool;
  if (pool.reclaimer() == this) pool.set_reclaimer(nullptr);
  for (std::size_t page = 0; page < state_->is_cached.size(); ++page) {
    if (!state_->is_cached[page]) continue;
    const auto id = static_cast<PageId>(page);
    state_->disclaim(std::span(&id, 1));
    try {
      pool.drop(std::span(&id, 1));
    } catch (...) {
      // Somebody dropped the cache's reference, and a destructor can tell nobody. The other pages
      // still go back.
    }
  }
}

PrefixHandle PrefixCache::match(TokenIds tokens, std::string_view salt) {
  return find(tokens, salt, /*is_use=*/true);
}

PrefixHandle PrefixCache::pin(TokenIds tokens, std::string_view salt) {
  return find(tokens, salt, /*is_use=*/false);
}

PrefixHandle PrefixCache::find(TokenIds tokens, std::string_view salt, bool is_use) {
  State& state = *state_;
  const std::int64_t page_size = state.page_size();
  const TimePoint now = state.now();
  const auto num_asked = static_cast<std::int64_t>(tokens.size());
  const std::int64_t most = std::max(num_asked - 1, std::int64_t{0});
  auto place = state.tree.find(salt, TokenSpan(tokens).first(is_use ? most : num_asked));
  if (!is_use) place.num_common -= place.num_common % page_size;

  PrefixHandle handle;
  handle.num_tokens_ = place.num_tokens + place.num_common;
  handle.pages_.resize((handle.num_tokens_ + page_size - 1) / page_size);
  PrefixNode* const end = state.end_of(place);  // the last step that can fail
  handle.cache_ = this;
  handle.node_ = end;
  auto to = handle.pages_.end();
  for (const PrefixNode* node = end; node != nullptr; node = node->parent) {
    to = std::copy_backward(node->pages.begin(), node->pages.end(), to);
  }
  if (end != nullptr) state.pin(*end);
  if (!is_use) return handle;
  ++state.stats.num_matches;
  state.stats.num_tokens_asked += num_asked;
  state.stats.num_tokens_found += handle.num_tokens_;
  if (end == nullptr) return handle;
  ++state.stats.num_hits;
  state.use(*end, now);
  state.events.note_hit(*end, handle.num_tokens_);
  return handle;
}

void PrefixCache::attach(CacheDescriptor& descriptor, SeqId seq_id,
                         const PrefixHandle& handle) const {
  check_pool(descriptor, state_->pool);
  require(handle.cache_ == this,
          handle.cache_ == nullptr ? "handle: got one that was released"
                                   : "handle: got one of another cache",
          "; expected a live one of this cache's match or pin");
  descriptor.attach(seq_id, handle.pages(), handle.num_tokens());
}

std::int64_t PrefixCache::insert(const CacheDescriptor& descriptor, SeqId seq_id, TokenIds tokens,
                                 std::string_view salt, const InsertOptions& options) {
  State& state = *state_;
  check_pool(descriptor, state.pool);
  const SequenceData& sequence = descriptor.sequence(seq_id);
  const std::int64_t length = sequence.length;  // a pending tree lies behind
  require(
      sequence.kept_from() == 0, "seq_id: got sequence ", seq_id,
      ", of which a window or keep has dropped tokens; expected one that holds them all: insert "
      "it earlier, as a prompt behind its prefill, before it grows or keep picks from it");
  require(static_cast<std::int64_t>(tokens.size()) <= length, "tokens: got ", tokens.size(),
          " for sequence ", seq_id, " of length ", length, "; expected no more than that");
  require(options.ttl.count() > 0, "ttl: got ", options.ttl.count(), " ns; expected more than 0");

  const TimePoint now = state.now();
  const std::int64_t num_pages = static_cast<std::int64_t>(tokens.size()) / state.page_size();
  const TokenSpan whole = TokenSpan(tokens).first(num_pages * state.page_size());
  auto place = state.tree.find(salt, whole);
  place.num_common -= place.num_common % state.page_size();
  const std::int64_t num_old_tokens = place.num_tokens + place.num_common;
  const std::int64_t num_old_pages = num_old_tokens / state.page_size();
  state.check_old(place, sequence.kv_page_indices);
  PrefixNode* end = nullptr;
  if (num_old_pages == num_pages) {
    end = state.end_of(place);
  } else {
    end = &state.add(place, salt, whole.subspan(num_old_tokens),
                     std::span(sequence.kv_page_indices).first(num_pages), num_old_pages);
  }
  if (end == nullptr) return 0;
  for (PrefixNode* node = end; !node->is_root(); node = node->parent) {
    node->priority = std::max(node->priority, options.priority);
    node->ttl = std::max(node->ttl, options.ttl);
  }
  state.use(*end, now);
  return num_pages - num_old_pages;
}

std::vector<CacheEvent> PrefixCache::drain_events() { return state_->events.drain(); }

PagePool& PrefixCache::pool() const noexcept { return state_->pool; }

PrefixHandle::PrefixHandle(PrefixHandle&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)),
      node_(std::exchange(other.node_, nullptr)),
      pages_(std::move(other.pages_)),
      num_tokens_(std::exchange(other.num_tokens_, 0)) {
  other.pages_.clear();
}

PrefixHandle& PrefixHandle::operator=(PrefixHandle&& other) noexcept {
  if (this == &other) return *this;
  release();
  cache_ = std::exchange(other.cache_, nullptr);
  node_ = std::exchange(other.node_, nullptr);
  pages_ = std::exchange(other.pages_, {});
  num_tokens_ = std::exchange(other.num_tokens_, 0);
  return *this;
}

void PrefixHandle::release() noexcept {
  if (node_ != nullptr) cache_->state_->unpin(*node_);
  cache_ = nullptr;
  node_ = nullptr;
  pages_.clear();
  num_tokens_ = 0;
}

}  // namespace seqattn
