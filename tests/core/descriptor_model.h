#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "sequence_model.h"

namespace seqattn::testing {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 62;

// What a page pool, a reclaimer and two descriptors over that pool are meant to do, written down as
// plainly as possible: lists, maps, no transactions. Works on a copy, which the caller throws away
// when the call throws.
class DescriptorModel {
 public:
  using Sequence = SequenceModel;
  using Table = std::map<SeqId, Sequence>;

  DescriptorModel(int num_pages, int page_size);

  // The pool.
  std::vector<PageId> allocate(std::int64_t num_pages);
  void ref(std::span<const PageId> pages);
  void unref(std::span<const PageId> pages);

  // The descriptors, by number. `grow` is try_allocate; `decode` and `allocate` throw NoPageError.
  Admission grow(int descriptor, std::span<const SeqId> ids, std::span<const std::int64_t> lengths);
  Admission allocate(int descriptor, std::span<const SeqId> ids,
                     std::span<const std::int64_t> lengths);
  Admission decode(int descriptor, std::span<const SeqId> ids);
  std::int64_t release(int descriptor, std::span<const SeqId> ids);
  void fork(int descriptor, SeqId parent, SeqId child, std::int64_t num_tokens);
  void attach(int descriptor, SeqId id, std::vector<PageId> pages, std::int64_t num_tokens);
  void attach(int descriptor, SeqId id, Sequence data);
  void adopt(int descriptor, SeqId id, std::vector<PageId> pages, std::int64_t num_tokens);
  void truncate(int descriptor, SeqId id, std::int64_t num_tokens);
  void set_window(int descriptor, SeqId id, SlidingWindow window);
  Admission allocate_tree(int descriptor, SeqId id, std::span<const std::int32_t> parents,
                          std::int64_t num_tokens);
  std::vector<TokenMove> commit_tree(int descriptor, SeqId id, std::span<const std::int32_t> path);
  std::vector<TokenMove> keep(int descriptor, SeqId id, std::span<const std::int64_t> slots);
  Sequence save(int descriptor, SeqId id) const;
  void restore(int descriptor, SeqId id, Sequence saved);
  void check_restore(int descriptor, SeqId id) const;  // whatever the bytes
  const Sequence& sequence(int descriptor, SeqId id) const;

  Stats stats(int descriptor) const;
  int last_page_len(const Sequence& sequence) const;
  // How many references to each page the sequences and the reclaimer hold.
  std::vector<int> holders() const;
  // True where references are held that do not exist: a caller has dropped one of another's.
  bool has_stolen_references() const;

  int page_size = 1;
  std::vector<int> counts;
  std::vector<PageId> free_pages;  // front first
  std::vector<std::uint32_t> generations;
  std::array<Table, 2> tables;
  std::array<SlidingWindow, 2> windows;  // of the descriptors' sequences to come
  std::array<bool, 2> has_storage = {};  // a descriptor over a bare pool has none
  std::vector<PageId> reclaimable;       // references that the reclaimer holds; none without one
  // Another reclaimer, in place of that one: the references that it drops so that as many pages
  // become free, by the counts that the call leaves; none where it cannot.
  std::function<std::vector<PageId>(std::int64_t num_pages, const std::vector<int>& left)> gives_up;

 private:
  std::int64_t num_pages_for(std::int64_t num_tokens) const;
  PageId take();  // invents a page where there is none
  void drop_dead_pages(Sequence& sequence);
  void grow_one(Sequence& sequence, std::int64_t num_tokens, Admission& admission);
  Admission admit(int descriptor, std::span<const SeqId> ids,
                  std::span<const std::int64_t> lengths);
  void cut(Sequence& sequence, std::int64_t num_tokens) const;
  std::vector<TokenMove> compact(Sequence& sequence, std::span<const std::int64_t> slots);
  // `left` are the counts that the call which needs pages leaves of those there are.
  bool reclaim(std::int64_t num_pages, const std::vector<int>& left);
};

// The fewest references in front of the list that have to go for that many pages to become free; 0
// when not even all of them would do. The model's reclaimer and the real one agree by it.
std::size_t num_to_give_up(std::span<const PageId> reclaimable, std::vector<int> counts,
                           std::int64_t num_pages);

}  // namespace seqattn::testing
