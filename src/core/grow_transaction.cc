#include "grow_transaction.h"

#include <algorithm>
#include <span>
#include <tuple>

#include "message.h"
#include "seqattn/paged_kv_cache_manager.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 62;

}  // namespace

GrowTransaction::GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_ids, Lengths new_lens,
                                 bool decoding)
    : descriptor_(descriptor),
      seq_ids_(seq_ids),
      new_lens_(new_lens),
      decoding_(decoding),
      pool_(*descriptor.pool_) {
  require(decoding || seq_ids.size() == new_lens.size(), "seq_new_lens: got ", new_lens.size(),
          " lengths for ", seq_ids.size(), " sequence ids; expected one for each");
}

GrowTransaction GrowTransaction::by_lengths(CacheDescriptor& descriptor, SeqIds seq_ids,
                                            Lengths new_lens) {
  return {descriptor, seq_ids, new_lens, /*decoding=*/false};
}

GrowTransaction GrowTransaction::by_one_token(CacheDescriptor& descriptor, SeqIds seq_ids) {
  return {descriptor, seq_ids, {}, /*decoding=*/true};
}

bool GrowTransaction::prepare(Stream stream) {
  turns_.reserve(seq_ids_.size());
  pool_.begin();
  apply_turns();
  if (needed_ > available_) {
    const std::int64_t missing = needed_ - available_;
    rollback();
    // More than the whole pool no reclaimer can provide.
    if (needed_ > descriptor_.pool().num_pages() || !pool_.reclaim(missing)) return false;
    // Shares that the reclaimer gave up may have made copies unnecessary: count again.
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
  available_ = descriptor_.pool().available_pages_count();
  for (std::size_t i = 0; i < seq_ids_.size(); ++i) {
    const std::int64_t num_new_tokens = decoding_ ? 1 : new_lens_[i];
    require(num_new_tokens >= 0, "seq_new_lens: got ", num_new_tokens, " for sequence ",
            seq_ids_[i], "; expected at least 0");
    Turn& turn = begin_turn(seq_ids_[i]);
    require(num_new_tokens <= kMaxLength - turn.sequence->length, "seq_new_lens: got ",
            num_new_tokens, " for sequence ", seq_ids_[i], " of length ", turn.sequence->length,
            "; expected a total of at most 2^62");
    if (num_new_tokens > 0) grow(turn, num_new_tokens);
  }
}

GrowTransaction::Turn& GrowTransaction::begin_turn(SeqId seq_id) {
  auto& sequences = descriptor_.sequences_;
  bool is_new = false;
  auto entry = sequences.end();
  if (decoding_) {
    entry = sequences.find(seq_id);
    if (entry == sequences.end()) throw UnknownSequenceError(seq_id);
  } else {
    std::tie(entry, is_new) = sequences.try_emplace(seq_id);
  }
  SequenceData& sequence = entry->second;
  return turns_.emplace_back(
      Turn{.sequence = &sequence,
           .old_last_page_len = sequence.last_page_len,
           .old_num_pages = static_cast<std::int32_t>(sequence.kv_page_indices.size()),
           .is_new = is_new});
}

void GrowTransaction::grow(Turn& turn, std::int64_t num_new_tokens) {
  SequenceData& sequence = *turn.sequence;
  const int page_size = descriptor_.pool().page_size();
  const int room = sequence.last_page_len == 0 ? 0 : page_size - sequence.last_page_len;
  if (room > 0) give_up_shared_page(turn);
  if (num_new_tokens <= room) {
    sequence.last_page_len += static_cast<int>(num_new_tokens);
  } else {
    const std::int64_t rest = num_new_tokens - room;
    const std::int64_t num_new_pages = (rest - 1) / page_size + 1;
    add_needed(num_new_pages);
    // A batch that does not fit is only counted on: one entry tells later turns of the sequence
    // that its last page is a new one.
    turn.num_new_pages = needed_ <= available_ ? static_cast<std::int32_t>(num_new_pages) : 1;
    sequence.kv_page_indices.insert(sequence.kv_page_indices.end(),
                                    static_cast<std::size_t>(turn.num_new_pages), kNoPage);
    sequence.last_page_len = static_cast<int>(rest - (num_new_pages - 1) * page_size);
  }
  sequence.length += num_new_tokens;
  turn.num_new_tokens = num_new_tokens;
}

void GrowTransaction::give_up_shared_page(Turn& turn) {
  PageId& last_page = turn.sequence->kv_page_indices.back();
  if (last_page == kNoPage || descriptor_.pool().ref_count(last_page) <= 1) return;
  turn.shared_page = last_page;
  pool_.drop(std::span(&turn.shared_page, 1));
  last_page = kNoPage;
  add_needed(1);
}

void GrowTransaction::add_needed(std::int64_t num_pages) noexcept {
  needed_ += std::min(num_pages, kMaxLength - needed_);
}

void GrowTransaction::take_pages() {
  for (const Turn& turn : turns_) {
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
  turns_.clear();
}

void GrowTransaction::rollback() noexcept {
  pool_.rollback();
  for (; !turns_.empty(); turns_.pop_back()) {
    const Turn& turn = turns_.back();
    SequenceData& sequence = *turn.sequence;
    auto& pages = sequence.kv_page_indices;
    pages.erase(pages.begin() + turn.old_num_pages, pages.end());
    if (turn.shared_page != kNoPage) pages.back() = turn.shared_page;
    sequence.last_page_len = turn.old_last_page_len;
    sequence.length -= turn.num_new_tokens;
    if (turn.is_new) descriptor_.sequences_.erase(seq_ids_[turns_.size() - 1]);
  }
  copies_.clear();
}

}  // namespace seqattn
