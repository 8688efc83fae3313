#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "seqattn/types.h"

namespace seqattn::cli {

// How many distinct pages some lists hold.
class PageHolders {
 public:
  explicit PageHolders(std::int64_t num_pages) : counts_(static_cast<std::size_t>(num_pages)) {}

  void add(std::span<const PageId> pages) {
    for (const PageId page : pages) num_held_ += counts_[static_cast<std::size_t>(page)]++ == 0;
  }
  void remove(std::span<const PageId> pages) {
    for (const PageId page : pages) num_held_ -= --counts_[static_cast<std::size_t>(page)] == 0;
  }
  std::int64_t num_held() const { return num_held_; }

 private:
  std::vector<std::int32_t> counts_;
  std::int64_t num_held_ = 0;
};

}  // namespace seqattn::cli
