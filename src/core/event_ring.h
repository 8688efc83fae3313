#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefix_node.h"
#include "seqattn/prefix_cache.h"

namespace seqattn {

// The last events, in memory that is there from the start: noting one cannot fail.
class EventRing {
 public:
  EventRing(std::int64_t capacity, int page_size);

  // Of the block's salt, parent and tokens: all of them, page by page, from block `first` on.
  void note_stored(const PrefixNode& node) noexcept;
  void note_hit(const PrefixNode& node, std::int64_t num_tokens) noexcept;
  // Of the node's last pages, the last one first.
  void note_evicted(const PrefixNode& node, std::int64_t num_pages) noexcept;
  void note_cleared() noexcept;

  // All or nothing.
  std::vector<CacheEvent> drain();
  std::int64_t num_lost() const noexcept { return num_lost_; }

 private:
  struct Record {
    CacheEvent::Kind kind;
    std::shared_ptr<const std::string> salt;
    std::int64_t block = 0, parent = 0, num_tokens = 0;
  };
  void note(Record&& record, TokenSpan tokens = {}) noexcept;
  std::size_t slot(std::int64_t number) const noexcept {
    return static_cast<std::size_t>(number) % records_.size();
  }

  int page_size_;
  std::vector<Record> records_;
  std::vector<TokenId> tokens_;       // page_size_ for each record
  std::int64_t begin_ = 0, end_ = 0;  // numbers of the events kept
  std::int64_t num_lost_ = 0;
};

}  // namespace seqattn
