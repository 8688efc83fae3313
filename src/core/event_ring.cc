#include "event_ring.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <stdexcept>
#include <utility>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

std::int64_t last_block(const PrefixNode& node) {
  return node.is_root() ? 0 : node.first_block + node.num_pages() - 1;
}

}  // namespace

EventRing::EventRing(std::int64_t capacity, int page_size) : page_size_(page_size) {
  static_assert(sizeof(void*) != 8 || sizeof(Record) == 48, "prefix_cache.h says so");
  const auto num_events = static_cast<std::size_t>(capacity);
  const std::size_t num_tokens = num_events * static_cast<std::size_t>(page_size);
  const auto refuse = [&] {
    throw OutOfMemoryError(
        concat("PrefixCache: no memory for ",
               num_events * sizeof(Record) + num_tokens * sizeof(TokenId), " bytes of ", capacity,
               " events; expected an event_capacity that fits: drain_events takes them as often as "
               "one likes"));
  };
  try {
    // Both before either is filled, so that what cannot be is known at once.
    records_.reserve(num_events);
    tokens_.reserve(num_tokens);
  } catch (const std::bad_alloc&) {
    refuse();
  } catch (const std::length_error&) {
    refuse();
  }
  records_.resize(num_events);
  tokens_.resize(num_tokens);
}

void EventRing::note_stored(const PrefixNode& node) noexcept {
  if (records_.empty()) return;
  const auto page_size = static_cast<std::size_t>(page_size_);
  std::int64_t parent = last_block(*node.parent);
  for (std::size_t i = 0; i < node.pages.size(); ++i) {
    const std::int64_t block = node.first_block + static_cast<std::int64_t>(i);
    note({CacheEvent::Kind::kStored, *node.salt, block, parent},
         TokenSpan(node.tokens).subspan(i * page_size, page_size));
    parent = block;
  }
}

void EventRing::note_hit(const PrefixNode& node, std::int64_t num_tokens) noexcept {
  note({CacheEvent::Kind::kHit, *node.salt, last_block(node), 0, num_tokens});
}

void EventRing::note_evicted(const PrefixNode& node, std::int64_t num_pages) noexcept {
  if (records_.empty()) return;
  for (std::int64_t i = 0; i < num_pages; ++i) {
    note({CacheEvent::Kind::kEvicted, *node.salt, last_block(node) - i});
  }
}

void EventRing::note_cleared() noexcept { note({CacheEvent::Kind::kCleared, nullptr}); }

void EventRing::note(Record&& record, TokenSpan tokens) noexcept {
  if (records_.empty()) return;
  if (end_ - begin_ == std::ssize(records_)) {
    ++begin_;
    ++num_lost_;
  }
  const std::size_t i = slot(end_++);
  records_[i] = std::move(record);
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + static_cast<std::ptrdiff_t>(i) * page_size_);
}

std::vector<CacheEvent> EventRing::drain() {
  std::vector<CacheEvent> events;
  events.reserve(static_cast<std::size_t>(end_ - begin_));
  for (std::int64_t number = begin_; number < end_; ++number) {
    const Record& record = records_[slot(number)];
    CacheEvent& event = events.emplace_back();
    event.kind = record.kind;
    event.number = number;
    if (record.salt != nullptr) event.salt = *record.salt;
    event.block = record.block;
    event.parent = record.parent;
    event.num_tokens = record.num_tokens;
    if (record.kind != CacheEvent::Kind::kStored) continue;
    const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(slot(number)) * page_size_;
    event.tokens.assign(first, first + page_size_);
  }
  for (; begin_ < end_; ++begin_) records_[slot(begin_)].salt.reset();
  return events;
}

}  // namespace seqattn
