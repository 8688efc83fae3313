#include "seqattn/page_pool.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "message.h"

namespace seqattn {
namespace {

constexpr std::int32_t kMaxCount = std::numeric_limits<std::int32_t>::max();

std::uint64_t next_id() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

std::int64_t checked_num_pages(std::int64_t num_pages) {
  require(num_pages >= 0 && num_pages <= std::numeric_limits<PageId>::max(), "num_pages: got ",
          num_pages, "; expected 0 <= num_pages < 2^31");
  return num_pages;
}

}  // namespace

Reclaimer::~Reclaimer() = default;

PagePool::PagePool(std::int64_t num_pages, int page_size)
    : num_pages_(checked_num_pages(num_pages)), page_size_(page_size), id_(next_id()) {
  require(page_size >= 1, "page_size: got ", page_size, "; expected at least 1");
  const auto size = static_cast<std::size_t>(num_pages);
  ring_ = std::make_unique_for_overwrite<PageId[]>(size);
  std::iota(ring_.get(), ring_.get() + size, PageId{0});
  tail_ = size;
  counts_.resize(size);
#ifndef NDEBUG
  generations_.resize(size);
#endif
}

PagePool::~PagePool() = default;

std::vector<PageId> PagePool::allocate(std::int64_t num_pages) {
  require(num_pages >= 0, "num_pages: got ", num_pages, "; expected at least 0");
  const auto no_page = [&] {
    return NoPageError(num_pages, available_pages_count(), reclaimer_ != nullptr);
  };
  if (num_pages > num_pages_) throw no_page();
  std::vector<PageId> pages;
  pages.reserve(static_cast<std::size_t>(num_pages));
  const std::int64_t missing = num_pages - available_pages_count();
  if (missing > 0 && !(reclaim(missing) && num_pages <= available_pages_count())) {
    throw no_page();
  }
  const std::int64_t first = ring_index(head_);
  const std::int64_t before_wrap = std::min(num_pages, num_pages_ - first);
  const PageId* const ring = ring_.get();
  pages.insert(pages.end(), ring + first, ring + first + before_wrap);
  pages.insert(pages.end(), ring, ring + (num_pages - before_wrap));
  for (const PageId page : pages) counts_[static_cast<std::size_t>(page)] = 1;
  head_ += static_cast<std::uint64_t>(num_pages);
  return pages;
}

void PagePool::ref(PageIds pages) { ref(pages, "ref"); }

void PagePool::ref(PageIds pages, const char* call) {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const auto page = static_cast<std::size_t>(pages[i]);
    if (!contains(pages[i]) || counts_[page] == 0 || counts_[page] == kMaxCount) [[unlikely]] {
      for (std::size_t k = 0; k < i; ++k) --counts_[static_cast<std::size_t>(pages[k])];
      refuse(call, pages[i], i);
    }
    ++counts_[page];
  }
}

void PagePool::unref(PageIds pages) {
  drop(pages);
  handled_by_callers_ = true;
}

void PagePool::drop(PageIds pages) {
  // Locals, which no store of the loop could change, stay in registers.
  const std::uint64_t old_tail = tail_;
  std::uint64_t tail = tail_;
  std::int64_t end = ring_index(tail_);
  PageId* const ring = ring_.get();
  std::int32_t* const counts = counts_.data();
  const std::int64_t num_pages = num_pages_;
  const bool has_generations = !generations_.empty();
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const PageId page = pages[i];
    if (static_cast<std::uint32_t>(page) >= num_pages || counts[page] == 0) [[unlikely]] {
      tail_ = tail;
      hold_again(std::span(pages.data(), i));
      take_off_free_list(old_tail);
      refuse("unref", page, i);
    }
    if (--counts[page] > 0) continue;
    ring[end] = page;
    if (++end == num_pages) end = 0;
    ++tail;
    if (has_generations) ++generations_[static_cast<std::size_t>(page)];
  }
  tail_ = tail;
}

void PagePool::refuse(const char* call, PageId page, std::size_t entry) const {
  require(contains(page), call, ": got page ", page, " at entry ", entry, "; expected 0 <= page < ",
          num_pages_);
  const std::int32_t count = counts_[static_cast<std::size_t>(page)];
  require(count > 0, call, ": page ", page, " at entry ", entry,
          " is free; expected a page in use");
  throw InvalidArgumentError(
      concat(call, ": page ", page, " has ", count,
             " references, and the list names it often enough to leave [0, 2^31); expected it no "
             "more often than that"));
}

void PagePool::hold_again(PageIds pages) noexcept {
  for (const PageId page : pages) ++counts_[static_cast<std::size_t>(page)];
}

void PagePool::take_off_free_list(std::uint64_t old_tail) noexcept {
  const std::uint64_t first = std::max(old_tail, head_);
  std::uint64_t end = first;
  for (std::uint64_t n = first; n != tail_; ++n) {
    const PageId freed = ring_[static_cast<std::size_t>(ring_index(n))];
    const auto page = static_cast<std::size_t>(freed);
    if (counts_[page] == 0) {
      ring_[static_cast<std::size_t>(ring_index(end++))] = freed;
    } else if (!generations_.empty()) {
      --generations_[page];
    }
  }
  tail_ = end;
}

std::int32_t PagePool::ref_count(PageId page) const {
  require(contains(page), "ref_count: got page ", page, "; expected 0 <= page < ", num_pages_);
  return counts_[static_cast<std::size_t>(page)];
}

std::vector<PageId> PagePool::free_pages() const {
  std::vector<PageId> pages;
  pages.reserve(static_cast<std::size_t>(available_pages_count()));
  for (std::uint64_t n = head_; n != tail_; ++n) {
    pages.push_back(ring_[static_cast<std::size_t>(ring_index(n))]);
  }
  return pages;
}

void PagePool::check_invariants() const {
  const auto check = [](bool condition, const auto&... parts) {
    if (!condition) throw Error(concat("PagePool: ", parts...));
  };
  check(available_pages_count() >= 0 && available_pages_count() <= num_pages_,
        available_pages_count(), " free of ", num_pages_, " pages");
  std::vector<bool> listed(static_cast<std::size_t>(num_pages_));
  for (const PageId page : free_pages()) {
    check(contains(page), "page ", page, " in the free list is not in [0, ", num_pages_, ")");
    const auto i = static_cast<std::size_t>(page);
    check(!listed[i], "page ", page, " is in the free list twice");
    check(counts_[i] == 0, "page ", page, " in the free list has a count of ", counts_[i]);
    listed[i] = true;
  }
  for (std::size_t page = 0; page < counts_.size(); ++page) {
    check(counts_[page] >= 0, "page ", page, " has a count of ", counts_[page]);
    check(counts_[page] > 0 || listed[page], "page ", page, " has a count of 0 and is not free");
  }
}

std::string PagePool::to_string() const {
  return concat("PagePool(num_pages=", num_pages_, ", page_size=", page_size_,
                ", available=", available_pages_count(), ")");
}

}  // namespace seqattn
