#include "grow_transaction.h"

#include <algorithm>
#include <span>

#include "draft_tree.h"
#include "message.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "sequence_finder.h"
#include "sequence_slots.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 62;

}  // namespace

GrowTransaction::GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_ids, Lengths new_lens,
                                 Mode mode)
    : descriptor_(descriptor),
      seq_ids_(seq_ids),
      new_lens_(new_lens),
      mode_(mode),
      pool_(*descriptor.pool_) {
  require(mode == Mode::kOneToken || seq_ids.size() == new_lens.size(), "seq_new_lens: got ",
          new_lens.size(), " lengths for ", seq_ids.size(), " sequence ids; expected one for each");
}

GrowTransaction GrowTransaction::by_lengths(CacheDescriptor& descriptor, SeqIds seq_ids,
                                            Lengths new_lens) {
  return {descriptor, seq_ids, new_lens, Mode::kLengths};
}

GrowTransaction GrowTransaction::by_one_token(CacheDescriptor& descriptor, SeqIds seq_ids) {
  return {descriptor, seq_ids, {}, Mode::kOneToken};
}

GrowTransaction GrowTransaction::by_tree(CacheDescriptor& descriptor, SeqIds seq_id,
                                         Lengths num_slots, std::span<const std::int32_t> parents) {
  return {descriptor, seq_id, num_slots, parents};
}

GrowTransaction::GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_id, Lengths num_slots,
                                 std::span<const std::int32_t> parents)
    : GrowTransaction(descriptor, seq_id, num_slots, Mode::kTree) {
  check_tree(parents);
  tree_parents_.assign(parents.begin(), parents.end());
}

bool GrowTransaction::prepare(Stream stream) {
  turns_.reserve(seq_ids_.size());
  pool_.begin();
  apply_turns();
  if (needed_ > available_) {
    // More than the whole pool no reclaimer can provide.
    const bool reclaimed =
        needed_ <= descriptor_.pool().num_pages() && pool_.reclaim(needed_ - available_);
    rollback();
    if (!reclaimed) return false;
    // Shares that the reclaimer gave up make copies unnecessary, and pages that windows have left
    // behind free: count again.
    apply_turns();
    if (needed_ > available_) {
      rollback();
      return false;
    }
  }
  take_pages();
  if (descriptor_.manager_ != nullptr) descriptor_.manager_->enqueue_copies(copies_, stream);
  pool_.retain();
  return true;
}

void GrowTransaction::apply_turns() {
  needed_ = 0;
  bool has_windows = false;
  SequenceFinder::make_room(descriptor_, seq_ids_.size());
  for (std::size_t i = 0; i < seq_ids_.size(); ++i) {
    require(num_new_slots(i) >= 0, "seq_new_lens: got ", num_new_slots(i), " for sequence ",
            seq_ids_[i], "; expected at least 0");
    const SequenceData& sequence = *begin_turn(i).sequence;
    require(num_new_slots(i) == 0 || sequence.tree_parents.empty(), "sequence ", seq_ids_[i],
            ": has a pending tree of ", sequence.tree_parents.size(),
            " draft tokens; expected none before it grows: commit_tree, or truncate to its length, "
            "ends it");
    has_windows |= sequence.window.window > 0;
  }
  for (std::size_t i = 0; has_windows && i < turns_.size(); ++i) {
    if (num_new_slots(i) > 0) give_back_dead_pages(turns_[i]);
  }
  available_ = pool_.available();
  const bool may_share = any_last_page_is_shared();
  for (std::size_t i = 0; i < turns_.size(); ++i) {
    const std::int64_t length = turns_[i].sequence->length;
    require(num_new_slots(i) <= kMaxLength - length, "seq_new_lens: got ", num_new_slots(i),
            " for sequence ", seq_ids_[i], " of length ", length,
            "; expected a total of at most 2^62");
    if (num_new_slots(i) > 0) grow(turns_[i], num_new_slots(i), may_share);
  }
}

GrowTransaction::Turn& GrowTransaction::begin_turn(std::size_t place) {
  const SeqId seq_id = seq_ids_[place];
  SequenceData* sequence = SequenceFinder::known(descriptor_, place, seq_id);
  bool is_new = false;
  if (sequence == nullptr) {
    if (mode_ == Mode::kLengths) {
      const auto [entry, is_inserted] = descriptor_.sequences_.try_emplace(seq_id);
      sequence = &entry->second;
      is_new = is_inserted;
    } else {
      sequence = &descriptor_.find(seq_id);
    }
    SequenceFinder::note(descriptor_, place, seq_id, *sequence);
  }
  if (is_new) {
    sequence->window = descriptor_.window_;
    sequence->table_version = next_table_version();
  }
  return turns_.emplace_back(
      Turn{.sequence = sequence,
           .old_last_page_len = sequence->last_page_len,
           .old_num_pages = static_cast<std::int32_t>(sequence->kv_page_indices.size()),
           .is_new = is_new});
}

void GrowTransaction::give_back_dead_pages(Turn& turn) {
  SequenceData& sequence = *turn.sequence;
  const int page_size = descriptor_.pool().page_size();
  const auto [first, end] = dead_pages(sequence, page_size);
  if (first == end) return;
  // The slots of a gap need not begin or end a page: the sequence may come from other page sizes.
  const std::int64_t position =
      std::max(sequence.dropped_to, end * page_size + slots_of(sequence, page_size).missing);
  const std::int64_t in_front = sequence.dropped_to == 0
                                    ? first * page_size
                                    : std::min(sequence.num_in_front, first * page_size);
  auto& pages = sequence.kv_page_indices;
  Drop& drop = drops_.emplace_back(Drop{.pages = {pages.begin() + first, pages.begin() + end},
                                        .first = first,
                                        .old_dropped_to = sequence.dropped_to,
                                        .old_num_in_front = sequence.num_in_front});
  turn.has_dropped = true;
  pool_.give_back(drop.pages);
  drop.is_cut_out = true;
  pages.erase(pages.begin() + first, pages.begin() + end);
  sequence.table_version = next_table_version();
  sequence.dropped_to = position;
  sequence.num_in_front = in_front;
  sequence.num_dropped += (end - first) * page_size;
  if (pages.empty()) sequence.last_page_len = 0;
}

void GrowTransaction::put_back(SequenceData& sequence, const Drop& drop) const noexcept {
  auto& pages = sequence.kv_page_indices;
  pages.insert(pages.begin() + drop.first, drop.pages.begin(), drop.pages.end());
  sequence.dropped_to = drop.old_dropped_to;
  sequence.num_in_front = drop.old_num_in_front;
  sequence.num_dropped -=
      static_cast<std::int64_t>(drop.pages.size()) * descriptor_.pool().page_size();
}

void GrowTransaction::grow(Turn& turn, std::int64_t num_new_slots, bool may_share) {
  SequenceData& sequence = *turn.sequence;
  // As an earlier turn has left it.
  turn.old_num_pages = static_cast<std::int32_t>(sequence.kv_page_indices.size());
  const int page_size = descriptor_.pool().page_size();
  const int room = sequence.last_page_len == 0 ? 0 : page_size - sequence.last_page_len;
  if (room > 0 && may_share) give_up_shared_page(turn);
  if (num_new_slots <= room) {
    sequence.last_page_len += static_cast<int>(num_new_slots);
  } else {
    const std::int64_t rest = num_new_slots - room;
    const std::int64_t num_new_pages = (rest - 1) / page_size + 1;
    add_needed(num_new_pages);
    // A batch that does not fit is only counted on: one entry tells later turns of the sequence
    // that its last page is a new one.
    const std::int64_t num_entries = needed_ <= available_ ? num_new_pages : 1;
    sequence.kv_page_indices.insert(sequence.kv_page_indices.end(),
                                    static_cast<std::size_t>(num_entries), kNoPage);
    turn.num_new_pages = static_cast<std::int32_t>(num_entries);
    sequence.last_page_len = static_cast<int>(rest - (num_new_pages - 1) * page_size);
  }
  // Draft tokens take slots, but no positions.
  turn.num_new_tokens = num_new_slots - static_cast<std::int64_t>(tree_parents_.size());
  sequence.length += turn.num_new_tokens;
}

bool GrowTransaction::any_last_page_is_shared() const noexcept {
  const std::span<const std::int32_t> counts = descriptor_.pool().ref_counts();
  bool is_any = false;
  for (const Turn& turn : turns_) {
    const auto& pages = turn.sequence->kv_page_indices;
    if (!pages.empty()) is_any |= counts[static_cast<std::size_t>(pages.back())] > 1;
  }
  return is_any;
}

void GrowTransaction::give_up_shared_page(Turn& turn) {
  PageId& last_page = turn.sequence->kv_page_indices.back();
  if (last_page == kNoPage) return;
  if (descriptor_.pool().ref_counts()[static_cast<std::size_t>(last_page)] <= 1) return;
  turn.shared_page = last_page;
  turn.sequence->table_version = next_table_version();
  pool_.drop(std::span(&turn.shared_page, 1));
  last_page = kNoPage;
  add_needed(1);
}

void GrowTransaction::add_needed(std::int64_t num_pages) noexcept {
  needed_ += std::min(num_pages, kMaxLength - needed_);
}

void GrowTransaction::take_pages() {
  for (const Turn& turn : turns_) {
    if (turn.shared_page == kNoPage && turn.num_new_pages == 0) continue;
    PageId* const new_pages = turn.sequence->kv_page_indices.data() + turn.old_num_pages;
    if (turn.shared_page != kNoPage) {
      pool_.take({new_pages - 1, 1});
      copies_.push_back({.source = turn.shared_page, .target = new_pages[-1]});
    }
    if (turn.num_new_pages > 0) {
      pool_.take({new_pages, static_cast<std::size_t>(turn.num_new_pages)});
    }
  }
}

void GrowTransaction::commit() noexcept {
  pool_.commit();
  if (mode_ == Mode::kTree) turns_.front().sequence->tree_parents = std::move(tree_parents_);
  turns_.clear();
  drops_.clear();
}

void GrowTransaction::rollback() noexcept {
  pool_.rollback();
  for (; !turns_.empty(); turns_.pop_back()) {
    const Turn& turn = turns_.back();
    SequenceData& sequence = *turn.sequence;
    auto& pages = sequence.kv_page_indices;
    pages.erase(pages.end() - turn.num_new_pages, pages.end());
    if (turn.shared_page != kNoPage) pages.back() = turn.shared_page;
    sequence.last_page_len = turn.old_last_page_len;
    sequence.length -= turn.num_new_tokens;
    if (turn.has_dropped) {
      if (drops_.back().is_cut_out) put_back(sequence, drops_.back());
      drops_.pop_back();
    }
    if (!turn.is_new) continue;
    descriptor_.found_.clear();
    descriptor_.sequences_.erase(seq_ids_[turns_.size() - 1]);
  }
  copies_.clear();
}

}  // namespace seqattn
